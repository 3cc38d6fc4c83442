"""The model files that the templates name, with the places from which ComfyUI's own templates offer them.

The host offers the download of a file that is missing when the loader node has it in `properties.models`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelFile:
    """A file of a model."""

    name: str
    url: str
    directory: str
    """Folder below ComfyUI/models."""


def _file(directory: str, url: str) -> ModelFile:
    return ModelFile(url.rpartition("/")[2], f"https://huggingface.co/{url}", directory)


_WAN21 = "Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
_FLUX_TEXT = "comfyanonymous/flux_text_encoders/resolve/main"
_QWEN = "Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files"

# Templates text_to_video_wan, video_wan2.1_alpha_t2v_14B
WAN_1_3B = _file("diffusion_models", f"{_WAN21}/diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors")
WAN_14B = _file("diffusion_models", f"{_WAN21}/diffusion_models/wan2.1_t2v_14B_fp8_scaled.safetensors")
WAN_TEXT = _file("text_encoders", f"{_WAN21}/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors")
WAN_VAE = _file("vae", f"{_WAN21}/vae/wan_2.1_vae.safetensors")
# video_wan2_2_14B_t2v
_WAN22 = "Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files/diffusion_models"
WAN22_HIGH = _file("diffusion_models", f"{_WAN22}/wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors")
WAN22_LOW = _file("diffusion_models", f"{_WAN22}/wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors")
# video_wan2_2_5B_ti2v
WAN22_5B = _file("diffusion_models", f"{_WAN22}/wan2.2_ti2v_5B_fp16.safetensors")
WAN22_VAE = _file(
    "vae", "Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files/vae/wan2.2_vae.safetensors"
)
# sdxl_simple_example
SDXL = _file(
    "checkpoints", "stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors"
)
# flux_dev_full_text_to_image, flux_kontext_dev_basic
FLUX_DEV = _file("diffusion_models", "Comfy-Org/flux1-dev/resolve/main/flux1-dev.safetensors")
FLUX_KONTEXT = _file(
    "diffusion_models",
    "Comfy-Org/flux1-kontext-dev_ComfyUI/resolve/main/split_files/diffusion_models/flux1-dev-kontext_fp8_scaled.safetensors",
)
FLUX_CLIP = _file("text_encoders", f"{_FLUX_TEXT}/clip_l.safetensors")
FLUX_T5 = _file("text_encoders", f"{_FLUX_TEXT}/t5xxl_fp16.safetensors")
FLUX_T5_FP8 = _file("text_encoders", f"{_FLUX_TEXT}/t5xxl_fp8_e4m3fn_scaled.safetensors")
FLUX_VAE = _file("vae", "Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae/ae.safetensors")
# image_qwen_image
QWEN_IMAGE = _file("diffusion_models", f"{_QWEN}/diffusion_models/qwen_image_fp8_e4m3fn.safetensors")
QWEN_TEXT = _file("text_encoders", f"{_QWEN}/text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors")
QWEN_VAE = _file("vae", f"{_QWEN}/vae/qwen_image_vae.safetensors")
# Text to Image (Ideogram v4) has its larger sister
QWEN3_VL = _file(
    "text_encoders", "Comfy-Org/Qwen3-VL/resolve/main/text_encoders/qwen3vl_4b_fp8_scaled.safetensors"
)
# image_qwen_image_edit_2509
QWEN_EDIT = _file(
    "diffusion_models",
    "Comfy-Org/Qwen-Image-Edit_ComfyUI/resolve/main/split_files/diffusion_models/qwen_image_edit_2509_fp8_e4m3fn.safetensors",
)
# image_z_image: the base model, not the distilled turbo
Z_IMAGE = _file(
    "diffusion_models",
    "Comfy-Org/z_image/resolve/main/split_files/diffusion_models/z_image_bf16.safetensors",
)
Z_IMAGE_TEXT = _file(
    "text_encoders", "Comfy-Org/z_image_turbo/resolve/main/split_files/text_encoders/qwen_3_4b.safetensors"
)
Z_IMAGE_VAE = _file("vae", "Comfy-Org/z_image_turbo/resolve/main/split_files/vae/ae.safetensors")
# ltxv_text_to_video
LTX_VIDEO = _file("checkpoints", "Lightricks/LTX-Video/resolve/main/ltx-video-2b-v0.9.safetensors")
