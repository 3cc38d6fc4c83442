"""Optimizer and learning-rate schedule by name.

AdamW and Adafactor are torch's. The rest lives in optional packages (requirements name none of them): bitsandbytes for
8-bit AdamW, pytorch_optimizer for Lion, Prodigy, schedule-free AdamW and some hundred more.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .config import OptimizerConfig, TrainConfig
from .errors import KilnError

_IN_PYTORCH_OPTIMIZER = {"lion": "Lion", "prodigy": "Prodigy", "schedule_free_adamw": "ScheduleFreeAdamW"}

# Every value moves by its own gradient, or by sums over all of them: the shapes of the tensors make no difference
_ELEMENTWISE = {"adamw", "adamw_8bit", *_IN_PYTORCH_OPTIMIZER}


def wants_shapes(options: OptimizerConfig) -> bool:
    """Whether the optimizer looks at matrices (Adafactor, and whatever we do not know) and not at single values."""
    return options.optimizer.strip().lower() not in _ELEMENTWISE


def make_optimizer(
    parameters: Sequence[nn.Parameter] | Sequence[dict[str, Any]], options: OptimizerConfig
) -> torch.optim.Optimizer:
    """The optimizer that `options` names.

    Args:
        parameters: tensors, or torch's groups of them ("params" and their own "lr").

    Raises:
        KilnError: there is no such optimizer, or its package is not installed.
    """
    name = options.optimizer.strip()
    first = parameters[0]["params"][0] if isinstance(parameters[0], dict) else parameters[0]
    common: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
    betas = (options.beta1, options.beta2)
    match name.lower():
        case "adamw":
            # One fused kernel where torch has one for the device (about a quarter of the time on a CPU)
            fused = first.device.type in ("cpu", "cuda", "mps", "xpu")
            return torch.optim.AdamW(parameters, betas=betas, fused=fused, **common)
        case "adafactor":
            return torch.optim.Adafactor(parameters, **common)
        case "adamw_8bit":
            return _package("bitsandbytes", name).optim.AdamW8bit(parameters, betas=betas, **common)
    package = _package("pytorch_optimizer", name)
    found = getattr(package, _IN_PYTORCH_OPTIMIZER.get(name.lower(), name), None)
    if not (inspect.isclass(found) and issubclass(found, torch.optim.Optimizer)):
        raise KilnError(
            f"There is no optimizer {name!r}; choose adamw, adafactor, adamw_8bit, "
            f"{', '.join(_IN_PYTORCH_OPTIMIZER)} or the exact name of a class of pytorch_optimizer, such as AdaBelief."
        )
    accepted = inspect.signature(found).parameters
    if "betas" in accepted and name.lower() == "schedule_free_adamw":
        common["betas"] = betas
    try:
        return found(parameters, **{k: v for k, v in common.items() if k in accepted})
    except Exception as error:  # some classes want a closure, a model, or other ranges
        raise KilnError(f"The optimizer {name!r} cannot be made ({error}); choose another one.") from error


def _package(package: str, optimizer: str) -> Any:
    try:
        return importlib.import_module(package)
    except Exception as error:  # also a package that is there and does not load
        raise KilnError(
            f"The optimizer {optimizer!r} needs the Python package {package} ({error}); install it with 'pip install "
            f"{package.replace('_', '-')}' into ComfyUI's Python, or choose adamw."
        ) from error


def make_schedule(config: TrainConfig) -> Callable[[int], float]:
    """Steps done -> factor on the learning rate: a warmup, then the named course over the rest of the run.

    A function of the step alone, so there is no state to save. The curves are diffusers'.
    """
    from diffusers.optimization import (
        get_scheduler,  # takes seconds, and checkpoints are listed at the host's start
    )

    options, warmup = config.optimizer, config.warmup_steps
    holder = torch.optim.SGD(
        [nn.Parameter(torch.zeros(1))], lr=1.0
    )  # diffusers hangs its curve on an optimizer
    curve = get_scheduler(
        "constant_with_warmup" if options.schedule == "constant" else options.schedule,
        holder,
        num_warmup_steps=warmup,
        num_training_steps=config.steps,
        num_cycles=options.schedule_cycles,
        power=options.schedule_power,
    ).lr_lambdas[0]

    def factor(step: int) -> float:
        value = float(curve(step))
        return options.warmup_start + (1 - options.warmup_start) * value if step < warmup else value

    return factor


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
    return tensors, {"values": values, "on_cpu": on_cpu, "groups": groups, "defaults": defaults}


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
