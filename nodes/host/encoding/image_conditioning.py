"""What a model is given of pixels beside the text: a clip's first frame, control pictures.

Made by the host's own nodes, so that an item is trained on with just what those nodes give a sampler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ....trainer.conditioning import ItemConditioning
from ....trainer.dataset.encoded import NOISE_MASK
from ....trainer.dataset.items import Item
from ....trainer.errors import KilnError
from ..models.fingerprint import module_fingerprint

FirstFrame = Literal["none", "first frame", "first and last frame", "first frame in place"]
ControlWay = Literal[
    "auto",
    "reference latents",
    "Qwen-Image-Edit",
    "Qwen-Image-Edit Plus",
    "Wan Fun control",
    "Wan VACE",
]
FIRST_FRAMES: tuple[FirstFrame, ...] = get_args(FirstFrame)
CONTROL_WAYS: tuple[ControlWay, ...] = get_args(ControlWay)
IN_PLACE: FirstFrame = "first frame in place"
"""HunyuanVideo's second way ("v2 (replace)"): the frame lies in the latent, and the model is told which one it is."""
INTERLEAVE = 2
"""Every which row of the picture HunyuanVideo's text encoder gets: the default of the host's node."""
QWEN_WAYS = ("Qwen-Image-Edit", "Qwen-Image-Edit Plus")
EMPTY: list[Any] = [[None, {}]]
"""A CONDITIONING that holds nothing: nodes put their entries on a copy of it."""

MOST_PICTURES = {"Qwen-Image-Edit": 1, "Qwen-Image-Edit Plus": 3, "Wan Fun control": 1, "Wan VACE": 1}


class ImageConditioner:
    """The settings of one encoding, and the host's nodes that carry them out."""

    def __init__(
        self, vae: Any, clip: Any, first_frame: FirstFrame, controls: ControlWay, clip_vision: Any
    ) -> None:
        """vae: must not crop what it encodes. clip_vision: for models that are given the first frame as CLIP sees it.

        Raises:
            KilnError: this VAE belongs to no model that is given a first frame in this way.
        """
        self._vae, self._clip, self._clip_vision = vae, clip, clip_vision
        self._first_frame, self._controls = first_frame, controls
        self._family = _video_family(vae)
        self._vision_id = "" if clip_vision is None else module_fingerprint(clip_vision.model)
        if first_frame != "none":
            self._check_first_frame()
        elif clip_vision is not None:
            raise KilnError(
                "A clip_vision is connected and first_frame is none, so it would not be used; choose first frame, or "
                "disconnect it."
            )

    def guide_of(self, item: Item, frames: int) -> str:
        """As Encoder.guide_of."""
        ways = []
        if self._first_frame != "none":
            if frames == 1 and item.facts.frames > 1:
                raise KilnError(
                    f"Of {item.path.name} one frame is trained on, and first_frame is for clips of 5 and more; set "
                    "max_frames to 5 at least, take shorter clips out of the dataset, or set first_frame to none."
                )
            if frames == 1:
                raise KilnError(
                    f"{item.path.name} is a still, and first_frame is for clips; take stills out of the dataset, or "
                    "set it to none."
                )
            ways.append(f"{self._first_frame} {self._vision_id}")
        if item.controls and (way := self._way(item)) not in QWEN_WAYS:
            ways.append(way)
        return " ".join(ways)

    def text_sees_controls(self, item: Item) -> str:
        """As Encoder.text_sees_controls."""
        way = self._way(item) if item.controls else ""
        return way if way in QWEN_WAYS else ""

    def text_sees_first_frame(self) -> str:
        """As Encoder.text_sees_first_frame."""
        if self._family != "hunyuan" or self._first_frame == "none" or self._clip_vision is None:
            return ""
        return f"first frame in the text {INTERLEAVE} {self._vision_id}"

    def text(self, caption: str, pictures: Sequence[np.ndarray]) -> list[Any]:
        """The CONDITIONING of a caption whose encoder looks at the control pictures, or at the item's first frame."""
        from comfy_extras import nodes_hunyuan, nodes_qwen

        images = [_image(p[:1]) for p in pictures]
        if self.text_sees_first_frame():
            seen = self._seen(images[0])
            if getattr(seen, "mm_projected", None) is None:
                raise KilnError(
                    "This clip_vision does not make what HunyuanVideo's text encoder reads; connect "
                    "llava_llama3_vision, or disconnect it."
                )
            node = nodes_hunyuan.TextEncodeHunyuanVideo_ImageToVideo
            return _results(node.execute(self._clip, seen, caption, INTERLEAVE))[0]
        if self._chosen() == "Qwen-Image-Edit":
            return _results(
                nodes_qwen.TextEncodeQwenImageEdit.execute(self._clip, caption, self._vae, images[0])
            )[0]
        named = {f"image{number}": picture for number, picture in enumerate(images, 1)}
        return _results(
            nodes_qwen.TextEncodeQwenImageEditPlus.execute(self._clip, caption, self._vae, **named)
        )[0]

    def guide(self, item: Item, frames: np.ndarray, controls: Sequence[np.ndarray]) -> ItemConditioning:
        """As Encoder.encode_guide."""
        found: ItemConditioning = {}
        clip = _image(frames)
        way = self._way(item) if item.controls else ""
        if self._first_frame != "none" and way != "Wan Fun control":
            found.update(self._start(clip))
        if way == "reference latents":
            found["reference_latents"] = [self._vae.encode(_image(c)) for c in controls]
        elif way == "Wan Fun control":
            found.update(self._fun_control(clip, controls[0]))
        elif way == "Wan VACE":
            found.update(self._vace(clip, controls[0]))
        return found

    def _check_first_frame(self) -> None:
        if self._family is None:
            raise KilnError(
                "first_frame is for Wan, HunyuanVideo and LTX-Video, and this VAE is of none of them; set it to none."
            )
        if self._first_frame == "first and last frame" and self._family != "wan":
            raise KilnError(
                "first_frame can be first and last frame for Wan 2.1 and Wan 2.2 14B only; choose first frame."
            )
        if self._first_frame == IN_PLACE and self._family != "hunyuan":
            raise KilnError(
                "first_frame can be first frame in place for HunyuanVideo only; choose first frame, which is in place "
                "for the models that have it so."
            )
        if self._family == "hunyuan" and self._clip_vision is not None and not self._reads("hunyuan_video"):
            raise KilnError(
                "A clip_vision is connected for HunyuanVideo, and the text encoder is not HunyuanVideo's, which would "
                "look at its picture; connect that one (type hunyuan_video), or disconnect clip_vision."
            )
        if self._clip_vision is not None and self._family in ("wan22", "ltx"):
            raise KilnError(
                "A clip_vision is connected, and the model of this VAE makes no use of one; disconnect it."
            )

    def _way(self, item: Item) -> ControlWay:
        way = self._chosen()
        if way == "auto":
            raise KilnError(
                f"{item.path.name} has a control picture, and Wan takes it in more than one way; set controls to "
                "Wan VACE or to Wan Fun control, as your model is."
            )
        if way.startswith("Wan") and self._family != "wan":
            raise KilnError(
                f"controls is {way}, and this VAE does not belong to Wan 2.1; choose another way, or connect Wan's VAE."
            )
        if way in QWEN_WAYS and not self._reads_pictures():
            raise KilnError(
                f"controls is {way}, and this text encoder cannot look at pictures; connect that of Qwen-Image (type "
                "qwen_image), or choose reference latents."
            )
        if len(item.controls) > MOST_PICTURES.get(way, len(item.controls)):
            raise KilnError(
                f"{item.path.name} has {len(item.controls)} control pictures, and {way} takes {MOST_PICTURES[way]}; "
                "take the others out."
            )
        return way

    def _chosen(self) -> ControlWay:
        """The setting, with auto resolved where the text encoder and the VAE leave one way only."""
        if self._controls != "auto":
            return self._controls
        if self._reads_pictures():
            return "Qwen-Image-Edit Plus"
        return "auto" if self._family == "wan" else "reference latents"

    def _reads_pictures(self) -> bool:
        return self._reads("qwen_image")

    def _reads(self, kind: str) -> bool:
        """Whether the text encoder is one of that kind, by the tokenizer that the host has for it."""
        return type(self._clip.tokenizer).__module__ == f"comfy.text_encoders.{kind}"

    def _start(self, clip: Tensor) -> ItemConditioning:
        """What the family's node makes of the first frame, or of the first and the last one."""
        from comfy_extras import nodes_hunyuan, nodes_lt, nodes_wan

        vae, size, start = self._vae, _size(clip), clip[:1]
        if self._first_frame == "first and last frame":
            end = clip[-1:]
            made = nodes_wan.WanFirstLastFrameToVideo.execute(
                EMPTY,
                EMPTY,
                vae,
                **size,
                start_image=start,
                end_image=end,
                clip_vision_start_image=self._seen(start),
                clip_vision_end_image=self._seen(end),
            )
        elif self._family == "wan":
            made = nodes_wan.WanImageToVideo.execute(
                EMPTY, EMPTY, vae, **size, start_image=start, clip_vision_output=self._seen(start)
            )
        elif self._family == "wan22":
            made = nodes_wan.Wan22ImageToVideoLatent.execute(vae, **size, start_image=start)
        elif self._family == "ltx":
            made = nodes_lt.LTXVImgToVideo.execute(EMPTY, EMPTY, start, vae, **size, strength=1.0)
        elif self._family == "hunyuan 1.5":
            made = nodes_hunyuan.HunyuanVideo15ImageToVideo.execute(
                EMPTY, EMPTY, vae, **size, start_image=start, clip_vision_output=self._seen(start)
            )
        else:
            made = nodes_hunyuan.HunyuanImageToVideo.execute(
                EMPTY,
                vae,
                **size,
                guidance_type="v2 (replace)" if self._first_frame == IN_PLACE else "v1 (concat)",
                start_image=start,
            )
        return _entries(made)

    def _fun_control(self, clip: Tensor, control: np.ndarray) -> ItemConditioning:
        from comfy_extras import nodes_wan

        first: dict[str, Any] = {}
        if self._first_frame != "none":
            first = {"start_image": clip[:1], "clip_vision_output": self._seen(clip[:1])}
        return _entries(
            nodes_wan.WanFunControlToVideo.execute(
                EMPTY, EMPTY, self._vae, **_size(clip), control_video=_image(control), **first
            )
        )

    def _vace(self, clip: Tensor, control: np.ndarray) -> ItemConditioning:
        from comfy_extras import nodes_wan

        return _entries(
            nodes_wan.WanVaceToVideo.execute(
                EMPTY, EMPTY, self._vae, **_size(clip), strength=1.0, control_video=_image(control)
            )
        )

    def _seen(self, picture: Tensor) -> Any:
        return None if self._clip_vision is None else self._clip_vision.encode_image(picture, crop=False)


def _video_family(vae: Any) -> str | None:
    """By the VAE's own class; None for one that belongs to no model with first frames."""
    module = type(vae.first_stage_model).__module__
    known = {
        "comfy.ldm.wan.vae": "wan",
        "comfy.ldm.wan.vae2_2": "wan22",
        "comfy.ldm.lightricks.vae.causal_video_autoencoder": "ltx",
    }
    if module in known:
        return known[module]
    if vae.latent_dim == 3 and module == "comfy.ldm.models.autoencoder":
        return {16: "hunyuan", 32: "hunyuan 1.5"}.get(vae.latent_channels)
    return None


def _size(clip: Tensor) -> dict[str, int]:
    """What the host's nodes want to know of a clip (F, H, W, 3)."""
    length, height, width, _ = clip.shape
    return {"width": width, "height": height, "length": length, "batch_size": 1}


def _image(frames: np.ndarray) -> Tensor:
    """(F, H, W, 3) as the host hands pictures on."""
    return torch.from_numpy(np.ascontiguousarray(frames))


def _results(made: Any) -> tuple[Any, ...]:
    """What a node of the host gives: a NodeOutput, or a tuple from nodes of the older kind."""
    return tuple(getattr(made, "result", made))


def _entries(made: Any) -> ItemConditioning:
    """What a node has put on an empty conditioning, and the noise mask of its latent."""
    found: ItemConditioning = {}
    for value in _results(made):
        if isinstance(value, list) and value and not found:
            found.update(value[0][1])
        if isinstance(value, dict) and "noise_mask" in value:
            mask, samples = value["noise_mask"], value["samples"]
            found[NOISE_MASK] = mask[0].expand(1, *samples.shape[2:]).float().cpu().clone()
    return found
