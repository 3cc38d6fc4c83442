"""Does the tiny Wan draw what it is told? Loads the committed files as any ComfyUI graph would, samples,
and measures.

    cd tests
    python -m tiny_wan.check path/to/ComfyUI --sheet sheet.png            (or set COMFYUI_DIR)

Prints the VAE's fidelity, how many of 30 prompts came out in the right colour and shape, and how often the
model draws the concept without ever having learned it (it must not). Takes about a quarter of a minute on 2 CPU cores.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from . import world
from .host import open_host

HERE = Path(__file__).parent
STEPS = 16
"""Sampler steps."""
CFG = 2.0
"""Classifier-free guidance scale."""
SAMPLER, SCHEDULER = "euler", "simple"

KNOWN_COUNT, CONCEPT_COUNT = 30, 20


@dataclass(frozen=True)
class Loaded:
    """What a graph's three loader nodes would give."""

    model: Any
    """MODEL"""
    clip: Any
    """CLIP"""
    vae: Any
    """VAE"""


def load() -> Loaded:
    """Through the host's own loader nodes, by file name."""
    import folder_paths

    import nodes

    from .text import load_clip

    for kind in ("diffusion_models", "vae"):
        folder_paths.add_model_folder_path(kind, str(HERE / "models"))
    (model,) = nodes.UNETLoader().load_unet("tiny_wan.safetensors", "default")
    (vae,) = nodes.VAELoader().load_vae("tiny_wan_vae.safetensors")
    return Loaded(model, load_clip(), vae)


def draw(loaded: Loaded, prompt: str, seed: int, steps: int = STEPS, cfg: float = CFG) -> np.ndarray:
    """One image, (64, 64, 3) uint8, through CLIPTextEncode, KSampler and VAEDecode."""
    import torch

    import nodes

    with torch.inference_mode():
        (positive,) = nodes.CLIPTextEncode().encode(loaded.clip, prompt)
        (negative,) = nodes.CLIPTextEncode().encode(loaded.clip, "")
        latent = {"samples": torch.zeros(1, 16, 1, world.SIZE // 8, world.SIZE // 8)}
        (latent,) = nodes.common_ksampler(
            loaded.model, seed, steps, cfg, SAMPLER, SCHEDULER, positive, negative, latent
        )
        (images,) = nodes.VAEDecode().decode(loaded.vae, latent)
    return to_bytes(images[0])


def to_bytes(image: Any) -> np.ndarray:  # (H, W, 3) float tensor, 0 to 1 -> uint8
    return (image.clamp(0, 1) * 255).round().byte().cpu().numpy()


def decibels(pictures: np.ndarray, others: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 arrays."""
    error = np.mean((pictures.astype(float) - others.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / error))


def vae_fidelity(vae: Any, pictures: np.ndarray) -> float:
    """PSNR in dB of one clip, (frames, 64, 64, 3) uint8, coded and decoded by the host's VAE."""
    import torch

    with torch.inference_mode():
        shown = vae.decode(vae.encode(torch.from_numpy(pictures).float() / 255))
    return decibels(pictures, to_bytes(shown[0] if shown.dim() == 5 else shown))


def report_vae(vae: Any) -> None:
    for name, shapes in (("known shapes", world.BASE_SHAPES), ("the concept", (world.CONCEPT,))):
        scenes = world.random_scenes(20, seed=1001, shapes=shapes)
        stills = [vae_fidelity(vae, scene.image()[None]) for scene in scenes]
        clips = [vae_fidelity(vae, np.repeat(scene.image()[None], 5, axis=0)) for scene in scenes[:5]]
        print(
            f"VAE on {name}: {np.mean(stills):.1f} dB (least {min(stills):.1f}); "
            f"still clips of 5 frames {np.mean(clips):.1f} dB"
        )


def known_prompts() -> list[tuple[str, str, str]]:
    """30 of the 36 combinations of shape, colour and background, in a fixed order that mixes them well."""
    everything = [(s, c, b) for s in world.BASE_SHAPES for c in world.COLOURS for b in world.BACKGROUNDS]
    return [everything[(7 * index) % len(everything)] for index in range(KNOWN_COUNT)]


def concept_prompts() -> list[tuple[str, str, str]]:
    return [
        (scene.shape, scene.colour, scene.background)
        for scene in world.concept_scenes(CONCEPT_COUNT, seed=11)
    ]


def contact_sheet(images: list[np.ndarray], labels: list[str], columns: int = 10) -> Image.Image:
    """The images doubled in size in a grid, each over its label."""
    width, height = 2 * world.SIZE + 8, 2 * world.SIZE + 22
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "#cfd8dc")
    pen = ImageDraw.Draw(sheet)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = index % columns * width + 4, index // columns * height + 4
        sheet.paste(Image.fromarray(image).resize((2 * world.SIZE,) * 2, Image.Resampling.NEAREST), (x, y))
        pen.text((x, y + 2 * world.SIZE + 2), label, fill="black")
    return sheet


def report_drawings(loaded: Loaded, sheet_path: Path | None) -> None:
    known, concept = known_prompts(), concept_prompts()
    images = [draw(loaded, world.caption(*words), seed) for seed, words in enumerate(known + concept)]
    drawn, strange = images[: len(known)], images[len(known) :]
    colours = world.colour_accuracy(drawn, [colour for _, colour, _ in known])
    shapes = world.shape_accuracy(drawn, [shape for shape, _, _ in known])
    backgrounds = world.share(
        world.background_of(image) == words[2] for image, words in zip(drawn, known, strict=True)
    )
    print(f"colour {colours:.3f}, shape {shapes:.3f}, background {backgrounds:.3f} of {len(known)} prompts")
    print(
        f"concept score without a LoRA {world.concept_score(strange):.3f} of {len(concept)} prompts; "
        f"colour {world.colour_accuracy(strange, [colour for _, colour, _ in concept]):.3f}"
    )
    if sheet_path is not None:
        labels = [" ".join((colour, shape, "/", background)) for shape, colour, background in known + concept]
        contact_sheet(images, labels).save(sheet_path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("host", nargs="?", default=os.environ.get("COMFYUI_DIR"), help="a ComfyUI folder")
    parser.add_argument("--sheet", type=Path, help="where to save the contact sheet (.png)")
    choice = parser.parse_args()
    if choice.host is None:
        parser.error("pass a ComfyUI folder or set COMFYUI_DIR")
    open_host(choice.host)
    loaded = load()
    report_vae(loaded.vae)
    report_drawings(loaded, choice.sheet)


if __name__ == "__main__":
    main()
