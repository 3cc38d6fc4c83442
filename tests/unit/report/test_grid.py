"""Pictures side by side under their labels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageFont

from trainer.errors import KilnError
from trainer.report.grid import GAP, WIDE_FONTS, comparison_grid


def plain(value: float, count: int = 1, size: int = 40) -> np.ndarray:
    return np.full((count, size, size, 3), value, np.float32)


def test_stills_stand_in_rows_and_below_each_other() -> None:
    grid = comparison_grid([plain(0.1 * i, 2) for i in range(1, 6)], list("abcde"), columns=3)
    assert grid.shape[0] == 1 and grid.shape[2] == 3 * 40 + 4 * GAP and grid.dtype == np.float32
    column = grid[0, :, GAP + 20]
    assert (np.abs(column - 0.1) < 0.01).all(1).sum() == 80 and (np.abs(column - 0.4) < 0.01).all(
        1
    ).sum() == 80
    assert 0 <= grid.min() < 0.2 and grid.max() == 1.0


def test_videos_move_and_hold_their_last_frame() -> None:
    short = np.concatenate([plain(0.2), plain(0.4)])
    grid = comparison_grid([short, plain(0.6, 4)], ["short", "long"], mode="video")
    assert len(grid) == 4
    assert [round(float(frame[-GAP - 20, GAP + 20, 0]), 1) for frame in grid] == [0.2, 0.4, 0.4, 0.4]


def test_smaller_ones_are_centred_and_long_labels_break() -> None:
    small = comparison_grid([plain(0.2), plain(0.4, size=20)], ["a", "b"])
    assert abs(float(small[0, -GAP - 20, GAP + 40 + GAP + 20, 0]) - 0.4) < 0.01
    long = comparison_grid([plain(0.2)], ["step 250, strength 0.8, second LoRA 0.5"])
    assert long.shape[1] > small.shape[1]


def test_a_long_word_stays_in_its_cell() -> None:
    grid = comparison_grid([plain(0.2), plain(0.2)], ["a_name_without_any_space_in_it", ""])
    assert (grid[0, : -GAP - 40, GAP + 40 + GAP // 2 :] == 1.0).all()


def test_letters_beyond_ascii_use_a_font_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    original = ImageFont.truetype

    def missing(font: object, *rest: object, **more: object) -> object:
        if not isinstance(font, str):  # Pillow's own
            return original(font, *rest, **more)
        asked.append(font)
        raise OSError("cannot open resource")

    monkeypatch.setattr(ImageFont, "truetype", missing)
    comparison_grid([plain(0.2)], ["\u5f3a\u5ea6 0.8"])  # and does without
    assert asked == list(WIDE_FONTS)


def test_what_cannot_be_shown() -> None:
    with pytest.raises(KilnError, match="got no images"):
        comparison_grid([], [])
    with pytest.raises(KilnError, match="got 2 images and 1 labels"):
        comparison_grid([plain(0), plain(1)], ["a"])
