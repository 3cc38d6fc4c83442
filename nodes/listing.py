"""Where each node stands in the host's menu, and the words by which its search finds it."""

from __future__ import annotations

from typing import Any

from .host.canvas.node_search import search_words

ROOT = "LoRA Kiln"

MENU: dict[str, dict[str, tuple[str, ...]]] = {
    "data": {
        "KilnLoadDataset": ("lora dataset", "training images", "load folder", "load images", "load clips"),
        "KilnImagesToDataset": ("lora dataset", "images to dataset", "training images", "batch to dataset"),
        "KilnCombineDatasets": ("mix datasets", "merge datasets", "regularisation images", "dreambooth"),
        "KilnCaptionDataset": (
            "caption",
            "captioner",
            "auto caption",
            "tagger",
            "describe images",
            "vlm",
            "qwen",
            "gemma",
            "joycaption",
            "wd14",
        ),
        "KilnCaptionTemplate": ("caption", "trigger word", "tag", "prompt template", "label images"),
        "KilnCaptionAugment": ("caption dropout", "shuffle tags", "caption", "tag dropout"),
        "KilnAugmentDataset": ("augmentation", "flip", "crop", "colour jitter", "color jitter"),
        "KilnDatasetReport": ("check dataset", "dataset statistics", "contact sheet", "buckets"),
        "KilnEncodeDataset": ("cache latents", "buckets", "encode images", "precompute", "lora dataset"),
        "KilnSliderTargets": ("concept slider", "slider lora", "lora slider", "erase concept"),
        "KilnEncodedFromLatents": ("latents to dataset", "conditioning to dataset", "cache latents"),
    },
    "train": {
        "KilnTrainLora": (
            "lora",
            "train",
            "train lora",
            "training",
            "finetune",
            "fine-tune",
            "fine tuning",
            "dreambooth",
            "peft",
            "kohya",
            "musubi",
            "ai-toolkit",
        ),
        "KilnLossPlot": ("loss graph", "loss curve", "plot loss", "training loss"),
        "KilnRunHistory": ("past runs", "training runs", "resume", "experiment", "checkpoints"),
    },
    "settings": {
        "KilnAdapterSettings": ("rank", "alpha", "dora", "loha", "lokr", "lycoris", "oft", "target modules"),
        "KilnOptimizerSettings": ("learning rate", "scheduler", "adamw", "lion", "prodigy", "warmup", "ema"),
        "KilnObjectiveSettings": ("timestep", "shift", "noise", "loss", "huber", "min snr", "guidance"),
        "KilnValidationSettings": ("validation loss", "overfitting", "early stopping", "best checkpoint"),
        "KilnGuardSettings": ("nan", "divergence", "gradient clipping", "skip step"),
        "KilnSampleSettings": ("sample images", "preview", "sample prompts", "training samples"),
        "KilnMemorySettings": (
            "vram",
            "low vram",
            "block swap",
            "gradient checkpointing",
            "offload",
            "fp8",
            "nf4",
            "qlora",
        ),
        "KilnImportSettings": (
            "yaml",
            "toml",
            "json",
            "kohya config",
            "ai-toolkit config",
            "training config",
        ),
    },
    "use": {
        "KilnApplyLora": ("apply lora", "lora strength", "use lora", "block weights"),
        "KilnLoadLora": ("load lora", "lora loader", "power lora"),
        "KilnSaveLora": ("save lora", "export lora", "convert lora", "safetensors"),
        "KilnPromptLora": ("lora tag", "lora prompt", "a1111 lora"),
        "KilnWeightSweep": ("xy plot", "lora strength sweep", "compare strengths", "compare loras"),
        "KilnComparisonGrid": ("grid", "xy plot", "image grid", "compare images", "contact sheet"),
    },
    "tools": {
        "KilnMergeLoras": ("merge lora", "combine loras", "ties", "dare", "svd", "lora sum"),
        "KilnResizeLora": ("resize lora", "shrink lora", "lora rank", "svd"),
        "KilnExtractLora": ("extract lora", "model difference", "diff to lora"),
        "KilnMergeIntoModel": ("bake lora", "fuse lora", "merge lora into model"),
        "KilnSaveMergedModel": ("save model", "bake lora", "fuse lora", "merge checkpoint"),
    },
}


def listed(node_id: str) -> dict[str, Any]:
    """A schema's category and, where the host has them, its search aliases."""
    shelf, words = next((s, nodes[node_id]) for s, nodes in MENU.items() if node_id in nodes)
    return {"category": f"{ROOT}/{shelf}", **search_words(words)}
