"""Orders of tags: every one a permutation, the first tags in place, none twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.dataset.caption_variants import CaptionVariation, caption_variants, split_tags
from trainer.errors import KilnError


@given(st.lists(st.text("abc", min_size=1, max_size=3), max_size=7), st.integers(0, 4), st.integers(1, 12))
def test_orders_keep_their_promises(tags: list[str], keep_first: int, variants: int) -> None:
    caption = ", ".join(tags)
    variation = CaptionVariation(shuffle_tags=True, keep_first=keep_first, variants=variants)
    orders = caption_variants(caption, variation)
    assert orders[0] == caption and len(set(orders)) == len(orders) <= variants
    for order in orders:
        assert sorted(split_tags(order)) == sorted(tags)
        assert split_tags(order)[:keep_first] == tags[:keep_first]
    assert orders == caption_variants(caption, variation)


def test_as_many_orders_as_asked_for_when_there_are_that_many() -> None:
    assert len(caption_variants("k, a, b, c, d, e", CaptionVariation(shuffle_tags=True, variants=8))) == 8
    assert set(caption_variants("k, a, b", CaptionVariation(shuffle_tags=True))) == {"k, a, b", "k, b, a"}
    assert caption_variants("k, a, b", CaptionVariation()) == caption_variants("k, a, b", None) == ["k, a, b"]
    assert split_tags("a\uff0c b ,, c") == ["a", "b", "c"]


def test_ranges() -> None:
    with pytest.raises(KilnError, match=r"dropout is 1.5; it is a probability"):
        CaptionVariation(dropout=1.5)
