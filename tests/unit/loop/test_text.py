"""A text encoder trained beside the model, in the engine alone: one state, one optimizer, two learning rates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.adapter.protocol import TEXT_ENCODER
from trainer.conditioning import ItemConditioning
from trainer.config import TrainConfig, ValidationConfig
from trainer.dataset.encoded import EncodedDataset, write_conditioning
from trainer.denoiser import TextEncoder
from trainer.errors import KilnError
from trainer.events import Controls, Event, StepEvent
from trainer.loop.progress import TrainResult
from trainer.loop.train import train
from trainer.lora_files.export import export_adapter
from trainer.memory.shared_clone import SharedClone

from ..toy import TEXT, ToyDenoiser, hold_out, make_config, make_encoded

WORDS = ("a zorb", "two squares", "zorb", "a square")


class Network(nn.Module):
    """Letters to rows, through a list of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"fc": nn.Linear(TEXT, TEXT)}) for _ in range(2))

    def forward(self, rows: Tensor) -> Tensor:
        for layer in self.layers:
            rows = rows + torch.tanh(layer["fc"](rows))
        return rows


class ToyText(TextEncoder):
    fingerprint = "toy-text"

    def __init__(self, detached: bool = False) -> None:
        torch.manual_seed(13)
        with torch.inference_mode():
            self.clone = SharedClone(Network())
        self.detached = detached
        self.encoded: list[str] = []

    @property
    def module(self) -> nn.Module:
        return self.clone.module

    @contextmanager
    def session(self) -> Iterator[None]:
        with self.clone.weights():
            yield

    def encode(self, caption: str) -> ItemConditioning:
        self.encoded.append(caption)
        rows = torch.zeros(1, 3, TEXT)
        for place, word in enumerate(caption.split()[:3]):
            rows[0, place, len(word) % TEXT] = 1.0
        output = self.module(rows)
        return {"cross_attn": output.detach() if self.detached else output}


def dataset_of(folder: Path) -> EncodedDataset:
    """Every caption in two forms, and sometimes none."""
    made = make_encoded(folder)
    other, empty = folder / "other.safetensors", folder / "empty.safetensors"
    for path in (other, empty):
        write_conditioning(path, {"cross_attn": torch.zeros(1, 3, TEXT)})
    items = [
        dataclasses.replace(
            item, words=(w, w[::-1]), more_texts=(other,), empty_text=empty, caption_dropout=0.2
        )
        for item, w in zip(made.items, WORDS, strict=True)
    ]
    return hold_out(EncodedDataset(tuple(items)), 1)


def config_of(**optimizer: Any) -> TrainConfig:
    made = make_config(steps=8, dropout=0.2, ema_decay=0.9, gradient_accumulation=2, **optimizer)
    return dataclasses.replace(made, checkpoint_every=3, validation=ValidationConfig(every=4))


def run(
    folder: Path, dataset: EncodedDataset, config: TrainConfig, text: ToyText | None = None, **options: Any
) -> TrainResult:
    text = text or ToyText()
    return train(ToyDenoiser(), dataset, config, run_folder=folder, text_encoder=text, **options)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_it_learns_resumes_to_the_bit_and_is_exported_with_its_own_names(tmp_path: Path) -> None:
    dataset, config = dataset_of(tmp_path), config_of()
    whole = run(tmp_path / "whole", dataset, config)
    controls = Controls()

    def stop(event: Event) -> None:
        if isinstance(event, StepEvent) and event.step == 5:
            controls.stop()

    run(tmp_path / "cut", dataset, config, controls=controls, emit=stop)
    resumed = run(tmp_path / "cut", dataset, config, resume_from=tmp_path / "cut" / "step-00000005")
    assert same(whole.adapter, resumed.adapter) and whole.losses == resumed.losses
    assert [p.loss for p in whole.validation] == [p.loss for p in resumed.validation]

    own = [k for k in whole.adapter if k.startswith(TEXT_ENCODER)]
    assert len(own) == 4 and all(bool(whole.adapter[k].any()) for k in own)
    names = {k.rpartition(".lora_")[0] for k in export_adapter(whole.adapter, config.adapter)}
    assert {"text_encoders.layers.0.fc", "diffusion_model.blocks.0.q"} <= names


def test_every_form_of_a_caption_is_encoded_in_the_step(tmp_path: Path) -> None:
    text, dataset = ToyText(), dataset_of(tmp_path)
    run(tmp_path / "run", dataset, dataclasses.replace(config_of(), steps=30), text)
    trained = {w for item in dataset.items[:3] for w in item.words}
    assert set(text.encoded) == {
        *trained,
        "",
        dataset.items[3].words[0],
    }  # of validation items the first form alone


@pytest.mark.parametrize("still", ["model", "text encoder"])
def test_each_has_its_own_learning_rate(tmp_path: Path, still: str) -> None:
    rates = {"learning_rate": 0.0} if still == "model" else {"text_encoder_learning_rate": 0.0}
    config = make_config(steps=3, weight_decay=0.0, text_encoder_learning_rate=0.01, warmup_ratio=0.0)
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, **rates))
    found = run(tmp_path, dataset_of(tmp_path), config).adapter
    moved = {
        k.startswith(TEXT_ENCODER) for k, t in found.items() if k.endswith("lora_B.weight") and bool(t.any())
    }
    assert moved == {still == "model"}


def test_without_one_nothing_is_encoded_in_the_step(tmp_path: Path) -> None:
    """The same run as ever, with words in the dataset and without."""
    dataset, config = dataset_of(tmp_path), make_config(steps=3)
    plain = train(ToyDenoiser(), dataset, config, run_folder=tmp_path / "a")
    items = tuple(dataclasses.replace(i, words=()) for i in dataset.items)
    wordless = train(ToyDenoiser(), EncodedDataset(items), config, run_folder=tmp_path / "b")
    assert same(plain.adapter, wordless.adapter) and plain.losses == wordless.losses
    assert not any(k.startswith(TEXT_ENCODER) for k in plain.adapter)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    dataset, config = dataset_of(tmp_path), config_of()
    cases: list[tuple[EncodedDataset, ToyText, str]] = [
        (dataset, ToyText(detached=True), "cannot be trained .no gradient reaches it"),
        (dataclasses.replace(dataset, slider="age"), ToyText(), "a slider is trained on the model alone"),
        (dataclasses.replace(dataset, text_encoder="other"), ToyText(), "is not the one that the captions"),
        (
            EncodedDataset(tuple(dataclasses.replace(i, class_texts=i.texts) for i in dataset.items)),
            ToyText(),
            "class_word keeps the model alone",
        ),
    ]
    for number, (data, text, said) in enumerate(cases):
        with pytest.raises(KilnError, match=said):
            run(tmp_path / str(number), data, config, text)
