"""Puts the frozen model where its memory level says, for as long as a session lasts.

    resident                the denoiser's session loads the model as it likes
    checkpoint activations  the same, and blocks are recomputed (recompute.py)
    stream blocks           only what is not in blocks is on the device; two blocks at a time pass through (ring.py)
    stream from file        the same, and the blocks are read from the mapped file (mapped.py); the model's
                            parameters become mappings of the file, and their copies are freed

With a base in fp8 or nf4 the trained layers' weights are held so (quantised_base.py), on the device or in the CPU
memory that is streamed. Everything happens in the shared clone: the model keeps its layers, its values and, but for
stream from file, their memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter.frozen_weights import FrozenWeights
from ..adapter.targets import choose_targets
from ..config import STREAMED, AdapterConfig, MemoryConfig
from ..denoiser import Denoiser
from ..errors import KilnError
from .blocks import find_blocks
from .compiled import compile_blocks
from .ledger import Ledger, size_of
from .mapped import is_mapped, map_weights
from .parts import recompute_parts
from .plain import is_plain
from .quantised_base import QuantisedBase
from .recompute import RecomputedForward, checkpoint_blocks
from .ring import BlockRing, StoredWeight, parts_of_weight
from .streams import streams_of


@dataclass(frozen=True)
class _WeightRef:
    """A parameter or buffer of the shared clone. `name` is its full name in the model."""

    name: str
    owner: nn.Module
    key: str


class Placement:
    """One run's frozen weights.

    Attributes:
        weights: what layers under an adapter ask for their weight.
        compiles: whether blocks are compiled; auto may have chosen a level that does not allow it.
        ledger: bytes of weights that this placement holds on the device; empty where the denoiser loads the model.
        recomputed: the blocks' wrappers, at the levels that have them.
        ring: the streamed blocks, in a session.
        note: a sentence about the model's memory for the user, or nothing; known once a session has begun.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        config: MemoryConfig,
        adapter: AdapterConfig,
        weights: FrozenWeights,
        file: Path | None = None,
    ) -> None:
        """config: the level must be decided, auto counts as resident. file: the model's one file, where there is one.

        Raises:
            KilnError: the level needs a file and there is none.
        """
        if config.level == "stream from file" and file is None:
            raise KilnError(
                "The model cannot be streamed from its file: it does not come straight from one safetensors file; "
                "choose the level stream blocks."
            )
        file = file if config.level == "stream from file" else None
        self._denoiser, self._config, self._adapter, self._file = denoiser, config, adapter, file
        self._quantised = (
            None if config.base_precision == "as it is" else QuantisedBase(config.base_precision, weights)
        )
        self._streams = config.level in STREAMED
        self.compiles = config.compile_blocks and not self._streams
        self.weights = weights if self._quantised is None else self._quantised.weights
        self.ledger = Ledger()
        self.recomputed: list[RecomputedForward] = []
        self.ring: BlockRing | None = None
        self.note = ""
        self._refs: _ModelWeights | None = None

    @contextmanager
    def session(self) -> Iterator[None]:
        """The denoiser's session with the weights in their places."""
        with ExitStack() as ending:
            ending.callback(self._free_pinned)
            whole = not (self._streams or self._quantised)
            begun = (
                self._denoiser.session() if whole else self._denoiser.session(whole=False, file=self._file)
            )
            self.note = ending.enter_context(begun) or self.note
            module = self._denoiser.module
            recomputes = self._config.level not in ("resident", "auto")
            if (self.compiles or recomputes) and not find_blocks(module):
                raise KilnError(
                    "This model has no blocks that could be recomputed, streamed or compiled; choose the memory level "
                    "resident and switch compile_blocks off."
                )
            if self.compiles:
                compile_blocks(module)
            if recomputes:
                self.recomputed = checkpoint_blocks(module, self._config.offload_block_inputs)
                if self._config.recompute_parts:
                    for block in find_blocks(module):
                        recompute_parts(block, in_chunks=not self._adapter.dropout)
            if not whole:
                if self._refs is None:
                    self._refs = _ModelWeights(module, self._adapter, self._denoiser)
                ending.callback(self.ledger.release, "outside blocks", "blocks")
                if self._quantised is not None:
                    self._quantise(self._quantised, ending)
                self._move(self._refs.outside, "outside blocks")
                if self._streams:
                    self.ring = self._make_ring()
                    ending.callback(self._close_ring)
                    for index, wrapper in enumerate(self.recomputed):
                        wrapper.before = _binder(self.ring, index)
                        ending.callback(setattr, wrapper, "before", None)
                else:
                    self._move([p for block in self._refs.blocks for p in block], "blocks")
            yield

    def uncalled_blocks_warning(self) -> str:
        """After a step: a sentence when the network never calls most of its blocks, so that the memory level has little
        effect; else empty."""
        unused = sum(not wrapper.called for wrapper in self.recomputed)
        if 2 * unused <= len(self.recomputed):
            return ""
        return (
            f"The memory level {self._config.level} has little effect on this model: {unused} of its "
            f"{len(self.recomputed)} blocks are never called."
        )

    def _quantise(self, base: QuantisedBase, ending: ExitStack) -> None:
        assert self._refs is not None
        device = torch.device("cpu") if self._streams else self._denoiser.device
        like = torch.empty(0, dtype=self._denoiser.dtype, device=self._denoiser.device)
        for layer in self._refs.targets:
            if base.hold(layer, like, device):
                ending.callback(base.release, layer)

    def _move(self, places: list[_WeightRef], what: str) -> None:
        """Onto the device, as copies where they are elsewhere; other kinds of tensors move when their layer asks."""
        for place in places:
            owner = place.owner
            table: dict[str, Any] = owner._parameters if place.key in owner._parameters else owner._buffers
            tensor = table[place.key]
            if tensor is None or not _is_plain(tensor):
                continue
            # A file's pages may lie anywhere, and how a CPU adds up depends on that
            moved = tensor.to(self._denoiser.device, copy=is_mapped(tensor))
            if moved is not tensor:
                table[place.key] = nn.Parameter(moved, False) if isinstance(tensor, nn.Parameter) else moved
            self.ledger.hold(what, size_of(moved))

    def _make_ring(self) -> BlockRing:
        assert self._refs is not None
        stored = {p.name: p.owner._parameters.get(p.key) for block in self._refs.blocks for p in block}
        plain: dict[str, Tensor] = {n: t for n, t in stored.items() if t is not None and _is_plain(t)}
        tensors = plain if self._file is None else map_weights(self._file, plain)

        def weights(place: _WeightRef) -> list[StoredWeight]:
            if place.name in plain:
                return [StoredWeight(place.owner, place.key, tensors[place.name], plain[place.name].dtype)]
            quantised = stored[place.name]
            parts = {} if quantised is None else parts_of_weight(quantised)
            return [StoredWeight(place.owner, place.key, t, t.dtype, name) for name, t in parts.items()]

        blocks = [[w for place in places for w in weights(place)] for places in self._refs.blocks]
        if not any(blocks):
            raise KilnError(
                "The model cannot be streamed: it has no blocks with weights of an ordinary kind; choose the level "
                "checkpoint activations."
            )
        return BlockRing(blocks, self._denoiser.device, self.ledger)

    def _free_pinned(self) -> None:
        streams = streams_of(self._denoiser.device)
        if streams is not None:
            streams.free_pinned()

    def _close_ring(self) -> None:
        if self.ring is not None:
            self.ring.close()
            self.ring = None


class _ModelWeights:
    """The shared clone's tensors, looked up before any adapter is in it: names and owners stay valid after that."""

    def __init__(self, module: nn.Module, adapter: AdapterConfig, denoiser: Denoiser) -> None:
        names = {id(m): name for name, m in module.named_modules()}

        def places(owners: list[nn.Module], buffers: bool) -> list[_WeightRef]:
            return [
                _WeightRef(f"{names[id(m)]}.{key}".lstrip("."), m, key)
                for m in owners
                for key in [*m._parameters, *(m._buffers if buffers else ())]
                if not denoiser.keeps_to_itself(m, key)
            ]

        blocks = find_blocks(module)
        inside = {id(m) for block in blocks for m in block.modules()}
        self.blocks = [places(list(block.modules()), False) for block in blocks]
        self.outside = places([m for m in module.modules() if id(m) not in inside], True)
        self.outside += [
            _WeightRef(f"{names[id(m)]}.{key}", m, key)
            for b in blocks
            for m in b.modules()
            for key in m._buffers
        ]
        wanted = choose_targets(module, adapter.target_modules, adapter.exclude_modules)
        self.targets = [module.get_submodule(name) for name in wanted]


def _binder(ring: BlockRing, index: int) -> Callable[[], None]:
    return lambda: ring.bind(index)


def _is_plain(tensor: Tensor) -> bool:
    """Bytes that may be copied as they are; a tensor subclass (a quantised weight) knows itself how it moves."""
    return is_plain(tensor) and not tensor.is_meta
