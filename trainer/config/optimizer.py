"""Optimizer, learning-rate schedule, clipping, EMA."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import KilnError
from .fields import check_ranges, setting

ONE_BY_ONE = (
    "adamw",
    "adafactor",
    "adamw_8bit",
)  # optimizers that keep nothing about all parameters together


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How the adapter's weights move: the optimizer, its schedule and its limits."""

    learning_rate: float = setting(
        1e-4,
        "Peak learning rate. 1e-5 to 1e-4 is usual for Wan; small ranks and short runs bear more.",
        minimum=0.0,
        maximum=1.0,
        step=1e-6,
    )
    weight_decay: float = setting(
        1e-4,
        "Decoupled weight decay of AdamW (L2 pull towards zero). Raise it against overfitting.",
        minimum=0.0,
        maximum=1.0,
        step=1e-5,
    )
    schedule: str = setting(
        "cosine",
        "Course of the learning rate after the warmup.",
        options=("constant", "linear", "cosine", "cosine_with_restarts", "polynomial"),
    )
    warmup_ratio: float = setting(
        0.05,
        "Share of all steps over which the learning rate rises from zero, 0.01-0.1 is usual.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
    )
    warmup_steps: int = setting(
        0, "Steps of the warmup; 0 leaves it to warmup_ratio.", minimum=0, maximum=1_000_000
    )
    warmup_start: float = setting(
        0.0,
        "Learning rate at which the warmup starts, as a share 0-1 of the peak. A progressive start: 0.1 here and a "
        "warmup_ratio of 0.3.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
    )
    schedule_cycles: int = setting(1, "Number of waves of cosine_with_restarts.", minimum=1, maximum=1000)
    schedule_power: float = setting(
        1.0,
        "Exponent of polynomial; 1 is linear, 2 falls faster at first.",
        minimum=0.01,
        maximum=10.0,
        step=0.1,
    )
    max_grad_norm: float = setting(
        1.0,
        "Gradients whose total L2 norm is larger are scaled down to it. 0 switches clipping off.",
        minimum=0.0,
        maximum=1000.0,
        step=0.1,
    )
    gradient_accumulation: int = setting(
        1,
        "Batches whose gradients are averaged into one step: the effective batch is batch_size times this, "
        "at the memory of batch_size.",
        minimum=1,
        maximum=1024,
    )
    optimizer: str = setting(
        "adamw",
        "adamw, adafactor (torch), adamw_8bit (needs the package bitsandbytes), lion, prodigy, schedule_free_adamw "
        "or any class name of the package pytorch_optimizer (needs it). prodigy wants a learning rate of 1, lion a "
        "third of AdamW's, schedule_free_adamw a constant schedule.",
    )
    update_in_backward: bool = setting(
        False,
        "Move each matrix as soon as its gradient is there and forget the gradient: saves 4 bytes per trained value, "
        "which counts at high ranks. Needs gradient_accumulation 1 and max_grad_norm 0; for adamw, adafactor, "
        "adamw_8bit.",
    )
    lora_plus_ratio: float = setting(
        1.0,
        "Learning rate of the B matrices over that of the A matrices (LoRA+); 1 treats them alike, 4-16 is usual. For "
        "lora and dora.",
        minimum=0.01,
        maximum=100.0,
        step=0.5,
    )
    ema_decay: float = setting(
        0.0,
        "Decay of a running mean of the weights (EMA), which is then what is validated and saved; 0.99-0.999 is "
        "usual, 0 switches it off.",
        minimum=0.0,
        maximum=0.99999,
        step=0.001,
    )
    text_encoder_learning_rate: float = setting(
        5e-5,
        "Peak learning rate of the text encoder's LoRA, where a CLIP is connected; 5e-5 is usual, half of the model's "
        "or less. The same schedule as learning_rate.",
        minimum=0.0,
        maximum=1.0,
        step=1e-6,
    )
    beta1: float = setting(0.9, "Decay of AdamW's running mean.", minimum=0.0, maximum=0.9999, step=0.001)
    beta2: float = setting(
        0.999, "Decay of AdamW's running variance.", minimum=0.0, maximum=0.99999, step=0.001
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.update_in_backward:
            self._check_update_in_backward()

    def _check_update_in_backward(self) -> None:
        """It sees one gradient at a time."""
        for name, value, wanted in (
            ("gradient_accumulation", self.gradient_accumulation, 1),
            ("max_grad_norm", self.max_grad_norm, 0),
        ):
            if value != wanted:
                raise KilnError(
                    f"update_in_backward needs {name} {wanted}, which is {value:g} now; set it so or switch "
                    "update_in_backward off."
                )
        if self.optimizer.strip().lower() not in ONE_BY_ONE:
            raise KilnError(
                f"update_in_backward does not go with the optimizer {self.optimizer!r}; choose one of "
                f"{', '.join(ONE_BY_ONE)} or switch it off."
            )
