"""Every setting of a training run: frozen dataclasses with defaults, units and ranges, one theme a file.

The field is the single source: its metadata gives the range that the constructor checks, and the default, range
and tooltip that the settings nodes show. Read it back with `field_info`. A preset is a plain table of the values
that it puts on the widgets; nothing is changed in secret after that.
"""

from .adapter import AdapterConfig
from .fields import check_ranges, field_info, setting
from .guards import GuardConfig
from .memory import STREAMED, MemoryConfig
from .objective import AUTO, AUTO_SHIFT, ObjectiveConfig, Prediction
from .optimizer import OptimizerConfig
from .presets import PRESETS, RANGES
from .sample import SampleConfig
from .train import THEMES, TrainConfig, without_prompts
from .validation import ValidationConfig

__all__ = [
    "TrainConfig",
    "THEMES",
    "AdapterConfig",
    "OptimizerConfig",
    "AUTO",
    "AUTO_SHIFT",
    "ObjectiveConfig",
    "Prediction",
    "ValidationConfig",
    "GuardConfig",
    "MemoryConfig",
    "STREAMED",
    "SampleConfig",
    "PRESETS",
    "RANGES",
    "setting",
    "field_info",
    "check_ranges",
    "without_prompts",
]
