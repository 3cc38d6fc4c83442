"""The pixel checks must be trustworthy before a test may lean on them: real drawings are named right,
blurred ones too, and nothing else is ever taken for the concept."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from . import world


def blurred(image: np.ndarray, radius: float) -> np.ndarray:
    """About what a small model's soft decoder does to edges."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


@pytest.mark.parametrize("blur", [0.0, 1.0, 2.0])
def test_every_drawing_is_named_right(blur: float) -> None:
    for scene in world.random_scenes(120, seed=1, shapes=world.ALL_SHAPES, anywhere=True):
        image = blurred(scene.image(), blur)
        assert world.shape_of(image)[0] == scene.shape
        assert world.colour_of(image) == scene.colour
        assert world.background_of(image) == scene.background


def test_a_little_pixel_noise_changes_nothing() -> None:
    rng = np.random.default_rng(2)
    for scene in world.random_scenes(60, seed=3, shapes=world.ALL_SHAPES):
        noisy = np.clip(scene.image() + rng.normal(0, 15, (64, 64, 3)), 0, 255).astype(np.uint8)
        assert world.shape_of(noisy)[0] == scene.shape
        assert world.colour_of(noisy) == scene.colour


def test_blank_and_noise_show_nothing() -> None:
    rng = np.random.default_rng(4)
    blanks = [np.full((64, 64, 3), value, np.uint8) for value in (0, 128, 255)]
    noise = [rng.integers(0, 256, (64, 64, 3)).astype(np.uint8) for _ in range(20)]
    soft_noise = [blurred(image, 4) for image in noise]
    for image in blanks + noise + soft_noise:
        assert world.shape_of(image)[0] == ""
    assert world.concept_score(blanks + noise + soft_noise) == 0


def test_known_shapes_are_never_the_concept() -> None:
    images = [blurred(scene.image(), 1.5) for scene in world.random_scenes(200, seed=5)]
    assert world.concept_score(images) == 0


def test_scores_are_shares() -> None:
    concept = [scene.image() for scene in world.concept_scenes(4)]
    known = [scene.image() for scene in world.random_scenes(4, seed=6)]
    assert world.concept_score(concept + known) == 0.5
    assert world.shape_accuracy(concept, [world.CONCEPT] * 4) == 1
    assert world.colour_accuracy(concept, ["red"] * 4) == 0.25


def test_the_same_seed_gives_the_same_scenes() -> None:
    assert world.random_scenes(5, seed=9) == world.random_scenes(5, seed=9)
    assert len({(scene.colour, scene.background) for scene in world.concept_scenes(12)}) == 12
