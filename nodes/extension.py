"""The list of our nodes for the host."""

from __future__ import annotations

import torch
from comfy_api.latest import ComfyExtension, io

from ..trainer.errors import KilnError
from . import (
    captioning,
    captions,
    compare,
    dataset,
    encoding,
    history,
    lora,
    merge,
    prompt,
    quality,
    sampling,
    settings,
    slider,
    training,
)
from .dataset_routes import add_dataset_routes
from .history_routes import add_history_routes
from .host.canvas.whole_prompt import refuse_whole_prompts
from .host.running.background import save_on_exit
from .host.running.unfinished import remove_unfinished
from .mask_routes import add_mask_routes
from .routes import add_last_route, add_routes
from .upload_routes import add_upload_routes


class LoraKilnExtension(ComfyExtension):
    """What the host loads."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        if not hasattr(torch, "accelerator"):
            raise KilnError(
                f"LoRA Kiln needs PyTorch 2.6 or newer, and this is {torch.__version__}; update ComfyUI's PyTorch."
            )
        save_on_exit()
        remove_unfinished()
        add_routes()  # here and not in on_load, which host 0.3.75 never calls
        add_history_routes()
        add_dataset_routes()
        add_upload_routes()
        add_mask_routes()
        add_last_route()
        refuse_whole_prompts()
        return [
            dataset.KilnLoadDataset,
            dataset.KilnImagesToDataset,
            dataset.KilnCombineDatasets,
            captioning.KilnCaptionDataset,
            captions.KilnCaptionTemplate,
            captions.KilnCaptionAugment,
            quality.KilnAugmentDataset,
            quality.KilnDatasetReport,
            encoding.KilnEncodeDataset,
            encoding.KilnEncodedFromLatents,
            slider.KilnSliderTargets,
            training.KilnTrainLora,
            settings.KilnAdapterSettings,
            settings.KilnOptimizerSettings,
            settings.KilnObjectiveSettings,
            settings.KilnValidationSettings,
            settings.KilnGuardSettings,
            sampling.KilnSampleSettings,
            settings.KilnMemorySettings,
            settings.KilnImportSettings,
            lora.KilnApplyLora,
            lora.KilnLoadLora,
            lora.KilnSaveLora,
            prompt.KilnPromptLora,
            compare.KilnWeightSweep,
            compare.KilnComparisonGrid,
            merge.KilnMergeLoras,
            merge.KilnMergeIntoModel,
            merge.KilnSaveMergedModel,
            merge.KilnResizeLora,
            merge.KilnExtractLora,
            training.KilnLossPlot,
            history.KilnRunHistory,
        ]
