"""Moving each matrix inside backward: the same values, without the memory of all gradients."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trainer.config import GuardConfig, OptimizerConfig
from trainer.denoiser import Conditioning
from trainer.errors import KilnError
from trainer.loop.fused_update import FusedUpdate
from trainer.loop.train import train
from trainer.runs.checkpoint_list import find_checkpoints

from ..toy import ToyDenoiser, make_config, make_encoded
from .test_train import assert_same, run


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("spike_factor", [0.0, 0.9])
def test_same_bits_as_all_at_once(tmp_path: Path, optimizer: str, spike_factor: float) -> None:
    encoded = make_encoded(tmp_path)
    options: dict[str, object] = {"optimizer": optimizer, "lora_plus_ratio": 4.0, "ema_decay": 0.9}
    results = []
    for fused in (False, True):
        config = make_config(steps=25, max_grad_norm=0.0, update_in_backward=fused, **options)
        config = replace(config, guards=GuardConfig(spike_factor=spike_factor))
        results.append(run(tmp_path / str(fused), encoded, config))
    if spike_factor:  # the loss is scaled here and the gradients there, which rounds differently
        for key, value in results[0].adapter.items():
            torch.testing.assert_close(results[1].adapter[key], value, rtol=1e-4, atol=1e-6)
    else:
        assert results[0].losses == results[1].losses
        assert_same(results[0].adapter, results[1].adapter)


def test_resumes_to_the_same_bits(tmp_path: Path) -> None:
    encoded = make_encoded(tmp_path)
    config = replace(make_config(update_in_backward=True, max_grad_norm=0.0), checkpoint_every=10)
    whole = run(tmp_path, encoded, config)
    middle = find_checkpoints(tmp_path / "run")[0]
    assert_same(run(tmp_path / "again", encoded, config, resume_from=middle).adapter, whole.adapter)
    with pytest.raises(KilnError, match="update_in_backward is True and is False now"):
        run(tmp_path / "other", encoded, make_config(max_grad_norm=0.0), resume_from=middle)


def test_holds_one_gradient_at_a_time() -> None:
    layers = nn.Sequential(*[nn.Linear(8, 8, bias=False) for _ in range(6)])
    parameters = list(layers.parameters())
    held: list[int] = []

    class Counting(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            held.append(sum(p.grad is not None for p in parameters))
            super().step(closure)

    before = [p.detach().clone() for p in parameters]
    updates = FusedUpdate(parameters)
    updates.optimizer = Counting(parameters, lr=0.1)
    x = torch.randn(3, 8)
    plain = torch.autograd.grad(layers(x).square().sum(), parameters)
    layers(x).square().sum().backward()
    assert held == [1] * 6 and all(p.grad is None for p in parameters)
    for parameter, then, gradient in zip(parameters, before, plain, strict=True):
        torch.testing.assert_close(parameter, then - 0.1 * gradient)
    torch.testing.assert_close(updates.pop_grad_norm(), torch.nn.utils.get_total_norm(list(plain)))
    assert updates.pop_grad_norm() == 0


def test_a_loss_that_is_no_number_moves_nothing(tmp_path: Path) -> None:
    class Broken(ToyDenoiser):
        calls = 0

        def forward(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
            self.calls += 1
            answer = super().forward(noisy, timestep, conditioning)
            return answer * math.nan if self.calls == 5 else answer

    config = make_config(update_in_backward=True, max_grad_norm=0.0, steps=12)
    result = train(Broken(), make_encoded(tmp_path), config, run_folder=tmp_path / "run")
    assert [math.isnan(x) for x in result.losses].count(True) == 1 and math.isnan(result.losses[4])
    assert all(t.isfinite().all() for t in result.adapter.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_grad_norm": 1.0}, "needs max_grad_norm 0, which is 1 now"),
        ({"max_grad_norm": 0.0, "gradient_accumulation": 2}, "needs gradient_accumulation 1, which is 2 now"),
        (
            {"max_grad_norm": 0.0, "optimizer": "prodigy"},
            "does not go with the optimizer 'prodigy'; choose one of",
        ),
    ],
)
def test_what_does_not_go_with_it(options: dict[str, object], words: str) -> None:
    with pytest.raises(KilnError, match=words):
        OptimizerConfig(update_in_backward=True, **options)  # type: ignore[arg-type]
