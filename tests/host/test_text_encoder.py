"""Text encoders that are trained beside the model: gradients, files and runs, and a live server."""

from __future__ import annotations

from typing import Any

import pytest

from tests.host.in_host import run_in_host

NAMES = {
    "SD 1.5": {
        "comfyui": "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.v_proj.",
        "kohya": "lora_te_text_model_encoder_layers_0_self_attn_v_proj.",
        "diffusers": "text_encoder.text_model.encoder.layers.0.self_attn.v_proj.",
    },
    "SDXL": {
        "comfyui": "text_encoders.clip_g.transformer.text_model.encoder.layers.0.self_attn.v_proj.",
        "kohya": "lora_te1_text_model_encoder_layers_0_self_attn_v_proj.",
        "diffusers": "text_encoder.text_model.encoder.layers.0.self_attn.v_proj.",
    },
}


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return run_in_host("text_encoder_run.py", arguments=())


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_transformers_and_peft(figures: dict[str, Any], name: str) -> None:
    assert figures[name]["gradient"] < 1e-5


@pytest.mark.parametrize("dtype", ["fp16", "fp8"])
def test_weights_that_are_cast_train_as_they_are(figures: dict[str, Any], dtype: str) -> None:
    assert figures["SD 1.5"][dtype] < 1e-5


@pytest.mark.parametrize("format", ["comfyui", "kohya", "diffusers"])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_gives_what_was_trained(figures: dict[str, Any], name: str, format: str) -> None:
    found = figures[name]["file"][format]
    assert found["plain"] > 0.1, "a LoRA that changes nothing proves nothing"
    assert found["ours"] < 1e-5
    assert found["round trip"]
    assert found["patches"][0] == found["patches"][1] > 0
    assert found["names"].startswith(NAMES[name][format])
    if format != "diffusers":  # ComfyUI's own loader does not read the alpha of such files
        assert found["host"] < 1e-5
        assert found["same"]
        assert found["of the model"][0] == found["of the model"][1]


def test_runs_repeat_and_resume_to_the_bit(figures: dict[str, Any]) -> None:
    found = figures["SD 1.5"]
    assert found["repeats"] and found["resumes"]
    assert found["moved"] == 18, "every layer of the text encoder has learned"
    assert found["untouched"], "the CLIP of the graph is as it was"


def test_memory_levels_change_nothing(figures: dict[str, Any]) -> None:
    assert figures["SD 1.5"]["levels"] < 1e-5


def test_what_cannot_be_trained_is_refused(figures: dict[str, Any]) -> None:
    without, another, no_layers = figures["SD 1.5"]["refused"]
    assert without.startswith("A CLIP is connected to Train LoRA, and 2 of 2 items have no caption")
    assert another.startswith("The CLIP on Train LoRA is not the one that the captions were encoded with")
    assert "has no layers in blocks that a LoRA could train; disconnect it." in no_layers


def test_the_host_loads_both_networks_in_one_call(figures: dict[str, Any]) -> None:
    assert figures["SD 1.5"]["loaded"] == [2]


def test_the_shell_loads_it_by_the_loader_of_the_graph(figures: dict[str, Any]) -> None:
    loaded, another, none = figures["SD 1.5"]["headless"]
    assert loaded == "loaded"
    assert another.startswith("The text encoder of the run file is not the one")
    assert none.startswith("The run file names no text encoder")


def test_an_interrupt_inside_it_stops_the_run(figures: dict[str, Any]) -> None:
    assert figures["SD 1.5"]["interrupted"] == "stopped"
