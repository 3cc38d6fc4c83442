"""The list of our nodes for the host."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import captions, dataset, history, lora, settings, training


class LoraKilnExtension(ComfyExtension):
    """What the host loads."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            dataset.KilnLoadDataset,
            captions.KilnCaptionTemplate,
            dataset.KilnEncodeDataset,
            training.KilnTrainLora,
            settings.KilnAdapterSettings,
            settings.KilnOptimizerSettings,
            settings.KilnObjectiveSettings,
            settings.KilnValidationSettings,
            settings.KilnGuardSettings,
            settings.KilnImportSettings,
            lora.KilnApplyLora,
            lora.KilnLoadLora,
            lora.KilnSaveLora,
            training.KilnLossPlot,
            history.KilnRunHistory,
        ]
