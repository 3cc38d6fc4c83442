"""Our socket types; LORA_MODEL and LOSS_MAP are the host's own."""

from __future__ import annotations

from comfy_api.latest import io

Dataset = io.Custom("KILN_DATASET")
Encoded = io.Custom("KILN_ENCODED")
Settings = io.Custom("KILN_SETTINGS")
Run = io.Custom("KILN_RUN")
LoraModel = io.Custom("LORA_MODEL")
LossMap = io.Custom("LOSS_MAP")
