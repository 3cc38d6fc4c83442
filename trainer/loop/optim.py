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

from ..config import OptimizerConfig, TrainConfig
from ..errors import KilnError

_IN_PYTORCH_OPTIMIZER = {"lion": "Lion", "prodigy": "Prodigy", "schedule_free_adamw": "ScheduleFreeAdamW"}

# The update of a value depends on its own gradient, or on sums over all: the shapes of the tensors make no difference
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
