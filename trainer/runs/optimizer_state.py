"""An optimizer's state as tensors and plain values, and back: what a checkpoint holds of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import KilnError


def state_to_save(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Everything that an optimizer remembers, as tensors on the CPU and as plain values for JSON.

    Some keep counters and estimates in their groups (Prodigy's distance, the schedule-free average's weight): what
    differs there from the group's start is a memory, the rest are settings.
    """
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}
    on_cpu: list[str] = []
    for index, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            key = f"{index}.{name}"
            if isinstance(value, torch.Tensor):
                tensors[key] = value.detach().cpu().contiguous()
                if value.device.type == "cpu":
                    on_cpu.append(key)
            elif isinstance(value, bool | int | float | str | None):
                values[key] = value
            else:
                raise KilnError(
                    f"The optimizer {type(optimizer).__name__} keeps a {type(value).__name__} that cannot be saved; "
                    "choose another optimizer."
                )
    groups = [
        {name: _plain(v) for name, v in group.items() if name not in ("params", "lr", "initial_lr")}
        for group in optimizer.param_groups
    ]
    defaults = {name: _plain(v) for name, v in optimizer.defaults.items()}
    return tensors, {"values": values, "on_cpu": sorted(on_cpu), "groups": groups, "defaults": defaults}


def restore_state(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], saved: dict[str, Any]
) -> None:
    """The inverse of state_to_save. Settings, the learning rate among them, stay as the optimizer was made."""
    parameters = _parameters(optimizer)
    optimizer.state.clear()
    on_cpu = set(saved["on_cpu"])
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        device = torch.device("cpu") if key in on_cpu else parameter.device
        optimizer.state.setdefault(parameter, {})[name] = tensor.to(device, copy=True)
    for key, value in saved["values"].items():
        index, _, name = key.partition(".")
        optimizer.state.setdefault(parameters[int(index)], {})[name] = value
    for group, then in zip(optimizer.param_groups, saved["groups"], strict=True):
        for name, value in then.items():
            if name not in saved["defaults"] or saved["defaults"][name] != value:
                group[name] = _from_plain(value, parameters[0].device)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    return list(value) if isinstance(value, tuple) else value


def _from_plain(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"]), device=device)
    return tuple(value) if isinstance(value, list) else value
