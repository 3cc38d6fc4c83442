"""First frames and control pictures reach the model as the host's own nodes give them."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.host_files import REPO

from .in_host import run_in_host

TINY_VAE = str(REPO / "tests" / "tiny_wan" / "models" / "tiny_wan_vae.safetensors")
IN_THE_LATENT = {"wan22 first frame": 1, "ltx first frame": 1, "hunyuan first frame in place": 1}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return run_in_host("image_conditioning.py", arguments=(TINY_VAE,))


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("wan first frame", ["clip_vision_output", "concat_latent_image", "concat_mask"]),
        ("wan first frame, no clip vision", ["concat_latent_image", "concat_mask"]),
        ("wan first and last frame", ["clip_vision_output", "concat_latent_image", "concat_mask"]),
        ("wan22 first frame", []),
        ("ltx first frame", []),
        ("hunyuan first frame", ["concat_latent_image", "concat_mask"]),
        ("hunyuan first frame in place", ["guiding_frame_index"]),
        ("hunyuan 1.5 first frame", ["clip_vision_output", "concat_latent_image", "concat_mask"]),
        ("wan VACE", ["vace_frames", "vace_mask", "vace_strength"]),
        ("wan Fun control", ["concat_latent_image"]),
        ("wan Fun control from a first frame", ["clip_vision_output", "concat_latent_image"]),
    ],
)
def test_what_is_given_is_what_the_node_makes(found: dict[str, Any], name: str, entries: list[str]) -> None:
    """Bit for bit; where the frame lies in the latent, its noise mask is the node's, and it does not count."""
    assert found[name]["same"] is True and found[name]["mask"] is True
    assert found[name]["entries"] == entries
    assert found[name].get("given frames") == IN_THE_LATENT.get(name)


def test_reference_latents(found: dict[str, Any]) -> None:
    assert found["reference latents"] is True


def test_the_first_frame_within_hunyuans_text(found: dict[str, Any]) -> None:
    assert found["hunyuan text"] is True


@pytest.mark.parametrize("way", ["Qwen-Image-Edit", "Qwen-Image-Edit Plus"])
@pytest.mark.parametrize("prompt_syntax", [True, False])
def test_a_text_encoder_that_looks(found: dict[str, Any], way: str, prompt_syntax: bool) -> None:
    """The tokens of Qwen's own tokenizer, with the pictures among them, and the reference latents of its node."""
    assert found[f"{way}, {prompt_syntax}"] is True


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("a still", "a.png is a still, and first_frame is for clips"),
        ("a clip of one frame", "a.mp4 one frame is trained on, and first_frame is for clips of 5"),
        ("a VAE of stills", "this VAE is of none of them"),
        ("last frame of LTX", "choose first frame"),
        ("clip vision for LTX", "makes no use of one; disconnect it"),
        ("in place for Wan", "first frame in place for HunyuanVideo only"),
        ("a text encoder that sees nothing", "the text encoder is not HunyuanVideo's"),
        ("a picture that is no text", "connect llava_llama3_vision, or disconnect it"),
        ("clip vision for nothing", "first_frame is none, so it would not be used"),
        ("auto for Wan", "set controls to Wan VACE or to Wan Fun control"),
        ("VACE for LTX", "does not belong to Wan 2.1"),
        ("Qwen without eyes", "cannot look at pictures"),
        ("two for VACE", "has 2 control pictures, and Wan VACE takes 1"),
    ],
)
def test_what_cannot_be_given_is_refused(found: dict[str, Any], what: str, words: str) -> None:
    assert words in found[f"refused: {what}"]
