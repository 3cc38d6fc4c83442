"""The training nodes of a graph that train another model on the same dataset: the other expert of Wan 2.2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ....trainer.config import ObjectiveConfig
from ....trainer.config.noise_ranges import NoiseRange, misfit

TRAINER, OBJECTIVE = "KilnTrainLora", "KilnObjectiveSettings"


def ranges_sentence(prompt: dict[str, Any], node_id: str, config: ObjectiveConfig) -> str:
    """Where this run's noise levels and those of the other expert do not meet; "" where they do, or there is none.

    Args:
        prompt: the graph as the host runs it.
        node_id: the training node's.
        config: this run's.
    """
    own = NoiseRange(config.min_timestep, config.max_timestep)
    others = _other_ranges(prompt, node_id)
    return next((sentence for other in others if (sentence := misfit(own, other))), "")


def _other_ranges(prompt: dict[str, Any], node_id: str) -> Iterator[NoiseRange]:
    """Of every other training node with the same dataset and another model."""
    own = _inputs(prompt, node_id)
    for name, node in prompt.items():
        inputs = node.get("inputs") or {}
        if name == node_id or node.get("class_type") != TRAINER:
            continue
        if inputs.get("encoded") == own.get("encoded") and inputs.get("model") != own.get("model"):
            found = _range_of(prompt, inputs.get("settings"))
            if found is not None:
                yield found


def _range_of(prompt: dict[str, Any], link: Any) -> NoiseRange | None:
    """By the last Objective Settings of a chain; None where a widget of it is a link."""
    seen: set[str] = set()
    while isinstance(link, list) and link and str(link[0]) not in seen:
        seen.add(name := str(link[0]))
        inputs = _inputs(prompt, name)
        if prompt.get(name, {}).get("class_type") == OBJECTIVE:
            values = inputs.get("min_timestep", 0.0), inputs.get("max_timestep", 1.0)
            numbers = [float(v) for v in values if isinstance(v, (int, float))]
            return NoiseRange(*numbers) if len(numbers) == 2 else None
        link = inputs.get("settings")
    return NoiseRange(0.0, 1.0)


def _inputs(prompt: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = prompt.get(name, {}).get("inputs") or {}
    return found
