"""Nodes that make LoRAs out of LoRAs and models, and models out of both."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.lora_files.lora_weights import LoraWeights
from ..trainer.lora_files.merge import METHODS, merge_loras
from ..trainer.lora_files.resize import resize
from ..trainer.model_files.extract_lora import extract_lora
from ..trainer.model_files.merge_into_file import BASE_DTYPES, LAYOUTS, WeightedLora, merge_into_file
from . import types
from .host.canvas.progress import NodeProgress, progress_callback
from .host.metadata import metadata_is_written
from .host.models import model_files
from .host.models.lora import apply_lora, in_our_keys
from .host.paths import new_output_path
from .inputs import rank_input, seed_input, strength_input
from .listing import listed

SLOTS = (("lora_1", "weight_1"), ("lora_2", "weight_2"), ("lora_3", "weight_3"), ("lora_4", "weight_4"))


def _slot(names: tuple[str, str], default: float, *, optional: bool) -> list[io.Input]:
    """One LoRA and its weight."""
    return [
        types.LoraModel.Input(names[0], optional=optional, tooltip="From the training node or a loader."),
        strength_input(
            names[1],
            default,
            "Weight of the LoRA of this number: 1 as trained, negative takes away.",
            optional,
        ),
    ]


def _slots(first: int, last: int, default: float, *, optional: bool) -> list[io.Input]:
    return [each for names in SLOTS[first:last] for each in _slot(names, default, optional=optional)]


def _collect(values: dict[str, Any]) -> tuple[list[LoraWeights], list[float]]:
    used = [names for names in SLOTS if values.get(names[0]) is not None]
    return [in_our_keys(values[lora]) for lora, _ in used], [values.get(weight, 1.0) for _, weight in used]


def _energy() -> io.Input:
    return io.Float.Input(
        "energy",
        default=0.0,
        min=0.0,
        max=1.0,
        step=0.01,
        optional=True,
        tooltip="Share of each layer's energy to keep, by as small a rank as does it; rank is then the most. 0 is off, "
        "0.9-0.99 is usual.",
    )


class KilnMergeLoras(io.ComfyNode):
    """Several LoRAs into one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnMergeLoras",
            display_name="Merge LoRAs (LoRA Kiln)",
            **listed("KilnMergeLoras"),
            description="Makes one LoRA out of several. Ranks, alphas and layers may differ.",
            inputs=[
                *_slots(0, 2, 1.0, optional=False),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="exact",
                    tooltip="exact: the weighted sum, ranks add up. svd: the same at the rank below. ties, "
                    "dare_linear, "
                    "dare_ties, magnitude_prune: keep the density below and settle conflicts. task_arithmetic: "
                    "plain sum.",
                ),
                rank_input(
                    0,
                    "Rank of the result, for every method but exact; 0 takes the sum of the ranks.",
                    minimum=0,
                ),
                io.Float.Input(
                    "density",
                    default=0.5,
                    min=0.01,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the values that ties, dare and magnitude_prune keep; 0.2-0.8 is usual.",
                ),
                seed_input("Chooses which values dare drops; the same seed gives the same LoRA."),
                *_slots(2, 4, 1.0, optional=True),
            ],
            outputs=[
                types.LoraModel.Output(display_name="lora", tooltip="The merged LoRA: apply or save it.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, method: str, rank: int, density: float, seed: int, **values: Any) -> io.NodeOutput:
        node = cls.hidden.unique_id
        loras, weights = _collect(values)
        merged, sentence = merge_loras(
            loras,
            weights,
            method,
            rank=rank,
            density=density,
            seed=seed,
            device=model_files.device(),
            tick=progress_callback(node),
        )
        NodeProgress(node).say(sentence)
        return io.NodeOutput(merged, ui={"text": (sentence,)})


class KilnMergeIntoModel(io.ComfyNode):
    """A LoRA into the MODEL of the graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnMergeIntoModel",
            display_name="Merge Into Model (LoRA Kiln)",
            **listed("KilnMergeIntoModel"),
            description="Adds a LoRA to the model's weights: sampling costs nothing extra, and ComfyUI's Save "
            "Model writes "
            "the merged weights. The input stays as it is.",
            inputs=[
                io.Model.Input("model", tooltip="The model to merge into; the input itself stays as it is."),
                types.LoraModel.Input("lora", tooltip="From the training node or a loader."),
                strength_input(
                    "strength", 0.85, "Weight of the LoRA: 1 as trained; 0.85 is usual when merging."
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the LoRA in its weights.")
            ],
        )

    @classmethod
    def execute(cls, model: Any, lora: LoraWeights, strength: float) -> io.NodeOutput:
        return io.NodeOutput(apply_lora(model, None, lora, strength)[0])


class KilnSaveMergedModel(io.ComfyNode):
    """LoRAs into a model file, without loading the model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnSaveMergedModel",
            display_name="Save Merged Model (LoRA Kiln)",
            **listed("KilnSaveMergedModel"),
            description="Writes a copy of a model file with LoRAs in it under ComfyUI/output/diffusion_models. "
            "The file is "
            "read and written tensor by tensor, so even 28 GB need little memory.",
            inputs=[
                io.Combo.Input(
                    "base_name",
                    options=model_files.model_names(),
                    tooltip="A model file in the host's diffusion_models folders.",
                ),
                *_slots(0, 1, 0.85, optional=False),
                io.String.Input(
                    "filename_prefix",
                    default="kiln/merged",
                    tooltip="Name under ComfyUI/output/diffusion_models; a number is added, nothing is overwritten.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(BASE_DTYPES),
                    default="base",
                    tooltip="Precision of the file; base is that of the base file, fp8 and scaled fp8 among them.",
                ),
                io.Combo.Input(
                    "layout",
                    options=list(LAYOUTS),
                    default=LAYOUTS[0],
                    tooltip="comfyui: one file. diffusers: a folder for WanPipeline.from_pretrained, for Wan only.",
                ),
                *_slots(1, 4, 0.85, optional=True),
                io.Combo.Input(
                    "pipeline",
                    options=model_files.pipeline_names(),
                    default="none",
                    optional=True,
                    tooltip="For the layout diffusers: a pipeline folder (with model_index.json) in the host's "
                    "diffusers or diffusion_models folders, whose vae, text encoder and tokenizer complete the new "
                    "one; linked where the disk allows it.",
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="The full path of the file or folder.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, base_name: str, **_: Any) -> Any:
        status = model_files.model_path(base_name).stat()
        return status.st_size, status.st_mtime_ns

    @classmethod
    def execute(
        cls,
        base_name: str,
        filename_prefix: str,
        dtype: str,
        layout: str,
        pipeline: str = "none",
        **values: Any,
    ) -> io.NodeOutput:
        node, path = cls.hidden.unique_id, new_output_path(model_files.KIND, filename_prefix)
        path = path.with_suffix("") if layout == "diffusers" else path
        loras = [
            WeightedLora(lora, weight, f"LoRA {i}")
            for i, (lora, weight) in enumerate(zip(*_collect(values), strict=True), 1)
        ]
        base, tick = model_files.model_path(base_name), progress_callback(node)
        whole = model_files.pipeline_path(pipeline) if layout == "diffusers" else None
        sentence = merge_into_file(
            base,
            path,
            loras,
            dtype=dtype,
            layout=layout,
            pipeline=whole,
            keep_metadata=metadata_is_written(),
            tick=tick,
        )
        text = f"{path.name}: {sentence}"
        NodeProgress(node).say(text)
        return io.NodeOutput(str(path), ui={"text": (text,), "path": (str(path),)})


class KilnResizeLora(io.ComfyNode):
    """A LoRA of another rank."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnResizeLora",
            display_name="Resize LoRA (LoRA Kiln)",
            **listed("KilnResizeLora"),
            description="Brings a LoRA to a smaller rank, losing as little as possible.",
            inputs=[
                types.LoraModel.Input("lora", tooltip="From the training node or a loader."),
                rank_input(32, "The new rank, 1-4096. A layer of a smaller rank keeps its own."),
                _energy(),
            ],
            outputs=[types.LoraModel.Output(display_name="lora", tooltip="The smaller LoRA.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, lora: LoraWeights, rank: int, energy: float = 0.0) -> io.NodeOutput:
        smaller, sentence = resize(in_our_keys(lora), rank, energy or None, model_files.device())
        NodeProgress(cls.hidden.unique_id).say(sentence)
        return io.NodeOutput(smaller, ui={"text": (sentence,)})


class KilnExtractLora(io.ComfyNode):
    """The difference of two model files as a LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnExtractLora",
            display_name="Extract LoRA (LoRA Kiln)",
            **listed("KilnExtractLora"),
            description="Makes a LoRA out of the difference between a fine-tuned model file and its base, read "
            "tensor by tensor.",
            inputs=[
                io.Combo.Input(
                    "tuned_name", options=model_files.model_names(), tooltip="The fine-tuned model's file."
                ),
                io.Combo.Input(
                    "base_name",
                    options=model_files.model_names(),
                    tooltip="The file of the model it was tuned from.",
                ),
                rank_input(64, "Rank of the LoRA, 1-4096; 64 is usual, more keeps more of the difference."),
                _energy(),
            ],
            outputs=[types.LoraModel.Output(display_name="lora", tooltip="The LoRA: apply or save it.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, tuned_name: str, base_name: str, **_: Any) -> Any:
        found = [model_files.model_path(name).stat() for name in (tuned_name, base_name)]
        return [(status.st_size, status.st_mtime_ns) for status in found]

    @classmethod
    def execute(cls, tuned_name: str, base_name: str, rank: int, energy: float = 0.0) -> io.NodeOutput:
        node = cls.hidden.unique_id
        tuned, base = model_files.model_path(tuned_name), model_files.model_path(base_name)
        lora, sentence = extract_lora(
            tuned,
            base,
            rank,
            energy=energy or None,
            device=model_files.device(),
            tick=progress_callback(node),
        )
        NodeProgress(node).say(sentence)
        return io.NodeOutput(lora, ui={"text": (sentence,)})
