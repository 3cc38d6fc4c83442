"""The settings node of the samples that a run draws."""

from __future__ import annotations

import dataclasses
from typing import Any

from comfy_api.latest import io

from ..trainer import config
from .host.running.sampling import SAMPLERS, SCHEDULERS, sample_tools
from .settings import Settings, SettingsNode

_FIELDS = config.field_info(config.SampleConfig)


class KilnSampleSettings(SettingsNode):
    """Plain settings go into the run's config; what cannot be written down goes beside them."""

    THEME, TITLE, CONFIG = "sample", "Sample Settings", config.SampleConfig

    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = cls.settings_schema(node_id="KilnSampleSettings")
        for name, options in (("sampler_name", SAMPLERS), ("scheduler", SCHEDULERS)):
            index = next(i for i, each in enumerate(schema.inputs) if each.id == name)
            doc = _FIELDS[name].metadata["doc"]
            schema.inputs[index] = io.Combo.Input(
                name, options=options, default=_FIELDS[name].default, tooltip=doc
            )
        schema.inputs[:0] = [
            io.Clip.Input("clip", tooltip="Encodes the prompts; the same text encoder as for the dataset."),
            io.Vae.Input("vae", tooltip="Decodes the samples; the same as for the dataset."),
        ]
        other = io.Model.Input(
            "other_expert",
            optional=True,
            tooltip="For Wan 2.2: the expert that is not trained here, with or without its LoRA. Each draws the steps "
            "of its own noise levels; both take their turns on the device.",
        )
        schema.inputs.append(other)
        return schema

    @classmethod
    def execute(
        cls,
        settings: Settings | None = None,
        *,
        clip: Any = None,
        vae: Any = None,
        other_expert: Any = None,
        **values: Any,
    ) -> io.NodeOutput:
        chosen = config.SampleConfig(**values)
        tools = sample_tools(clip, vae, chosen, other_expert)
        plain = dataclasses.asdict(chosen)
        return io.NodeOutput({**(settings or {}), cls.THEME: plain, "sample_tools": tools})
