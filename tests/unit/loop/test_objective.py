"""Noising and targets against diffusers' schedulers and hand-set numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers.schedulers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from trainer.config import ObjectiveConfig
from trainer.errors import KilnError
from trainer.loop.objective import add_noise, draw_levels, loss_per_item, shift_level
from trainer.loop.train import objective

from ..toy import ToyDenoiser

LATENTS = torch.randn(3, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(3, 4, 1, 2, 2, generator=torch.Generator().manual_seed(1))


def test_flow_by_hand() -> None:
    latents, noise = torch.full((2, 4, 1, 1, 1), 2.0), torch.full((2, 4, 1, 1, 1), -1.0)
    noised = add_noise(ToyDenoiser(), latents, noise, torch.tensor([0.25, 1.0]))
    assert noised.noisy[:, 0, 0, 0, 0].tolist() == [1.25, -1.0]  # 0.75 * 2 - 0.25; noise alone
    assert noised.timestep.tolist() == [250.0, 1000.0]
    assert noised.target.unique().tolist() == [-3.0]


def test_flow_noise_equals_diffusers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    picks = torch.tensor([0, 400, 990])
    level = scheduler.sigmas[picks]
    noised = add_noise(ToyDenoiser(), LATENTS, NOISE, level)
    expected = scheduler.scale_noise(LATENTS, scheduler.timesteps[picks], NOISE)
    torch.testing.assert_close(noised.noisy, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(noised.timestep, scheduler.timesteps[picks])


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_discrete_noise_equals_diffusers(prediction: str) -> None:
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    denoiser = ToyDenoiser(prediction)  # type: ignore[arg-type]
    denoiser.alphas_cumprod = scheduler.alphas_cumprod
    timesteps = torch.tensor([0, 500, 999])
    noised = add_noise(denoiser, LATENTS, NOISE, (timesteps + 0.5) / 1000)
    assert noised.timestep.tolist() == timesteps.tolist()
    torch.testing.assert_close(
        noised.noisy, scheduler.add_noise(LATENTS, NOISE, timesteps), rtol=1e-6, atol=1e-6
    )
    target = NOISE if prediction == "epsilon" else scheduler.get_velocity(LATENTS, NOISE, timesteps)
    torch.testing.assert_close(noised.target, target, rtol=1e-6, atol=1e-6)


def test_level_one_is_the_last_timestep() -> None:
    noised = add_noise(ToyDenoiser("epsilon"), LATENTS, NOISE, torch.ones(3))
    assert noised.timestep.tolist() == [999.0] * 3


def test_shift_by_hand() -> None:
    torch.testing.assert_close(
        shift_level(torch.tensor([0.0, 0.5, 1.0]), 3.0), torch.tensor([0.0, 0.75, 1.0])
    )


SHAPE = (16, 64, 64)  # of latents: 1024 tokens of 2 x 2


def draws(config: ObjectiveConfig, prediction: str = "flow") -> torch.Tensor:
    rng = torch.Generator().manual_seed(5)
    return draw_levels(config, prediction, 20_000, rng, SHAPE)  # type: ignore[arg-type]


def test_logit_normal_quantiles() -> None:
    """The logit of the unshifted draws is a standard normal."""
    logits = torch.logit(draws(ObjectiveConfig(timestep_sampling="logit_normal", shift=1.0)))
    assert abs(logits.mean()) < 0.03 and abs(logits.std() - 1) < 0.03
    shifted = torch.logit(draws(ObjectiveConfig(timestep_sampling="logit_normal", shift=3.0)))
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


def question_at(denoiser: ToyDenoiser, level: list[float]) -> objective.NoisyInput:
    latents = torch.zeros(len(level), 4, 1, 2, 2)
    return objective.add_noise(denoiser, latents, torch.ones_like(latents), torch.tensor(level))


def test_min_snr_by_formula() -> None:
    levels, gamma = [0.1, 0.5, 0.9], 5.0
    for prediction in ("epsilon", "v"):
        denoiser = ToyDenoiser(prediction)  # type: ignore[arg-type]
        assert denoiser.alphas_cumprod is not None
        power = denoiser.alphas_cumprod[[100, 500, 900]]
        ratio = power / (1 - power)
        below = ratio if prediction == "epsilon" else ratio + 1
        found = objective.level_weight(
            ObjectiveConfig(weighting="min_snr", min_snr_gamma=gamma), denoiser, question_at(denoiser, levels)
        )
        torch.testing.assert_close(found, ratio.clamp(max=gamma) / below, rtol=1e-4, atol=1e-6)


def test_sd3_weightings_by_formula() -> None:
    denoiser, sigma = ToyDenoiser(), torch.tensor([0.25, 0.5, 1.0])
    noised = question_at(denoiser, sigma.tolist())
    sqrt = objective.level_weight(ObjectiveConfig(weighting="sigma_sqrt"), denoiser, noised)
    torch.testing.assert_close(sqrt, torch.tensor([16.0, 4.0, 1.0]))
    cosmap = objective.level_weight(ObjectiveConfig(weighting="cosmap"), denoiser, noised)
    torch.testing.assert_close(cosmap, 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2)))
    nothing = objective.level_weight(
        ObjectiveConfig(weighting="sigma_sqrt"), denoiser, question_at(denoiser, [0.0])
    )
    assert nothing.item() == 1e4


def test_losses_by_formula() -> None:
    answer, target = torch.tensor([[[[0.05, 2.0]]]]), torch.zeros(1, 1, 1, 2)
    expected = {
        "l2": (0.05**2 + 4.0) / 2,
        "l1": (0.05 + 2.0) / 2,
        "huber": (0.5 * 0.05**2 + 0.1 * (2.0 - 0.05)) / 2,
    }
    for loss, value in expected.items():
        found = objective.loss_per_item(answer, target, None, ObjectiveConfig(loss=loss, huber_delta=0.1))
        assert found.item() == pytest.approx(value), loss


def test_noise_offset_adds_one_constant_to_each_channel() -> None:
    noise = torch.randn(4, 1, 3, 3)
    draws = torch.Generator().manual_seed(1)
    moved = objective.offset_noise(ObjectiveConfig(noise_offset=0.1), noise, draws) - noise
    assert moved.flatten(1).std(1).max() < 1e-6 and len({round(float(m[0, 0, 0]), 6) for m in moved}) == 4
    assert objective.offset_noise(ObjectiveConfig(), noise, draws) is noise


@pytest.mark.parametrize(
    ("options", "prediction", "message"),
    [
        ({"weighting": "min_snr"}, "flow", "weighting is min_snr and this model is trained by flow matching"),
        ({"weighting": "cosmap"}, "epsilon", "weighting is cosmap and this model predicts epsilon"),
        ({"noise_offset": 0.1}, "flow", "noise_offset is for models that predict noise or v"),
    ],
)
def test_settings_of_another_kind_of_model(options: dict[str, Any], prediction: Any, message: str) -> None:
    with pytest.raises(KilnError, match=message):
        objective.check_objective(ObjectiveConfig(**options), prediction)


def test_mode_sampling_raises_the_ends() -> None:
    draws = torch.Generator().manual_seed(0)
    mode = objective.draw_levels(
        ObjectiveConfig(timestep_sampling="mode", shift=1.0), "flow", 20_000, draws, SHAPE
    )
    assert mode.min() >= 0 and mode.max() <= 1
    draws = torch.Generator().manual_seed(0)
    usual = objective.draw_levels(
        ObjectiveConfig(timestep_sampling="logit_normal", shift=1.0), "flow", 20_000, draws, SHAPE
    )
    ends = [((x < 0.05) | (x > 0.95)).float().mean().item() for x in (mode, usual)]
    assert ends[0] > 5 * ends[1]  # logit_normal leaves the ends almost empty


def test_x0_is_the_clean_latents() -> None:
    """Its min-SNR weight is min(SNR, gamma), the first of the three in Hang et al. 2023, section 3.4."""
    denoiser = ToyDenoiser("x0")
    noised = question_at(denoiser, [0.1, 0.9])
    other = question_at(ToyDenoiser("epsilon"), [0.1, 0.9])
    assert torch.equal(noised.noisy, other.noisy) and not torch.equal(noised.target, other.target)
    assert denoiser.alphas_cumprod is not None
    power = denoiser.alphas_cumprod[[100, 900]].reshape(-1, 1, 1, 1, 1)
    torch.testing.assert_close(power.sqrt() * noised.target + (1 - power).sqrt() * other.target, noised.noisy)
    weight = objective.level_weight(ObjectiveConfig(weighting="min_snr", min_snr_gamma=5.0), denoiser, noised)
    power = power.flatten()
    torch.testing.assert_close(weight, (power / (1 - power)).clamp(max=5.0))


def test_flow_with_scaled_noise() -> None:
    """x = (1 - s) x_0 + s k n and target k n - x_0, so that x - s target = x_0."""
    denoiser = ToyDenoiser()
    denoiser.noise_scale = 2.5
    latents, noise, level = torch.randn(2, 4, 1, 2, 2), torch.randn(2, 4, 1, 2, 2), torch.tensor([0.3, 0.8])
    noised = add_noise(denoiser, latents, noise, level)
    sigma = level.reshape(-1, 1, 1, 1, 1)
    torch.testing.assert_close(noised.noisy - sigma * noised.target, latents)
    torch.testing.assert_close(noised.target + latents, 2.5 * noise)
