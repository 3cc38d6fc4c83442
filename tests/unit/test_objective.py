"""Noising and targets against diffusers' schedulers and hand-set numbers."""

from __future__ import annotations

import pytest
import torch
from diffusers.schedulers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from trainer.config import ObjectiveConfig
from trainer.objective import ask, draw_levels, loss_per_item, shift_level

from .toy import ToyDenoiser

LATENTS = torch.randn(3, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(3, 4, 1, 2, 2, generator=torch.Generator().manual_seed(1))


def test_flow_by_hand() -> None:
    latents, noise = torch.full((2, 4, 1, 1, 1), 2.0), torch.full((2, 4, 1, 1, 1), -1.0)
    question = ask(ToyDenoiser(), latents, noise, torch.tensor([0.25, 1.0]))
    assert question.noisy[:, 0, 0, 0, 0].tolist() == [1.25, -1.0]  # 0.75 * 2 - 0.25; noise alone
    assert question.timestep.tolist() == [250.0, 1000.0]
    assert question.target.unique().tolist() == [-3.0]


def test_flow_noise_equals_diffusers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    picks = torch.tensor([0, 400, 990])
    level = scheduler.sigmas[picks]
    question = ask(ToyDenoiser(), LATENTS, NOISE, level)
    expected = scheduler.scale_noise(LATENTS, scheduler.timesteps[picks], NOISE)
    torch.testing.assert_close(question.noisy, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(question.timestep, scheduler.timesteps[picks])


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_discrete_noise_equals_diffusers(prediction: str) -> None:
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    denoiser = ToyDenoiser(prediction)  # type: ignore[arg-type]
    denoiser.alphas_cumprod = scheduler.alphas_cumprod
    timesteps = torch.tensor([0, 500, 999])
    question = ask(denoiser, LATENTS, NOISE, (timesteps + 0.5) / 1000)
    assert question.timestep.tolist() == timesteps.tolist()
    torch.testing.assert_close(
        question.noisy, scheduler.add_noise(LATENTS, NOISE, timesteps), rtol=1e-6, atol=1e-6
    )
    target = NOISE if prediction == "epsilon" else scheduler.get_velocity(LATENTS, NOISE, timesteps)
    torch.testing.assert_close(question.target, target, rtol=1e-6, atol=1e-6)


def test_level_one_is_the_last_timestep() -> None:
    question = ask(ToyDenoiser("epsilon"), LATENTS, NOISE, torch.ones(3))
    assert question.timestep.tolist() == [999.0] * 3


def test_shift_by_hand() -> None:
    torch.testing.assert_close(
        shift_level(torch.tensor([0.0, 0.5, 1.0]), 3.0), torch.tensor([0.0, 0.75, 1.0])
    )


def draws(config: ObjectiveConfig, prediction: str = "flow") -> torch.Tensor:
    return draw_levels(config, prediction, 20_000, torch.Generator().manual_seed(5))  # type: ignore[arg-type]


def test_logit_normal_quantiles() -> None:
    """The logit of the unshifted draws is a standard normal."""
    logits = torch.logit(draws(ObjectiveConfig(shift=1.0)))
    assert abs(logits.mean()) < 0.03 and abs(logits.std() - 1) < 0.03
    shifted = torch.logit(draws(ObjectiveConfig(shift=3.0)))
    assert abs(shifted.mean() - torch.log(torch.tensor(3.0))) < 0.03  # the shift adds log k to the logit


def test_uniform_within_range() -> None:
    level = draws(ObjectiveConfig(timestep_sampling="uniform", shift=1.0, min_timestep=0.2, max_timestep=0.6))
    assert 0.2 <= level.min() < 0.201 and 0.599 < level.max() <= 0.6
    assert abs(level.mean() - 0.4) < 0.005


def test_shift_is_for_flow_models_only() -> None:
    config = ObjectiveConfig(timestep_sampling="uniform", shift=5.0)
    assert draws(config, "epsilon").mean() < 0.51 < draws(config, "flow").mean()


def test_masked_loss_counts_what_the_mask_keeps() -> None:
    answer = torch.zeros(2, 4, 1, 2, 2)
    answer[:, :, :, 0] = 3.0  # upper row wrong by 3, lower row right
    mask = torch.zeros(2, 1, 1, 2, 2)
    mask[0, :, :, 0], mask[1, :, :, 1] = 1.0, 1.0
    assert loss_per_item(answer, torch.zeros_like(answer), mask).tolist() == [9.0, 0.0]


def test_loss_per_item() -> None:
    answer = torch.stack([torch.zeros(4, 1, 2, 2), torch.full((4, 1, 2, 2), 3.0)])
    assert loss_per_item(answer, torch.ones_like(answer)).tolist() == [1.0, 4.0]
