"""The loop: repeatable, resumable, stoppable, and right in its arithmetic."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainer.adapter.lora import LoraAdapter
from trainer.config import TrainConfig
from trainer.dataset.encoded import EncodedDataset
from trainer.errors import KilnError
from trainer.events import Controls, Event, MessageEvent, StepEvent
from trainer.loop.progress import TrainResult
from trainer.loop.train import train
from trainer.runs.checkpoint_list import find_checkpoints

from ..toy import ToyDenoiser, make_config, make_encoded


def run(folder: Path, encoded: EncodedDataset, config: TrainConfig, **options: object) -> TrainResult:
    return train(ToyDenoiser(), encoded, config, run_folder=folder / "run", **options)  # type: ignore[arg-type]


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_same_seed_same_bits(tmp_path: Path, dropout: float) -> None:
    encoded, config = make_encoded(tmp_path), make_config(dropout=dropout)
    first = run(tmp_path, encoded, config)
    torch.manual_seed(99)  # the global generator has no say
    second = run(tmp_path, encoded, config)
    assert_same(first.adapter, second.adapter)
    assert first.losses == second.losses
    other = run(tmp_path, encoded, make_config(dropout=dropout, seed=2))
    assert other.losses != first.losses


def test_it_learns(tmp_path: Path) -> None:
    result = run(tmp_path, make_encoded(tmp_path), make_config(steps=200, rank=8))
    assert sum(result.losses[-40:]) < 0.8 * sum(result.losses[:40])


@pytest.mark.parametrize("prediction", ["flow", "epsilon", "v"])
def test_every_prediction_trains(tmp_path: Path, prediction: str) -> None:
    denoiser = ToyDenoiser(prediction)  # type: ignore[arg-type]
    result = train(denoiser, make_encoded(tmp_path), make_config(steps=60), run_folder=tmp_path / "run")
    assert sum(result.losses[-20:]) < sum(result.losses[:20])


def test_accumulation_equals_larger_batch(tmp_path: Path) -> None:
    encoded = make_encoded(tmp_path)
    options = {"steps": 5, "schedule": "constant", "warmup_ratio": 0.0}
    large = run(tmp_path, encoded, make_config(batch_size=4, **options))
    small = run(tmp_path, encoded, make_config(batch_size=1, gradient_accumulation=4, **options))
    torch.testing.assert_close(large.losses, small.losses, rtol=1e-6, atol=1e-6)
    for key, value in large.adapter.items():
        torch.testing.assert_close(small.adapter[key], value, rtol=1e-5, atol=1e-6)


def test_uneven_batches_weigh_every_item_alike(tmp_path: Path) -> None:
    """3 items in batches of 2 and 1, accumulated over 2, must equal one batch of 3."""
    encoded = make_encoded(tmp_path, count=3)
    options = {"steps": 3, "warmup_ratio": 0.0}
    together = run(tmp_path, encoded, make_config(batch_size=3, **options))
    apart = run(tmp_path, encoded, make_config(batch_size=2, gradient_accumulation=2, **options))
    torch.testing.assert_close(together.losses, apart.losses, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_resumed_equals_uninterrupted(tmp_path: Path, accumulation: int) -> None:
    encoded = make_encoded(tmp_path, count=5, shapes=((4, 1, 2, 2), (4, 1, 2, 3)))
    config = make_config(steps=9, dropout=0.2, gradient_accumulation=accumulation)
    whole = train(ToyDenoiser(), encoded, config, run_folder=tmp_path / "whole")
    controls = Controls()

    def stop_at_four(event: Event) -> None:
        if isinstance(event, StepEvent) and event.step == 4:
            controls.stop()

    part = train(
        ToyDenoiser(), encoded, config, run_folder=tmp_path / "part", controls=controls, emit=stop_at_four
    )
    assert part.stopped and part.step == 4
    (saved,) = find_checkpoints(tmp_path / "part")
    rest = train(ToyDenoiser(), encoded, config, run_folder=tmp_path / "part", resume_from=saved)
    assert rest.losses == whole.losses
    assert_same(rest.adapter, whole.adapter)


def test_resume_refuses_another_dataset(tmp_path: Path) -> None:
    config = make_config(steps=2)
    train(ToyDenoiser(), make_encoded(tmp_path / "a"), config, run_folder=tmp_path / "run")
    (saved,) = find_checkpoints(tmp_path / "run")
    other = make_encoded(tmp_path / "b", count=3)
    with pytest.raises(KilnError, match="its dataset is not the one connected"):
        train(ToyDenoiser(), other, config, run_folder=tmp_path / "run", resume_from=saved)
    with pytest.raises(KilnError, match="Use the rank and target modules it was made with"):
        train(
            ToyDenoiser(),
            make_encoded(tmp_path / "a"),
            make_config(steps=4, rank=8),
            run_folder=tmp_path / "run",
            resume_from=saved,
        )


def test_latents_of_another_model_are_refused(tmp_path: Path) -> None:
    encoded = make_encoded(tmp_path, shapes=((16, 1, 2, 2),))
    with pytest.raises(KilnError, match="16 channels and this model needs 4"):
        run(tmp_path, encoded, make_config())


def test_model_is_the_same_afterwards(tmp_path: Path) -> None:
    denoiser = ToyDenoiser()
    before = {n: (p, p.requires_grad, p.clone()) for n, p in denoiser.network.named_parameters()}
    modules = {n: type(m) for n, m in denoiser.network.named_modules()}
    train(denoiser, make_encoded(tmp_path), make_config(), run_folder=tmp_path / "run")
    assert {n: type(m) for n, m in denoiser.network.named_modules()} == modules
    for name, parameter in denoiser.network.named_parameters():
        same, grad, value = before[name]
        assert parameter is same and parameter.requires_grad == grad and torch.equal(parameter, value)
    assert not hasattr(denoiser.network, "peft_config")


def test_steps_aside_and_goes_on_unchanged(tmp_path: Path) -> None:
    encoded, config = make_encoded(tmp_path), make_config(steps=40)
    alone = train(ToyDenoiser(), encoded, config, run_folder=tmp_path / "alone")
    denoiser, controls, result = ToyDenoiser(), Controls(), []
    worker = threading.Thread(
        target=lambda: result.append(
            train(denoiser, encoded, config, run_folder=tmp_path / "shared", controls=controls)
        )
    )
    controls.request_device()  # before it starts: it must wait
    worker.start()
    assert not denoiser.module._parameters and denoiser.sessions == 0
    controls.end_device_request()
    for _ in range(5):
        controls.request_device()
        assert not any(True for _ in denoiser.clone.module.text._parameters), "weights are held while aside"
        controls.end_device_request()
    worker.join(60)
    assert denoiser.sessions >= 1
    assert_same(result[0].adapter, alone.adapter)


def test_stop_while_aside(tmp_path: Path) -> None:
    controls, result = Controls(), []
    controls.request_device()
    worker = threading.Thread(
        target=lambda: result.append(
            train(
                ToyDenoiser(),
                make_encoded(tmp_path),
                make_config(),
                run_folder=tmp_path / "run",
                controls=controls,
            )
        )
    )
    worker.start()
    controls.stop()
    worker.join(60)
    assert result[0].stopped and result[0].step == 0 and not find_checkpoints(tmp_path / "run")


def test_full_disk_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    encoded = make_encoded(tmp_path)
    monkeypatch.setattr("trainer.runs.checkpoint.save_file", full)
    seen: list[Event] = []
    result = run(tmp_path, encoded, make_config(steps=3), emit=seen.append)
    assert result.step == 3 and not result.stopped
    assert any("No space left on device" in e.text for e in seen if isinstance(e, MessageEvent))


def test_validation_items_are_never_trained_on_and_weights_count(tmp_path: Path) -> None:
    encoded = make_encoded(tmp_path)
    kept = EncodedDataset(encoded.items[:3])
    held_out = EncodedDataset((*kept.items, dataclasses.replace(encoded.items[3], role="validation")))
    assert run(tmp_path, held_out, make_config()).losses == run(tmp_path, kept, make_config()).losses
    halved = EncodedDataset(tuple(dataclasses.replace(i, loss_weight=0.5) for i in kept.items))
    first, half = run(tmp_path, kept, make_config(steps=1)), run(tmp_path, halved, make_config(steps=1))
    assert half.losses[0] == pytest.approx(first.losses[0] / 2)


def test_resumed_equals_uninterrupted_with_variants(tmp_path: Path) -> None:
    """Augmented latents, tag orders and dropped captions are drawn anew at each showing, also after a resume."""
    plain = make_encoded(tmp_path, count=4)
    others = make_encoded(tmp_path / "variants", count=8)
    encoded = EncodedDataset(
        tuple(
            dataclasses.replace(
                item,
                more_latents=(others.items[i].latent_path, others.items[i + 4].latent_path),
                more_texts=(others.items[i].text_path,),
                empty_text=others.items[7].text_path,
                caption_dropout=0.3,
            )
            for i, item in enumerate(plain.items)
        )
    )
    config = make_config(steps=12)
    whole = train(ToyDenoiser(), encoded, config, run_folder=tmp_path / "whole")
    assert whole.losses != train(ToyDenoiser(), plain, config, run_folder=tmp_path / "plain").losses
    controls = Controls()

    def stop_at_five(event: Event) -> None:
        if isinstance(event, StepEvent) and event.step == 5:
            controls.stop()

    train(ToyDenoiser(), encoded, config, run_folder=tmp_path / "part", controls=controls, emit=stop_at_five)
    saved = find_checkpoints(tmp_path / "part")[-1]
    rest = train(ToyDenoiser(), encoded, config, run_folder=tmp_path / "part", resume_from=saved)
    assert rest.losses == whole.losses
    assert_same(rest.adapter, whole.adapter)


def test_layers_without_a_gradient_are_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoraAdapter, "layers_without_gradient", lambda self: ["a.q", "a.k", "a.v", "a.o"])
    said: list[str] = []

    def watch(event: Event) -> None:
        if isinstance(event, MessageEvent):
            said.append(event.text)

    train(
        ToyDenoiser(), make_encoded(tmp_path), make_config(steps=3), run_folder=tmp_path / "run", emit=watch
    )
    (sentence,) = [text for text in said if "no gradient" in text]
    assert sentence.startswith("4 layers got no gradient in the first step (a.q, a.k, a.v, ...)")
