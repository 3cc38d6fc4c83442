"""A text encoder that is trained beside the model: its captions are encoded in every step, with gradients.

The encoded captions of the dataset still say which items can be one batch, since no LoRA changes their shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..adapter.frozen_weights import FrozenWeights
from ..adapter.protocol import TEXT_ENCODER
from ..conditioning import tensors_in
from ..config import AdapterConfig, ObjectiveConfig, TrainConfig
from ..dataset.batches import ItemStore, LoadedItem, SampleDraw
from ..dataset.encoded import EncodedDataset
from ..denoiser import Conditioning, Denoiser, TextEncoder
from ..errors import KilnError
from .checks import layers_of
from .prefetch import conditioning_batches


@dataclass(frozen=True)
class TrainedText:
    """What of a run belongs to the text encoder."""

    encoder: TextEncoder
    adapter: AdapterConfig
    weights: FrozenWeights

    def conditioning(
        self, denoiser: Denoiser, items: Sequence[LoadedItem], latents: Tensor, config: ObjectiveConfig
    ) -> Conditioning:
        """What forward takes for items that are one batch, their captions encoded now; with gradients where they are
        recorded.

        latents: (B, C, [F,] h, w) on the device, for their shape.

        Raises:
            KilnError: they are no batch any more.
        """
        encoded = {words: self.encoder.encode(words) for words in {item.words or "" for item in items}}
        anew = [
            replace(item, conditioning={**item.conditioning, **encoded[item.words or ""]}) for item in items
        ]
        batches = conditioning_batches(denoiser, anew, latents, config)
        if len(batches) != 1:
            raise KilnError(
                "The CLIP on Train LoRA cuts captions into other lengths than the one on Encode Dataset; connect the "
                "same one to both."
            )
        return batches[0].conditioning


def trained_text(
    encoder: TextEncoder | None,
    dataset: EncodedDataset,
    config: TrainConfig,
    weights: FrozenWeights,
    resume_from: Path | None,
) -> TrainedText | None:
    """None without a text encoder. On a resumed run the layers are those of its checkpoint.

    Raises:
        KilnError: the dataset has no captions that it could encode, or was encoded by another one.
    """
    if encoder is None:
        return None
    _check_asks_nothing_of_the_frozen_one(dataset, config)
    without = sum(not item.words for item in dataset.items)
    if without:
        raise KilnError(
            f"A CLIP is connected to Train LoRA, and {without} of {len(dataset.items)} items have no caption that it "
            "could encode anew; encode them with Encode Dataset, without control pictures in the text, or disconnect "
            "the CLIP."
        )
    if dataset.text_encoder and dataset.text_encoder != encoder.fingerprint:
        raise KilnError(
            "The CLIP on Train LoRA is not the one that the captions were encoded with; connect the same one to Train "
            "LoRA and to Encode Dataset."
        )
    # Their names are the model's; a text encoder has no convolutions
    adapter = replace(config.adapter, target_modules="", exclude_modules="", conv_rank=0)
    return TrainedText(encoder, layers_of(adapter, resume_from, TEXT_ENCODER), weights)


def _check_asks_nothing_of_the_frozen_one(dataset: EncodedDataset, config: TrainConfig) -> None:
    """Targets that are predictions of the frozen model are made with the captions that were encoded ahead."""
    if dataset.slider:
        raise KilnError(
            "A CLIP is connected to Train LoRA, and a slider is trained on the model alone; disconnect the CLIP."
        )
    if config.objective.preservation_weight and any(item.class_texts for item in dataset.items):
        raise KilnError(
            "A CLIP is connected to Train LoRA, and class_word keeps the model alone what it was; disconnect the CLIP, "
            "or set preservation_weight to 0."
        )


def check_text_gradient(
    text: TrainedText, denoiser: Denoiser, dataset: EncodedDataset, config: ObjectiveConfig
) -> None:
    """Encode one caption as a step does. Inside the session, the adapter in place.

    Raises:
        KilnError: the loss would not reach the text encoder.
    """
    batch = ItemStore(dataset.items[:1]).load([SampleDraw(0, 0, 0)])
    latents = batch.latents.to(denoiser.device)
    try:
        conditioning = text.conditioning(denoiser, batch.items, latents, config)
        why = "" if any(t.requires_grad for t in tensors_in(conditioning)) else "no gradient reaches it"
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # of an operation without a backward
        why = (str(error) or type(error).__name__).splitlines()[0]
    if why:
        raise KilnError(
            f"The text encoder of this model cannot be trained ({why}); disconnect the CLIP from Train LoRA."
        )
