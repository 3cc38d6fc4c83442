"""Make the tiny Wan and its concept pictures from nothing; the same seed gives the same training data.

    cd tests
    python -m tiny_wan.make path/to/ComfyUI            (or set COMFYUI_DIR)
    python -m tiny_wan.make path/to/ComfyUI --only concept

Writes `models/tiny_wan_vae.safetensors`, `models/tiny_wan.safetensors` and `concept/`. They are committed, so
nobody needs to run this: it shows where the files come from. On 2 CPU cores the VAE takes about 9 minutes and the
model 10 to 15.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from . import world
from .host import open_host

HERE = Path(__file__).parent
VAE_FILE = HERE / "models" / "tiny_wan_vae.safetensors"
MODEL_FILE = HERE / "models" / "tiny_wan.safetensors"
CONCEPT_FOLDER = HERE / "concept"

VAE_STEPS = 3500
MODEL_STEPS = 6000


def save_weights(module: object, path: Path, about: str) -> None:
    """Write a module's weights in half precision: the host computes in float32 from them on a CPU."""
    import torch
    from safetensors.torch import save_file

    tensors = {
        name: tensor.detach().to(torch.float16).contiguous() for name, tensor in module.state_dict().items()
    }
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path, metadata={"about": about})
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")


def make_vae() -> None:
    from . import train_vae

    vae = train_vae.train_vae(steps=VAE_STEPS)
    save_weights(
        vae, VAE_FILE, "A tiny Wan 2.1 VAE for tests, trained on drawings of tests/tiny_wan/world.py"
    )


def load_vae() -> object:
    """The VAE as the diffusion model will meet it: from the file, after rounding to half precision."""
    from safetensors.torch import load_file

    from . import train_vae

    vae = train_vae.new_vae()
    vae.load_state_dict(load_file(VAE_FILE))
    return vae


def make_model() -> None:
    from . import train_model

    model = train_model.train_model(load_vae(), steps=MODEL_STEPS)
    save_weights(
        model, MODEL_FILE, "A tiny Wan 2.1 for tests, trained on drawings of tests/tiny_wan/world.py"
    )


def make_concept() -> None:
    """Twenty pictures of the new shape with their captions: the data set of the demo and of the tests."""
    from PIL import Image

    CONCEPT_FOLDER.mkdir(exist_ok=True)
    for number, scene in enumerate(world.concept_scenes(20), start=1):
        stem = CONCEPT_FOLDER / f"{world.CONCEPT}_{number:02d}"
        Image.fromarray(scene.image()).save(stem.with_suffix(".png"), optimize=True)
        stem.with_suffix(".txt").write_text(scene.caption() + "\n", encoding="utf-8")


PARTS = {"concept": make_concept, "vae": make_vae, "model": make_model}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("host", nargs="?", default=os.environ.get("COMFYUI_DIR"), help="a ComfyUI folder")
    parser.add_argument("--only", choices=PARTS, help="make one part; the model needs the VAE's file")
    choice = parser.parse_args()
    if choice.host is None:
        parser.error("pass a ComfyUI folder or set COMFYUI_DIR")
    open_host(choice.host)
    for name, make in PARTS.items():
        if choice.only in (None, name):
            make()


if __name__ == "__main__":
    main()
