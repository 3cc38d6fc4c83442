"""First frames and control pictures, from files on disk to what the model is given, against the host's own nodes called
with the same pixels by hand; prints JSON.

Run by test_image_conditioning.py in the host's folder: `python image_conditioning.py VAE`. Wan's VAE is the tiny one of
the tests; of the other families the wrapper is the host's own class, and what stands for the weights is the mean over
blocks of pixels. Texts are encoded by a stand-in behind Qwen's own tokenizer.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import inprocess

VAE_FILE = sys.argv[1]
inprocess.start()

import comfy.clip_vision
import comfy.ldm.lightricks.vae.causal_video_autoencoder
import comfy.ldm.models.autoencoder
import comfy.ldm.wan.vae2_2
import comfy.sd
import comfy.text_encoders.hunyuan_video
import comfy.text_encoders.qwen_image
import comfy.utils
import numpy as np
import torch
from comfy_extras import nodes_hunyuan, nodes_lt, nodes_qwen, nodes_wan
from lora_kiln.nodes.host.encoding.encoder import HostEncoder  # type: ignore[import-not-found]
from lora_kiln.trainer.conditioning import equal, pack, unpack  # type: ignore[import-not-found]
from lora_kiln.trainer.dataset.batches import ItemStore, SampleDraw  # type: ignore[import-not-found]
from lora_kiln.trainer.dataset.buckets import Bucket, BucketOptions  # type: ignore[import-not-found]
from lora_kiln.trainer.dataset.encode import encode_dataset  # type: ignore[import-not-found]
from lora_kiln.trainer.dataset.loading import load_controls, load_pixels  # type: ignore[import-not-found]
from lora_kiln.trainer.dataset.scan import ScanOptions, scan_folder  # type: ignore[import-not-found]
from lora_kiln.trainer.errors import KilnError  # type: ignore[import-not-found]
from PIL import Image
from torch import Tensor, nn

clip = inprocess.load_file("kiln_media", inprocess.REPO / "tests" / "media.py").clip
FRAMES, HEIGHT, WIDTH = 9, 48, 64
TEXT = torch.ones(1, 3, 8)


class MeanVae:
    """The host's VAE as nodes see it: channels, factors, and an encoder that is the same for the same pixels."""

    latent_dim = 3
    crop_input = True

    def __init__(self, kind: type[nn.Module], channels: int, space: int, time: int) -> None:
        self.first_stage_model = kind.__new__(kind)
        nn.Module.__init__(self.first_stage_model)
        self.first_stage_model.scale = nn.Parameter(torch.ones(1))
        self.latent_channels, self._space, self._time = channels, space, time

    def spacial_compression_encode(self) -> int:
        return self._space

    def encode(self, pixels: Tensor) -> Tensor:
        frames = pixels if pixels.ndim == 5 else pixels[None]  # (B, F, H, W, 3)
        kept = frames[:, :: self._time].movedim(-1, 1)
        small = torch.nn.functional.avg_pool3d(kept, (1, self._space, self._space))
        return small.mean(1, keepdim=True).repeat(1, self.latent_channels, 1, 1, 1)


class StandInClip:
    """A CLIP whose encoding tells every token, and every picture among the tokens, from any other."""

    layer_idx, tokenizer_options = None, {}

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.cond_stage_model = nn.Linear(2, 2)
        self.patcher = type("Patcher", (), {"patches": {}, "backup": {}})()

    def tokenize(self, text: str, **options: Any) -> Any:
        return self.tokenizer.tokenize_with_weights(text, **options)

    def encode_from_tokens_scheduled(self, tokens: Any) -> list[Any]:
        rows = [row for several in tokens.values() for row in several]
        values = [
            float(t["data"].mean()) if isinstance(t, dict) else float(t) for row in rows for t, *_ in row
        ]
        return [[torch.tensor(values)[None, :, None].repeat(1, 1, 4), {"pooled_output": None}]]


class PlainTokenizer:
    def tokenize_with_weights(self, text: str, **options: Any) -> Any:
        return {"plain": [[(ord(c), 1.0) for c in text]]}


class SeenByClip:
    """A CLIP vision model: what it gives depends on every pixel."""

    def __init__(self) -> None:
        self.model = nn.Linear(2, 2)

    def encode_image(self, image: Tensor, crop: bool = True) -> Any:
        found = comfy.clip_vision.Output()
        found["penultimate_hidden_states"] = image.mean((1, 2))[:, None].repeat(1, 5, 2)
        found["image_embeds"] = image.mean((1, 2))
        found["last_hidden_state"] = image.mean((1, 2))[:, None]
        found["mm_projected"] = self.projected(image)
        return found

    def projected(self, image: Tensor) -> Tensor | None:
        return None


class SeenByLlava(SeenByClip):
    """One whose pictures a language model reads."""

    def projected(self, image: Tensor) -> Tensor:
        return image.mean((1, 2))[:, None].repeat(1, 6, 4)


@cache
def wan() -> Any:
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(VAE_FILE))


def uncropped(vae: Any) -> Any:
    """A copy that encodes whole pictures, as all of ours are."""
    vae = copy.copy(vae)
    vae.crop_input = False
    return vae


def hunyuan(channels: int, space: int) -> MeanVae:
    return MeanVae(comfy.ldm.models.autoencoder.AutoencodingEngine, channels, space, 4)


VAES: dict[str, Callable[[], Any]] = {
    "wan": wan,
    "wan22": lambda: MeanVae(comfy.ldm.wan.vae2_2.WanVAE, 48, 16, 4),
    "ltx": lambda: MeanVae(comfy.ldm.lightricks.vae.causal_video_autoencoder.VideoVAE, 128, 32, 8),
    "hunyuan": lambda: hunyuan(16, 8),
    "hunyuan 1.5": lambda: hunyuan(32, 16),
}


def by_hand(name: str, vae: Any, frames: Tensor, controls: list[Tensor], seen: SeenByClip) -> Any:
    """(what the node has put on the conditioning, the noise mask) for one setting."""
    size = {"width": WIDTH, "height": HEIGHT, "length": FRAMES, "batch_size": 1}
    start, end, text = frames[:1], frames[-1:], [[TEXT, {}]]
    look = seen.encode_image
    if name in ("wan first frame", "wan first frame, no clip vision"):
        vision = look(start) if name == "wan first frame" else None
        return nodes_wan.WanImageToVideo.execute(
            text, text, vae, **size, start_image=start, clip_vision_output=vision
        )
    if name == "wan first and last frame":
        return nodes_wan.WanFirstLastFrameToVideo.execute(
            text,
            text,
            vae,
            **size,
            start_image=start,
            end_image=end,
            clip_vision_start_image=look(start),
            clip_vision_end_image=look(end),
        )
    if name == "wan22 first frame":
        return nodes_wan.Wan22ImageToVideoLatent.execute(vae, **size, start_image=start)
    if name == "ltx first frame":
        return nodes_lt.LTXVImgToVideo.execute(text, text, start, vae, **size, strength=1.0)
    if name in ("hunyuan first frame", "hunyuan first frame in place"):
        way = "v2 (replace)" if name.endswith("in place") else "v1 (concat)"
        return nodes_hunyuan.HunyuanImageToVideo.execute(
            text, vae, **size, guidance_type=way, start_image=start
        )
    if name == "hunyuan 1.5 first frame":
        return nodes_hunyuan.HunyuanVideo15ImageToVideo.execute(
            text, text, vae, **size, start_image=start, clip_vision_output=look(start)
        )
    if name == "wan VACE":
        return nodes_wan.WanVaceToVideo.execute(
            text, text, vae, **size, strength=1.0, control_video=controls[0]
        )
    assert name in ("wan Fun control", "wan Fun control from a first frame")
    first = {"start_image": start, "clip_vision_output": look(start)} if "first" in name else {}
    return nodes_wan.WanFunControlToVideo.execute(text, text, vae, **size, control_video=controls[0], **first)


CASES: dict[str, dict[str, Any]] = {
    "wan first frame": {"first_frame": "first frame"},
    "wan first frame, no clip vision": {"first_frame": "first frame"},
    "wan first and last frame": {"first_frame": "first and last frame"},
    "wan22 first frame": {"first_frame": "first frame"},
    "ltx first frame": {"first_frame": "first frame"},
    "hunyuan first frame": {"first_frame": "first frame"},
    "hunyuan first frame in place": {"first_frame": "first frame in place"},
    "hunyuan 1.5 first frame": {"first_frame": "first frame"},
    "wan VACE": {"controls": "Wan VACE"},
    "wan Fun control": {"controls": "Wan Fun control"},
    "wan Fun control from a first frame": {"controls": "Wan Fun control", "first_frame": "first frame"},
}
LOOKS = ("wan first frame", "wan first and last frame", "hunyuan 1.5", "wan Fun control from")


def item_of(encoder: HostEncoder, folder: Path, controls: tuple[Path, ...] = (), frames: int = FRAMES) -> Any:
    """The scanned item, and what it is shown with after encoding."""
    dataset = scan_folder(folder, ScanOptions(control_folders=controls))
    options = BucketOptions(resolution=64, max_frames=frames)
    with tempfile.TemporaryDirectory() as cache:
        encoded = encode_dataset(dataset, encoder, Path(cache), options)
        batch = ItemStore(encoded.items).load([SampleDraw(0, 0, 0)])
    return dataset.items[0], batch


def same(given: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether two conditionings are the same to the bit, in any order; as they come back from the disk."""
    back = unpack(*pack(wanted))
    return given.keys() == back.keys() and all(equal(given[name], back[name]) for name in back)


def check(name: str, folder: Path) -> dict[str, Any]:
    """One setting: whether what is given is what the node gives, and what of the loss mask and of noise."""
    kind = next(k for k in sorted(VAES, key=len, reverse=True) if name.startswith(k + " "))
    vae, seen = VAES[kind](), SeenByClip()
    vision = seen if name.startswith(LOOKS) and "no clip vision" not in name else None
    encoder = HostEncoder(vae, StandInClip(PlainTokenizer()), clip_vision=vision, **CASES[name])
    controls = (folder / "control",) if "controls" in CASES[name] else ()
    item, batch = item_of(encoder, folder / "clips", controls)
    bucket = Bucket(FRAMES, HEIGHT, WIDTH)
    frames = torch.from_numpy(load_pixels(item, bucket, 16).frames)
    steering = [torch.from_numpy(c) for c in load_controls(item, bucket, 16)]
    plain = uncropped(VAES[kind]())
    results = tuple(by_hand(name, plain, frames, steering, seen).result)
    wanted = results[0][0][1] if isinstance(results[0], list) else {}
    (latent,) = [r for r in results if isinstance(r, dict)]
    given = {k: v for k, v in batch.items[0].conditioning.items() if k not in ("cross_attn", "pooled_output")}
    figures = {"same": same(given, wanted) or sorted(given), "entries": sorted(wanted)}
    if "noise_mask" in latent:
        mask = latent["noise_mask"][0].expand(1, *latent["samples"].shape[2:])
        figures["mask"] = bool(torch.equal(batch.mask[0], mask)) and bool(
            torch.equal(batch.items[0].noise_mask, mask)
        )
        figures["given frames"] = int((mask[0].amax((1, 2)) == 0).sum())
    else:
        figures["mask"] = batch.mask is None and batch.items[0].noise_mask is None
    return figures


def pictures(folder: Path) -> None:
    draws = np.random.default_rng(0)
    for place in ("stills", "before", "depth"):
        (folder / place).mkdir()
        noise = draws.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((WIDTH, HEIGHT)).save(folder / place / "a.png")
    (folder / "stills" / "a.txt").write_text("make it blue", "utf-8")


def check_reference(folder: Path) -> bool:
    """reference_latents as Reference Latent appends them, in order."""
    encoder = HostEncoder(wan(), StandInClip(PlainTokenizer()), controls="reference latents")
    item, batch = item_of(encoder, folder / "stills", (folder / "before", folder / "depth"), frames=1)
    plain = uncropped(wan())
    wanted = [plain.encode(torch.from_numpy(c)) for c in load_controls(item, Bucket(1, HEIGHT, WIDTH), 16)]
    return bool(equal(batch.items[0].conditioning["reference_latents"], wanted)) and len(wanted) == 2


def check_qwen(folder: Path, way: str, prompt_syntax: bool) -> bool:
    """Tokens and references as Qwen's own node makes them."""
    tokenizer = comfy.text_encoders.qwen_image.QwenImageTokenizer()
    controls = (folder / "before", folder / "depth") if way != "Qwen-Image-Edit" else (folder / "before",)
    encoder = HostEncoder(wan(), StandInClip(tokenizer), prompt_syntax=prompt_syntax, controls=way)
    item, batch = item_of(encoder, folder / "stills", controls, frames=1)
    pixels = [torch.from_numpy(c) for c in load_controls(item, Bucket(1, HEIGHT, WIDTH), 16)]
    clip, plain = StandInClip(tokenizer), uncropped(wan())
    if way == "Qwen-Image-Edit":
        made = nodes_qwen.TextEncodeQwenImageEdit.execute(clip, "make it blue", plain, pixels[0])
    else:
        made = nodes_qwen.TextEncodeQwenImageEditPlus.execute(
            clip, "make it blue", plain, image1=pixels[0], image2=pixels[1]
        )
    ((cond, extras),) = made.result[0]
    return same(batch.items[0].conditioning, {**extras, "cross_attn": cond})


def check_hunyuan_text(folder: Path) -> bool:
    """The first frame among the tokens of HunyuanVideo's own tokenizer, as its node puts it there."""
    tokenizer = comfy.text_encoders.hunyuan_video.HunyuanVideoTokenizer()
    seen = SeenByLlava()
    encoder = HostEncoder(
        VAES["hunyuan"](), StandInClip(tokenizer), first_frame="first frame", clip_vision=seen
    )
    item, batch = item_of(encoder, folder / "clips")
    start = torch.from_numpy(load_pixels(item, Bucket(FRAMES, HEIGHT, WIDTH), 16).frames)[:1]
    node = nodes_hunyuan.TextEncodeHunyuanVideo_ImageToVideo
    made = node.execute(StandInClip(tokenizer), seen.encode_image(start, crop=False), "a cat", 2)
    ((cond, extras),) = made.result[0]
    given = {k: v for k, v in batch.items[0].conditioning.items() if not k.startswith("concat_")}
    plain = StandInClip(tokenizer).encode_from_tokens_scheduled(StandInClip(tokenizer).tokenize("a cat"))
    return same(given, {**extras, "cross_attn": cond}) and plain[0][0].shape != cond.shape


REFUSED: dict[str, Callable[[Path], Any]] = {
    "a still": lambda f: item_of(encoder_of("wan", first_frame="first frame"), f / "stills", frames=1),
    "a clip of one frame": lambda f: item_of(
        encoder_of("wan", first_frame="first frame"), f / "clips", frames=1
    ),
    "a VAE of stills": lambda f: HostEncoder(
        MeanVae(comfy.ldm.models.autoencoder.AutoencoderKL, 4, 8, 1),
        StandInClip(PlainTokenizer()),
        first_frame="first frame",
    ),
    "last frame of LTX": lambda f: encoder_of("ltx", first_frame="first and last frame"),
    "clip vision for LTX": lambda f: encoder_of("ltx", first_frame="first frame", clip_vision=SeenByClip()),
    "in place for Wan": lambda f: encoder_of("wan", first_frame="first frame in place"),
    "a text encoder that sees nothing": lambda f: encoder_of(
        "hunyuan", first_frame="first frame", clip_vision=SeenByLlava()
    ),
    "a picture that is no text": lambda f: item_of(
        HostEncoder(
            VAES["hunyuan"](),
            StandInClip(comfy.text_encoders.hunyuan_video.HunyuanVideoTokenizer()),
            first_frame="first frame",
            clip_vision=SeenByClip(),
        ),
        f / "clips",
    ),
    "clip vision for nothing": lambda f: encoder_of("wan", clip_vision=SeenByClip()),
    "auto for Wan": lambda f: item_of(encoder_of("wan"), f / "stills", (f / "before",), frames=1),
    "VACE for LTX": lambda f: item_of(
        encoder_of("ltx", controls="Wan VACE"), f / "stills", (f / "before",), frames=1
    ),
    "Qwen without eyes": lambda f: item_of(
        encoder_of("wan", controls="Qwen-Image-Edit Plus"), f / "stills", (f / "before",), frames=1
    ),
    "two for VACE": lambda f: item_of(
        encoder_of("wan", controls="Wan VACE"), f / "stills", (f / "before", f / "depth"), frames=1
    ),
}


def encoder_of(kind: str, **settings: Any) -> HostEncoder:
    return HostEncoder(VAES[kind](), StandInClip(PlainTokenizer()), **settings)


def main() -> None:
    with tempfile.TemporaryDirectory() as base, torch.inference_mode():
        folder = Path(base)
        for place in ("clips", "control"):
            (folder / place).mkdir()
            clip(folder / place / "a.mp4", frames=FRAMES, fps=16, size=(WIDTH, HEIGHT))
        (folder / "clips" / "a.txt").write_text("a cat", "utf-8")
        pictures(folder)
        found: dict[str, Any] = {name: check(name, folder) for name in CASES}
        found["reference latents"] = check_reference(folder)
        found["hunyuan text"] = check_hunyuan_text(folder)
        for way in ("Qwen-Image-Edit", "Qwen-Image-Edit Plus"):
            for syntax in (True, False):
                found[f"{way}, {syntax}"] = check_qwen(folder, way, syntax)
        for name, attempt in REFUSED.items():
            try:
                attempt(folder)
                found[f"refused: {name}"] = ""
            except KilnError as error:
                found[f"refused: {name}"] = str(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
