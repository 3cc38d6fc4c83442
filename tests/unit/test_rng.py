"""Random draws as functions of seed, purpose and place."""

from __future__ import annotations

import torch

from trainer.rng import derive_seed, generator


def test_draws_depend_on_everything_they_are_for() -> None:
    seeds = {
        derive_seed(s, p, *c) for s in (0, 1, 2**64 - 1) for p in ("a", "b") for c in ((), (0,), (1,), (0, 1))
    }
    assert len(seeds) == 24 and all(0 <= s < 2**63 for s in seeds)
    assert torch.equal(
        torch.rand(3, generator=generator(1, "x", 2)), torch.rand(3, generator=generator(1, "x", 2))
    )
