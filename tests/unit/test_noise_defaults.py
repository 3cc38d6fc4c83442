"""What auto means for each family, and that a resumed run keeps what it meant."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest

from trainer.config import ObjectiveConfig
from trainer.noise_defaults import as_chosen, defaults_for, family_is_told_sizes, resolve, shift_at

OLD_DEFAULTS = {"timestep_sampling": "logit_normal", "shift": 3.0}  # written out in every older checkpoint


def model(*family: str, prediction: str = "flow") -> SimpleNamespace:
    return SimpleNamespace(family=family, prediction=prediction)


def test_auto_is_written_out_by_family() -> None:
    wan = resolve(ObjectiveConfig(), model("WAN21_T2V", "WAN21", "BaseModel"))
    assert (wan.timestep_sampling, wan.shift, wan.shift_by_size) == ("logit_normal", 3.0, "")
    sdxl = resolve(ObjectiveConfig(), model("SDXL", "BaseModel", prediction="epsilon"))
    assert (sdxl.timestep_sampling, sdxl.shift, sdxl.size_conditioning) == ("uniform", 1.0, "item")
    flux = resolve(ObjectiveConfig(), model("FluxInpaint", "Flux", "BaseModel"))
    assert flux.shift == 0 and flux.shift_by_size
    assert resolve(flux, model("WAN21")) == flux, "written out once"
    assert resolve(ObjectiveConfig(), model("never heard of")).shift == 3.0
    assert defaults_for(("HunyuanVideo15", "HunyuanVideo"), "flow").shift == 7.0
    assert defaults_for(("ZImage", "Lumina2"), "flow").shift == 3.0
    assert defaults_for(("Lumina2", "Lumina2"), "flow").shift_by_size


def test_what_is_chosen_stays() -> None:
    chosen = ObjectiveConfig(timestep_sampling="mode", shift=5.0, size_conditioning="latent")
    for other in (model("Flux"), model("SDXL", prediction="v")):
        assert resolve(chosen, other) == chosen
        assert resolve(chosen, other, OLD_DEFAULTS) == chosen


@pytest.mark.parametrize(
    ("family", "shape", "mu"),
    [
        ("Flux", (16, 32, 32), 0.5),  # 256 tokens of 2 x 2
        ("Flux", (16, 128, 128), 1.15),  # 1024 pixels: the host's own 1.15
        ("Flux2", (128, 64, 64), 1.15),
        ("QwenImage", (16, 1, 166, 166), 0.8343),  # 1328 pixels: 2.3, musubi-tuner's "around 2.2"
        ("LTXV", (128, 4, 32, 32), 2.05),  # 4096 tokens over four frames
        ("LTXV", (128, 1, 32, 32), 0.95),
    ],
)
def test_shift_by_size(family: str, shape: tuple[int, ...], mu: float) -> None:
    found = shift_at(resolve(ObjectiveConfig(), model(family)), shape)
    assert found == pytest.approx(math.exp(mu), rel=1e-4)


def test_a_shift_is_the_same_at_every_size() -> None:
    config = resolve(ObjectiveConfig(shift=2.0), model("Flux"))
    assert shift_at(config, (16, 8, 8)) == shift_at(config, (16, 80, 80)) == 2.0


def test_a_resumed_run_keeps_its_values() -> None:
    sdxl = model("SDXL", prediction="epsilon")
    old = resolve(ObjectiveConfig(), sdxl, OLD_DEFAULTS)
    assert (old.timestep_sampling, old.shift) == ("logit_normal", 3.0)
    assert old.size_conditioning == "768", "what was trained before there was a choice"
    first = resolve(ObjectiveConfig(), model("Flux"))
    record = {
        **dataclasses.asdict(first),
        "shift_by_size": "2, 1, 0.1, 2, 0.2",
    }  # of a version with another table
    again = resolve(ObjectiveConfig(), model("Flux"), record)
    assert again.shift_by_size == "2, 1, 0.1, 2, 0.2" and again.shift == 0


def test_a_record_tells_what_was_automatic() -> None:
    """So that a run's settings can be put on the nodes again as they were."""
    resolved = resolve(ObjectiveConfig(shift=5.0, guidance=2.0), model("WAN21"))
    assert resolved.automatic == "timestep_sampling, size_conditioning"
    record = {"steps": 3, "objective": dataclasses.asdict(resolved)}
    chosen = as_chosen(record)
    back = ObjectiveConfig(**chosen["objective"])
    assert back == ObjectiveConfig(shift=5.0, guidance=2.0) and chosen["steps"] == 3
    flux = {"objective": dataclasses.asdict(resolve(ObjectiveConfig(), model("Flux")))}
    assert ObjectiveConfig(**as_chosen(flux)["objective"]) == ObjectiveConfig()
    assert as_chosen({"objective": OLD_DEFAULTS}) == {"objective": OLD_DEFAULTS} and record["steps"] == 3


def test_who_is_told_sizes() -> None:
    assert family_is_told_sizes(("SDXL_instructpix2pix", "SDXL", "BaseModel"))
    assert not family_is_told_sizes(("WAN21", "BaseModel"))
