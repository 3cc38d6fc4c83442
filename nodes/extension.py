"""The list of our nodes for the host."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import captions, dataset, lora, settings, training
from .routes import add_routes


class LoraKilnExtension(ComfyExtension):
    """What the host loads."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        add_routes()  # here and not in on_load, which host 0.3.75 never calls
        return [
            dataset.KilnLoadDataset,
            captions.KilnCaptionTemplate,
            dataset.KilnEncodeDataset,
            training.KilnTrainLora,
            settings.KilnAdapterSettings,
            settings.KilnOptimizerSettings,
            settings.KilnObjectiveSettings,
            lora.KilnApplyLora,
            lora.KilnLoadLora,
            lora.KilnSaveLora,
            training.KilnLossPlot,
        ]
