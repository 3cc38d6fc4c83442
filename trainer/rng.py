"""Random numbers that depend on nothing but the seed and what they are for.

Every draw of a run is a pure function of (seed, purpose, counters), through a fresh generator. So there is no
generator state to save: a resumed run draws what the uninterrupted one would have drawn, and nobody else who
uses torch's global generator (a sampler node of the same process, say) can disturb a run or be disturbed by it.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def derive_seed(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed for one purpose ("noise", "order", ...) at one place (step, layer, ...)."""
    # The length is in it because SeedSequence takes missing words for zeros: (1,) and (1, 0) must differ.
    words = [seed & 0xFFFFFFFF, seed >> 32, zlib.crc32(purpose.encode()), 1 + len(counters), *counters]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator for one draw. CPU always, so that a run's draws do not depend on its device."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *counters))
