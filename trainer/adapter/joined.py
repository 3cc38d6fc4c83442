"""The adapter of a model and that of its text encoder as one: one state dict, one checkpoint, one optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ..rng import derive_seed
from .protocol import TEXT_ENCODER, Adapter


def seed_of_text_encoder(seed: int) -> int:
    """The text encoder's layers count from 0 as the model's do, and draw other numbers."""
    return derive_seed(seed, "text encoder")


class JoinedAdapter(Adapter):
    """Two adapters; names of the text encoder's layers begin with TEXT_ENCODER."""

    def __init__(self, model: Adapter, text_encoder: Adapter) -> None:
        self._model, self._text = model, text_encoder

    @property
    def weights_loaded(self) -> bool:
        return self._model.weights_loaded and self._text.weights_loaded

    def set_step(self, seed: int, micro_step: int) -> None:
        self._model.set_step(seed, micro_step)
        self._text.set_step(seed_of_text_encoder(seed), micro_step)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        with self._model.switched_off(), self._text.switched_off():
            yield

    @contextmanager
    def reversed(self) -> Iterator[None]:
        with self._model.reversed(), self._text.reversed():
            yield

    def disable_dropout(self) -> None:
        self._model.disable_dropout()
        self._text.disable_dropout()

    def parameters(self) -> list[nn.Parameter]:
        return [*self._model.parameters(), *self._text.parameters()]

    def output_matrices(self) -> list[nn.Parameter]:
        return [*self._model.output_matrices(), *self._text.output_matrices()]

    def layers_without_gradient(self) -> list[str]:
        own = self._text.layers_without_gradient()
        return [*self._model.layers_without_gradient(), *(TEXT_ENCODER + name for name in own)]

    def limit_norms(self) -> None:
        self._model.limit_norms()
        self._text.limit_norms()

    def state_dict(self) -> dict[str, Tensor]:
        own = self._text.state_dict()
        return {**self._model.state_dict(), **{TEXT_ENCODER + key: t for key, t in own.items()}}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._model.load_state_dict(state)
        own = {k.removeprefix(TEXT_ENCODER): t for k, t in state.items() if k.startswith(TEXT_ENCODER)}
        self._text.load_state_dict(own)
