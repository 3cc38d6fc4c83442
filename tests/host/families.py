"""One tiny network per model family or variant, made through the host's own classes, with what the host's nodes put
into its latents and conditioning. Only data and small functions; families_run.py runs them inside the host.

Networks are as the host makes them from a file of that family, but narrow and short: "dims" are the arguments of the
network's constructor, which the host reads from the shapes of a file's weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

TEXT, POOLED = 24, 16  # widths of text rows and of the pooled text
H, W = 8, 6  # of latents; no level halves evenly
Entry = tuple[Tensor, dict[str, Any]]  # of a CONDITIONING


class Draw:
    """Standard normal numbers, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A family or variant."""

    config: str
    """Class in the host's comfy.supported_models."""

    latent: tuple[int, ...]
    """(C, [F,] h, w)"""

    dims: dict[str, Any] = field(default_factory=dict)
    conditioning: Callable[[Draw, int], Entry]
    """From a source of numbers and the caption's length in rows."""

    rows: tuple[int, int] = (7, 12)
    """Lengths of two captions; equal where the family's text encoder pads to one length."""

    newer: dict[str, Any] = field(default_factory=dict)
    """Arguments that host 0.33 knows and 0.3.75 does not."""

    only_newer: bool = False
    """Whether host 0.3.75 does not know the family."""

    state: dict[str, Tensor] = field(default_factory=dict)
    """Weights by which the host tells variants of one shape apart."""

    first_frame: bool = False
    """The first frame of the latent is given and not noised: the LATENT has a noise_mask."""

    needs_image: bool = False
    """Whether it is refused without an image beside the noise."""

    refused: str = ""
    """Part of the one sentence that refuses it."""

    conv_rank: int = 0
    """Of LoRAs on convolutions."""

    what: str = "text to image"
    """What is trained, for docs/families.md."""


def _text(draw: Draw, rows: int, columns: int = TEXT, **more: Any) -> Entry:
    return draw(1, rows, columns), more


def vision(draw: Draw, tokens: int, width: int) -> Any:
    """A clip_vision_output of the host."""
    from comfy.clip_vision import Output

    found = Output()
    found["penultimate_hidden_states"] = draw(1, tokens, width)
    found["last_hidden_state"] = draw(1, tokens, width)
    found["image_embeds"] = draw(1, width)
    found["all_hidden_states"] = draw(1, 2, tokens, width)
    return found


# Wan

WAN: dict[str, Any] = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 48,
    "ffn_dim": 64,
    "freq_dim": 32,
    "text_dim": TEXT,
    "num_heads": 4,
    "num_layers": 2,
    "in_dim": 16,
    "out_dim": 16,
}
VIDEO = (16, 3, H, W)


def _first_frame(draw: Draw, channels: int = 16) -> dict[str, Any]:
    """As WanImageToVideo makes them: latents of the clip's beginning, and 0 in the mask where they count."""
    mask = torch.ones(1, 1, 3, H, W)
    mask[:, :, :1] = 0
    return {"concat_latent_image": draw(1, channels, 3, H, W), "concat_mask": mask}


def _vace(draw: Draw, rows: int) -> Entry:
    return _text(
        draw,
        rows,
        vace_frames=[draw(1, 32, 3, H, W)],
        vace_mask=[draw(1, 64, 3, H, W).sigmoid()],
        vace_strength=[0.8],
    )


def _wan(
    what: str, conditioning: Callable[[Draw, int], Entry], config: str = "WAN21_T2V", **dims: Any
) -> Case:
    latent = (dims.get("out_dim", 16), *VIDEO[1:])
    return Case(
        config=config,
        latent=latent,
        dims={**WAN, **dims},
        conditioning=conditioning,
        rows=(12, 12),
        what=what,
        first_frame=what == "first frame in the latent",
        needs_image=what in ("first frame", "first and last frame", "camera path", "pose")
        or (what == "control" and config != "WAN21_Vace"),
    )


WAN_CASES = {
    "Wan 2.1 t2v": _wan("text to video", _text),
    "Wan 2.1 i2v": _wan(
        "first frame",
        lambda d, n: _text(d, n, **_first_frame(d), clip_vision_output=vision(d, 257, 1280)),
        "WAN21_I2V",
        model_type="i2v",
        in_dim=36,
    ),
    "Wan 2.1 FLF2V": _wan(
        "first and last frame",
        lambda d, n: _text(d, n, **_first_frame(d), clip_vision_output=vision(d, 514, 1280)),
        "WAN21_I2V",
        model_type="i2v",
        in_dim=36,
        flf_pos_embed_token_number=514,
    ),
    "Wan 2.1 VACE": _wan("control", _vace, "WAN21_Vace", model_type="vace", vace_layers=1, vace_in_dim=96),
    "Wan 2.1 Fun control": _wan(
        "control",
        lambda d, n: _text(
            d, n, concat_latent_image=d(1, 32, 3, H, W), reference_latents=[d(1, 16, 1, H, W)]
        ),
        "WAN21_FunControl2V",
        model_type="i2v",
        in_dim=48,
        in_dim_ref_conv=16,
    ),
    "Wan 2.1 Camera": _wan(
        "camera path",
        lambda d, n: _text(
            d,
            n,
            concat_latent_image=d(1, 16, 3, H, W),
            camera_conditions=d(1, 24, 3, 8 * H, 8 * W),
            clip_vision_output=vision(d, 257, 1280),
        ),
        "WAN21_Camera",
        model_type="camera",
        in_dim=32,
    ),
    "Wan 2.1 HuMo": _wan(
        "sound",
        lambda d, n: _text(d, n, audio_embed=d(1, 3, 8, 5, 1280), reference_latents=[d(1, 16, 1, H, W)]),
        "WAN21_HuMo",
        model_type="humo",
    ),
    "Wan 2.1 HuMo 17B": _wan(
        "sound",
        lambda d, n: _text(d, n, audio_embed=d(1, 3, 8, 5, 1280), reference_latents=[d(1, 16, 1, H, W)]),
        "WAN21_HuMo",
        model_type="humo",
        in_dim=36,
    ),
    "Wan 2.2 14B i2v": _wan("first frame", lambda d, n: _text(d, n, **_first_frame(d)), in_dim=36),
    "Wan 2.2 5B t2v": _wan("text to video", _text, "WAN22_T2V", in_dim=48, out_dim=48),
    "Wan 2.2 5B i2v": _wan("first frame in the latent", _text, "WAN22_T2V", in_dim=48, out_dim=48),
    "Wan 2.2 S2V": _wan(
        "sound",
        lambda d, n: _text(d, n, audio_embed=d(1, 25, 1024, 12), reference_latents=[d(1, 16, 1, H, W)]),
        "WAN22_S2V",
        model_type="s2v",
        audio_inject_layers=[0, 1],
    ),
    "Wan 2.2 S2V without sound": _wan(
        "text to video", _text, "WAN22_S2V", model_type="s2v", audio_inject_layers=[0, 1]
    ),
    "Wan 2.2 Animate": _wan(
        "pose",
        lambda d, n: _text(
            d,
            n,
            **_first_frame(d),
            pose_video_latent=d(1, 16, 2, H, W),
            clip_vision_output=vision(d, 257, 1280),
        ),
        "WAN22_Animate",
        model_type="animate",
        in_dim=36,
        motion_encoder_dim=16,
    ),
}

# Stable Diffusion

UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "context_dim": TEXT,
    "use_spatial_transformer": True,
    "legacy": False,
    "num_res_blocks": [2, 2],
    "channel_mult": (1, 2),
    "transformer_depth": [1, 1, 1, 1],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1],
    "transformer_depth_middle": 1,
}
SDXL = {
    **UNET,
    "transformer_depth": [1, 1, 2, 2],
    "transformer_depth_output": [1, 1, 1, 2, 2, 2],
    "transformer_depth_middle": 2,
    "num_head_channels": 16,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": POOLED + 6 * 256,
}
_V_KEY = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"


def _pooled(draw: Draw, rows: int, **more: Any) -> Entry:
    return _text(draw, rows, pooled_output=draw(1, POOLED), **more)


def _sdxl(draw: Draw, rows: int) -> Entry:
    """As CLIPTextEncodeSDXL makes it."""
    sizes = {"width": 1024, "height": 1280, "crop_w": 16, "crop_h": 8}
    return _pooled(draw, rows, **sizes, target_width=896, target_height=1152)


IMAGE = (4, H, W)
SD_CASES = {
    "SD 1.5": Case(config="SD15", latent=IMAGE, dims=UNET, conditioning=_text, rows=(7, 14)),
    "SD 1.5 with conv_rank": Case(
        config="SD15",
        latent=IMAGE,
        dims=UNET,
        conditioning=_text,
        rows=(7, 14),
        conv_rank=2,
        what="text to image, convolutions too",
    ),
    "SD 2 v": Case(
        config="SD20",
        latent=IMAGE,
        dims={**UNET, "use_linear_in_transformer": True},
        conditioning=_text,
        rows=(7, 14),
        state={_V_KEY: torch.tensor([-1.0, 1.0])},
    ),
    "SDXL": Case(config="SDXL", latent=IMAGE, dims=SDXL, conditioning=_sdxl, rows=(7, 14)),
    "SVD": Case(
        config="SVD_img2vid",
        latent=IMAGE,
        dims={**UNET, "in_channels": 8},
        conditioning=_text,
        refused="predicts",
        what="first frame",
    ),
    "Stable Cascade": Case(
        config="Stable_Cascade_C",
        latent=(16, H, W),
        dims={
            "stable_cascade_stage": "c",
            **{"c_cond": 32, "c_hidden": [32, 32], "nhead": [2, 2], "blocks": [[1, 1], [1, 1]]},
        },
        conditioning=_pooled,
        refused="predicts",
    ),
    "SD 3.5": Case(
        config="SD3",
        latent=(16, H, W),
        dims={
            **{"in_channels": 16, "patch_size": 2, "depth": 2, "input_size": None, "num_patches": 256},
            **{"pos_embed_max_size": 16, "adm_in_channels": POOLED, "qk_norm": "rms"},
            "pos_embed_scaling_factor": None,
            "x_block_self_attn_layers": [0],
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": TEXT, "out_features": 128},
            },
        },
        conditioning=_pooled,
    ),
    "AuraFlow": Case(
        config="AuraFlow",
        latent=IMAGE,
        dims={
            **{"in_channels": 4, "dim": 64, "n_layers": 2, "n_double_layers": 1, "n_heads": 2},
            **{"global_conddim": 64, "cond_seq_dim": TEXT, "max_seq": 64},
        },
        conditioning=_text,
    ),
    "PixArt Sigma": Case(
        config="PixArtSigma",
        latent=(4, 40, 32),  # its position embedding needs 64 tokens a side or so
        dims={
            **{"image_model": "pixart_sigma", "input_size": 16, "hidden_size": 64, "depth": 2},
            **{"num_heads": 2, "caption_channels": TEXT, "micro_condition": False, "model_max_length": 12},
            "pe_interpolation": 1,
        },
        conditioning=_text,
    ),
}

# Flux and its kin

FLUX: dict[str, Any] = {
    "image_model": "flux",
    **{"in_channels": 16, "out_channels": 16, "vec_in_dim": POOLED, "context_in_dim": TEXT},
    **{"hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2},
    **{"axes_dim": [8, 12, 12], "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True},
}
HUNYUAN_VIDEO: dict[str, Any] = {
    **FLUX,
    "image_model": "hunyuan_video",
    **{"theta": 256, "patch_size": [1, 2, 2], "byt5": False, "meanflow": False},
    **{"use_cond_type_embedding": False, "vision_in_dim": None},
}


def _flux(draw: Draw, rows: int, **more: Any) -> Entry:
    return draw(1, rows, TEXT), {"pooled_output": draw(1, POOLED), "guidance": 2.5, **more}


FLUX_CASES = {
    "Flux dev": Case(
        config="Flux", newer={"txt_ids_dims": []}, latent=(16, H, W), dims=FLUX, conditioning=_flux
    ),
    "Flux schnell": Case(
        config="FluxSchnell",
        newer={"txt_ids_dims": []},
        latent=(16, H, W),
        dims={**FLUX, "guidance_embed": False},
        conditioning=_pooled,
    ),
    "Flux Fill": Case(
        config="FluxInpaint",
        newer={"txt_ids_dims": []},
        latent=(16, H, W),
        dims={**FLUX, "in_channels": 96},
        conditioning=lambda d, n: _flux(
            d, n, concat_latent_image=d(1, 16, H, W), concat_mask=d(1, 1, 8 * H, 8 * W).sigmoid().round()
        ),
        what="filling a mask",
    ),
    "Flux Kontext": Case(
        config="Flux",
        newer={"txt_ids_dims": []},
        latent=(16, H, W),
        dims=FLUX,
        conditioning=lambda d, n: _flux(d, n, reference_latents=[d(1, 16, H, W), d(1, 16, W, H)]),
        what="edit",
    ),
    "Flux 2": Case(
        config="Flux2",
        newer={"txt_ids_dims": [3]},
        latent=(128, H, W),
        dims={
            **FLUX,
            "image_model": "flux2",
            **{"in_channels": 128, "out_channels": 128, "vec_in_dim": None, "axes_dim": [8, 8, 8, 8]},
            **{"theta": 2000, "mlp_ratio": 3.0, "patch_size": 1, "qkv_bias": False, "ops_bias": False},
            **{"global_modulation": True, "mlp_silu_act": True},
            **{"default_ref_method": "index", "ref_index_scale": 10.0},
        },
        conditioning=lambda d, n: _text(
            d, n, pooled_output=None, guidance=4.0, reference_latents=[d(1, 128, H, W)]
        ),
        what="text to image, edit",
    ),
    "Chroma": Case(
        config="Chroma",
        newer={"txt_ids_dims": [], "vec_in_dim": None},
        latent=(16, H, W),
        dims={
            "image_model": "chroma",
            **{k: v for k, v in FLUX.items() if k not in ("image_model", "vec_in_dim", "guidance_embed")},
            **{"in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 64, "hidden_dim": 32},
            "n_layers": 2,
        },
        conditioning=lambda d, n: _text(d, n, pooled_output=None),
    ),
    "HunyuanVideo": Case(
        config="HunyuanVideo",
        newer={"meanflow_sum": False},
        latent=(16, 3, H, W),
        dims=HUNYUAN_VIDEO,
        conditioning=lambda d, n: (
            d(1, n, TEXT),
            {
                "pooled_output": d(1, POOLED),
                "guidance": 5.0,
                "attention_mask": (torch.arange(n) < n - 2).long()[None],
            },
        ),
        what="text to video",
    ),
    "HunyuanVideo i2v": Case(
        config="HunyuanVideoI2V",
        newer={"meanflow_sum": False},
        latent=(16, 3, H, W),
        dims={**HUNYUAN_VIDEO, "in_channels": 33},
        conditioning=lambda d, n: (
            d(1, n, TEXT),
            {
                "pooled_output": d(1, POOLED),
                "guidance": 5.0,
                "attention_mask": (torch.arange(n) < n - 2).long()[None],
                **_first_frame(d),
            },
        ),
        needs_image=True,
        what="first frame, v1 (concat)",
    ),
    "HunyuanVideo i2v in place": Case(
        config="HunyuanVideo",
        newer={"meanflow_sum": False},
        latent=(16, 3, H, W),
        dims=HUNYUAN_VIDEO,
        conditioning=lambda d, n: (
            d(1, n, TEXT),
            {
                "pooled_output": d(1, POOLED),
                "guidance": 5.0,
                "guiding_frame_index": 0,
                "attention_mask": (torch.arange(n) < n - 2).long()[None],
            },
        ),
        first_frame=True,
        what="first frame in place, v2 (replace)",
    ),
    "HunyuanVideo 1.5": Case(
        config="HunyuanVideo15",
        newer={"meanflow_sum": False},
        latent=(32, 3, H, W),
        dims={
            **FLUX,
            "image_model": "hunyuan_video",
            **{"theta": 256, "patch_size": [1, 1, 1], "byt5": True, "meanflow": False},
            **{"use_cond_type_embedding": True, "vision_in_dim": 1152, "vec_in_dim": None},
            **{"in_channels": 65, "out_channels": 32, "guidance_embed": False},
        },
        conditioning=lambda d, n: _text(
            d,
            n,
            pooled_output=None,
            conditioning_byt5small=d(1, n - 2, 1472),
            clip_vision_output=vision(d, 9, 1152),
            concat_latent_image=d(1, 32, 3, H, W),
            concat_mask=torch.ones(1, 1, 3, H, W),
        ),
        what="text to video, first frame",
    ),
}

# Others

LUMINA: dict[str, Any] = {
    "image_model": "lumina2",
    **{"patch_size": 2, "in_channels": 16, "dim": 64, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2},
    **{"n_kv_heads": 2, "multiple_of": 32, "qk_norm": True, "cap_feat_dim": TEXT},
    **{"axes_dims": [8, 12, 12], "axes_lens": [300, 64, 64], "rope_theta": 256.0},
}
COSMOS: dict[str, Any] = {
    "image_model": "cosmos_predict2",
    **{"max_img_h": 64, "max_img_w": 64, "max_frames": 16, "in_channels": 16, "out_channels": 16},
    **{"patch_spatial": 2, "patch_temporal": 1, "concat_padding_mask": True, "model_channels": 64},
    **{"num_blocks": 2, "num_heads": 2, "crossattn_emb_channels": 1024, "pos_emb_cls": "rope3d"},
    **{"pos_emb_learnable": True, "use_adaln_lora": True, "adaln_lora_dim": 16},
    **{"rope_enable_fps_modulation": False},
}


def _all_ones(draw: Draw, rows: int, **more: Any) -> Entry:
    """With a mask as the host's text encoders give it that do not pad."""
    return draw(1, rows, TEXT), {"attention_mask": torch.ones(1, rows, dtype=torch.long), **more}


def _masked(draw: Draw, rows: int, **more: Any) -> Entry:
    """With a mask as the host's text encoders give it that pad."""
    return draw(1, rows, TEXT), {"attention_mask": (torch.arange(rows) < rows - 2).long()[None], **more}


def _reference(draw: Draw, rows: int) -> Entry:
    return _text(draw, rows, reference_latents=[draw(1, 16, 1, H, W), draw(1, 16, 1, W, H)])


QWEN = Case(
    config="QwenImage",
    latent=(16, 1, H, W),
    dims={
        "image_model": "qwen_image",
        **{"in_channels": 64, "num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2},
        **{"joint_attention_dim": TEXT, "axes_dims_rope": (8, 12, 12)},
    },
    conditioning=_text,
)
OTHER_CASES = {
    "Qwen-Image": QWEN,
    "Qwen-Image-Edit": Case(
        config=QWEN.config, latent=QWEN.latent, dims=QWEN.dims, conditioning=_reference, what="edit"
    ),
    "Z-Image": Case(
        config="ZImage",
        latent=(16, H, W),
        dims={
            **LUMINA,
            **{"dim": 256, "axes_dims": [32, 48, 48]},  # its timesteps have 256 values whatever the width
            **{"ffn_dim_multiplier": 8 / 3, "z_image_modulation": True, "time_scale": 1000.0},
            "pad_tokens_multiple": 32,
        },
        conditioning=_text,
    ),
    "Lumina 2": Case(
        config="Lumina2",
        latent=(16, H, W),
        dims={**LUMINA, "n_kv_heads": 1, "ffn_dim_multiplier": 4.0, "rope_theta": 10000.0},
        conditioning=_all_ones,
    ),
    "LTX-Video": Case(
        config="LTXV",
        latent=(128, 3, H, W),
        dims={
            "image_model": "ltxv",
            **{"num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2},
            **{"cross_attention_dim": 64, "caption_channels": TEXT},
        },
        conditioning=lambda d, n: _masked(d, n, frame_rate=30.0),
        what="text to video",
    ),
    "LTX-2": Case(
        config="LTXAV",
        only_newer=True,
        latent=(128, 3, H, W),
        conditioning=_text,
        refused="cannot be trained on",
        what="text to video with sound",
    ),
    "HiDream": Case(
        config="HiDream",
        latent=(16, H, W),
        dims={
            "image_model": "hidream",
            **{"patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 1},
            **{"num_single_layers": 1, "attention_head_dim": 32, "num_attention_heads": 2},
            **{"caption_channels": [TEXT, TEXT], "text_emb_dim": POOLED, "num_routed_experts": 4},
            **{"num_activated_experts": 2, "axes_dims_rope": [16, 8, 8], "max_resolution": [128, 128]},
            "llama_layers": [0, 1],
        },
        conditioning=lambda d, n: _pooled(d, n, conditioning_llama3=d(1, 2, n, TEXT)),
    ),
    "Omnigen2": Case(
        config="Omnigen2",
        latent=(16, H, W),
        dims={
            "image_model": "omnigen2",
            **{"patch_size": 2, "in_channels": 16, "hidden_size": 64, "num_layers": 2},
            **{"num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 32},
            **{"axes_dim_rope": [8, 12, 12], "axes_lens": [300, 64, 64], "text_feat_dim": TEXT},
            "timestep_scale": 1000.0,
        },
        conditioning=lambda d, n: _all_ones(d, n, reference_latents=[d(1, 16, H, W)]),
        what="text to image, edit",
    ),
    "ACE-Step": Case(
        config="ACEStep",
        latent=(8, 16, 12),
        dims={
            "audio_model": "ace",
            **{"num_layers": 2, "inner_dim": 64, "attention_head_dim": 32, "num_attention_heads": 2},
            **{"mlp_ratio": 2.0, "text_embedding_dim": TEXT, "lyric_encoder_vocab_size": 50},
            "lyric_hidden_size": 1024,
        },
        conditioning=lambda d, n: _text(
            d, n, conditioning_lyrics=torch.arange(1, n + 1)[None], lyrics_strength=0.9
        ),
        what="text to music",
    ),
    "Cosmos Predict2": Case(
        config="CosmosT2IPredict2",
        latent=(16, 1, H, W),
        dims=COSMOS,
        conditioning=lambda d, n: _text(d, n, 1024),
    ),
    "Anima": Case(
        config="Anima",
        only_newer=True,
        latent=(16, 1, H, W),
        dims={**COSMOS, "image_model": "anima"},
        conditioning=lambda d, n: _text(
            d, n, 1024, t5xxl_ids=torch.arange(5, n + 7), t5xxl_weights=d(n + 2).sigmoid()
        ),
    ),
    "Kandinsky 5": Case(
        config="Kandinsky5Image",
        only_newer=True,
        latent=(16, 1, H, W),
        dims={
            "image_model": "kandinsky5",
            **{"in_text_dim": TEXT, "in_text_dim2": POOLED, "time_dim": 32, "model_dim": 64, "ff_dim": 64},
            **{"visual_embed_dim": 64, "num_text_blocks": 1, "num_visual_blocks": 2},
            "axes_dims": (8, 12, 12),
        },
        conditioning=_pooled,
    ),
    "CogVideoX": Case(
        config="CogVideoX_T2V",
        only_newer=True,
        latent=(16, 3, H, W),
        dims={
            "image_model": "cogvideox",
            **{"num_attention_heads": 2, "attention_head_dim": 64, "time_embed_dim": 32},
            **{"text_embed_dim": TEXT, "num_layers": 1, "max_text_seq_length": 12},
            **{"sample_height": H, "sample_width": W, "sample_frames": 9},
            "use_rotary_positional_embeddings": True,
        },
        conditioning=_text,
        refused="predicts v of CogVideoX",
        what="text to video",
    ),
}

CASES: dict[str, Case] = {**WAN_CASES, **SD_CASES, **FLUX_CASES, **OTHER_CASES}
