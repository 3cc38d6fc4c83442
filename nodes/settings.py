"""Settings nodes: their widgets, ranges and tooltips are read off the config classes, so there is one source."""

from __future__ import annotations

import dataclasses
from typing import Any

from comfy_api.latest import io

from ..trainer import config
from ..trainer.config.import_settings import as_settings, import_settings, widget_values
from . import types
from .listing import listed

GUIDE_YAML = """rank: 64
alpha: 32
target_modules: [to_k, to_v, to_q, ff.net.0.proj]
dropout: 0.05
bias: none
steps: 2000
lr_scheduler: cosine_with_warmup
lr_warmup_steps: 100
"""

# KILN_SETTINGS: {"optimizer": {"weight_decay": 0.01}}; "sample_tools" is not a theme but a SampleTools
Settings = dict[str, Any]


def widget(name: str, field: dataclasses.Field[Any], optional: bool = False) -> io.Input:
    """The widget of one setting."""
    info, default = field.metadata, field.default
    common: dict[str, Any] = {"default": default, "tooltip": info["doc"], "optional": optional}
    if info["options"] is not None:
        return io.Combo.Input(name, options=list(info["options"]), **common)
    if isinstance(default, bool):
        return io.Boolean.Input(name, **common)
    if isinstance(default, str):
        return io.String.Input(name, multiline=info["multiline"], **common)
    kind = io.Int if isinstance(default, int) else io.Float
    options = {"min": info["minimum"], "max": info["maximum"], "step": info["step"]}
    return kind.Input(name, **common, **{k: v for k, v in options.items() if v is not None})


class SettingsNode(io.ComfyNode):
    """Base of the settings nodes: one theme each, chained through `settings`."""

    THEME: str
    TITLE: str
    CONFIG: type
    ON_TRAINER: tuple[str, ...] = ()  # settings that are widgets of the training node itself
    LATER: tuple[str, ...] = ()  # settings that saved workflows may lack: optional, and after the others

    @classmethod
    def settings_schema(cls, node_id: str) -> io.Schema:
        """The schema of one theme. Each node names its id itself, so that it stands in the source as a literal, where
        the node registry looks for it."""
        fields = config.field_info(cls.CONFIG)
        first = [name for name in fields if name not in (*cls.ON_TRAINER, *cls.LATER)]
        return io.Schema(
            node_id=node_id,
            display_name=f"{cls.TITLE} (LoRA Kiln)",
            **listed(node_id),
            description=f"{cls.CONFIG.__doc__}",
            inputs=[
                *(widget(name, fields[name], name in cls.LATER) for name in [*first, *cls.LATER]),
                types.Settings.Input(
                    "settings", optional=True, tooltip="Settings of other themes, to chain nodes."
                ),
            ],
            outputs=[
                types.Settings.Output(
                    display_name="settings", tooltip="For the training node's settings input."
                )
            ],
        )

    @classmethod
    def execute(cls, settings: Settings | None = None, **values: Any) -> io.NodeOutput:
        cls.CONFIG(**values)  # rejects what is out of range here, on the node that caused it
        return io.NodeOutput({**(settings or {}), cls.THEME: values})


class KilnAdapterSettings(SettingsNode):
    THEME, TITLE, CONFIG, ON_TRAINER = "adapter", "Adapter Settings", config.AdapterConfig, ("rank", "alpha")
    LATER = (
        *("exclude_modules", "kind", "rank_stabilised", "init", "rank_pattern", "rank_dropout"),
        *("max_weight_norm", "conv_rank", "conv_alpha"),
    )

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.settings_schema(node_id="KilnAdapterSettings")


class KilnOptimizerSettings(SettingsNode):
    THEME, TITLE, CONFIG, ON_TRAINER = (
        "optimizer",
        "Optimizer Settings",
        config.OptimizerConfig,
        ("learning_rate", "text_encoder_learning_rate"),
    )
    LATER = (
        *("warmup_steps", "warmup_start", "schedule_cycles", "schedule_power"),
        *("optimizer", "lora_plus_ratio", "ema_decay", "update_in_backward"),
    )

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.settings_schema(node_id="KilnOptimizerSettings")


class KilnObjectiveSettings(SettingsNode):
    THEME, TITLE, CONFIG = "objective", "Objective Settings", config.ObjectiveConfig
    LATER = (
        *("logit_mean", "logit_std", "mode_scale", "loss", "huber_delta", "weighting", "min_snr_gamma"),
        *("noise_offset", "regularisation_weight", "guidance", "size_conditioning", "preservation_weight"),
    )

    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = cls.settings_schema(node_id="KilnObjectiveSettings")
        preset = io.Combo.Input(
            "preset",
            options=["custom", *config.RANGES],
            default="custom",
            optional=True,
            tooltip="For the two experts of Wan 2.2 14B: choosing one fills min_timestep and max_timestep; what they "
            "show is what trains.",
        )
        schema.inputs.append(preset)
        schema.inputs.sort(key=lambda each: each.id == "preservation_weight")  # it is younger than preset
        return schema

    @classmethod
    def execute(
        cls, settings: Settings | None = None, preset: str = "custom", **values: Any
    ) -> io.NodeOutput:
        return super().execute(settings, **values)


class KilnValidationSettings(SettingsNode):
    THEME, TITLE, CONFIG = "validation", "Validation Settings", config.ValidationConfig

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.settings_schema(node_id="KilnValidationSettings")


class KilnGuardSettings(SettingsNode):
    THEME, TITLE, CONFIG = "guards", "Guard Settings", config.GuardConfig

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.settings_schema(node_id="KilnGuardSettings")


class KilnMemorySettings(SettingsNode):
    THEME, TITLE, CONFIG = "memory", "Memory Settings", config.MemoryConfig
    LATER = ("recompute_parts",)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.settings_schema(node_id="KilnMemorySettings")


class KilnImportSettings(io.ComfyNode):
    """Settings from another trainer's text."""

    LATER = ("epochs", "seed", "checkpoint_every", "keep_checkpoints", "text_encoder_learning_rate")
    """Outputs behind the report, which workflows link to by its place."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnImportSettings",
            display_name="Import Settings (LoRA Kiln)",
            **listed("KilnImportSettings"),
            description="Reads settings as tuning guides and other trainers write them: kohya, musubi-tuner, "
            "ai-toolkit, OneTrainer, diffusion-pipe. Says of every key what became of it. Connect the number outputs "
            "to the training node's widgets.",
            inputs=[
                io.String.Input(
                    "yaml",
                    default=GUIDE_YAML,
                    multiline=True,
                    tooltip="YAML, TOML, JSON, or the options of a command line: the text of the other trainer's file "
                    "as it is. Sections are looked through.",
                ),
                types.Settings.Input(
                    "settings", optional=True, tooltip="Settings of other themes, to chain nodes."
                ),
            ],
            outputs=[
                types.Settings.Output(
                    display_name="settings", tooltip="For the training node's settings input."
                ),
                io.Int.Output(display_name="steps", tooltip="For the training node's steps."),
                io.Float.Output(
                    display_name="learning_rate", tooltip="For the training node's learning_rate."
                ),
                io.Int.Output(display_name="rank", tooltip="For the training node's rank."),
                io.Float.Output(display_name="alpha", tooltip="For the training node's alpha."),
                io.Int.Output(display_name="batch_size", tooltip="For the training node's batch_size."),
                io.String.Output(
                    display_name="prompt_template",
                    tooltip="For the template of Caption Template; empty without one.",
                ),
                io.String.Output(display_name="report", tooltip="What became of every key, one a line."),
                io.Int.Output(
                    display_name="epochs",
                    tooltip="For the training node's epochs; 0 where the text counts in steps.",
                ),
                io.Int.Output(display_name="seed", tooltip="For the training node's seed."),
                io.Int.Output(
                    display_name="checkpoint_every", tooltip="For the training node's checkpoint_every."
                ),
                io.Int.Output(
                    display_name="keep_checkpoints", tooltip="For the training node's keep_checkpoints."
                ),
                io.Float.Output(
                    display_name="text_encoder_learning_rate",
                    tooltip="For the training node's text_encoder_learning_rate; it counts where a CLIP is connected.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, yaml: str, settings: Settings | None = None) -> io.NodeOutput:
        found = import_settings(yaml)
        values = widget_values(found)
        report = "\n".join(found.report)
        return io.NodeOutput(
            {**(settings or {}), **as_settings(found)},
            *(values[n] for n in ("steps", "learning_rate", "rank", "alpha", "batch_size")),
            found.prompt_template,
            report,
            *(values[n] for n in cls.LATER),
            ui={"text": (report,)},
        )
