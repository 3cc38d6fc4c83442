"""See __init__.py."""

from __future__ import annotations

import copy
import dataclasses
import gc
import hashlib
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.model_management
import comfy.sd
import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io
from safetensors.torch import save_file
from server import PromptServer

from .words import load_clip


def pack_module(name: str) -> ModuleType:
    """A module of the pack by its name inside it; the host names packages after their path."""
    (found,) = (m for n, m in list(sys.modules.items()) if n.endswith(name) and "lora-kiln" in n)
    return found


class ProbeModel(io.ComfyNode):
    """A MODEL's state in one string: every parameter's object, bytes and flags, every module's object and class."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeModel",
            category="probe",
            inputs=[io.Model.Input("model"), io.AnyType.Input("after", optional=True)],
            outputs=[io.String.Output()],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        return float("nan")

    @classmethod
    def execute(cls, model: Any, after: Any = None) -> io.NodeOutput:
        comfy.model_management.load_models_gpu(
            [model]
        )  # the host's own loading leaves its marks; have them always
        network = model.model.diffusion_model
        digest = hashlib.sha256()
        for name, parameter in network.named_parameters():
            flags = f"{name} {id(parameter)} {parameter.requires_grad} {parameter.is_inference()} {parameter.dtype}"
            digest.update(flags.encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        for name, module in network.named_modules():
            own = sorted(k for k in module.__dict__ if not k.startswith("_"))
            digest.update(f"{name} {id(module)} {type(module)} {module.training} {own}".encode())
        state = {
            "digest": digest.hexdigest(),
            "gate_is_host's": comfy.model_management.load_models_gpu.__module__,
            "in_training": getattr(comfy.model_management, "in_training", False),
        }
        return io.NodeOutput(str(state), ui={"text": (str(state),)})


class ProbeSlowGarbage(io.ComfyNode):
    """From now on the host's thread for prompts is inside torch for seconds when it collects garbage after a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="ProbeSlowGarbage", category="probe", is_output_node=True)

    @classmethod
    def execute(cls) -> io.NodeOutput:
        running = PromptServer.instance.prompt_queue.currently_running
        thread = threading.current_thread()

        def free_slowly(phase: str, info: dict[str, int]) -> None:
            if phase == "start" and threading.current_thread() is thread and not running:
                matrix, until = torch.ones(300, 300), time.monotonic() + 3.0
                while time.monotonic() < until:
                    matrix = matrix @ matrix / 300

        gc.callbacks.append(free_slowly)
        return io.NodeOutput()


class ProbeEncoded(io.ComfyNode):
    """An encoded dataset of one random latent with the given number of channels; `broken` ones hold a NaN."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeEncoded",
            category="probe",
            inputs=[io.Int.Input("channels", default=4), io.Boolean.Input("broken", default=False)],
            outputs=[io.Custom("KILN_ENCODED").Output()],
        )

    @classmethod
    def execute(cls, channels: int, broken: bool = False) -> io.NodeOutput:
        encoded = pack_module("trainer.dataset.encoded")
        folder = Path(folder_paths.get_temp_directory()) / "probe"
        folder.mkdir(parents=True, exist_ok=True)
        shape = (channels, 1, 8, 8)
        latent = torch.randn(shape)
        if broken:
            latent[0] = float("nan")
        save_file({"latent": latent}, folder / "latent.safetensors")
        save_file(
            {"cross_attn": torch.randn(2, 4096), "length": torch.tensor([16])}, folder / "text.safetensors"
        )
        item = encoded.EncodedItem(folder / "latent.safetensors", folder / "text.safetensors", "probe", shape)
        return io.NodeOutput(encoded.EncodedDataset((item,)))


class ProbeCaptioner(io.ComfyNode):
    """A tiny CLIP that writes about pictures, as Qwen3-VL; on host 0.3.75, which has none, one that does not."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="ProbeCaptioner", category="probe", inputs=[], outputs=[io.Clip.Output()])

    @classmethod
    def execute(cls) -> io.NodeOutput:
        sys.path.append(str(Path(__file__).resolve().parents[1]))
        try:
            import tiny_captioners
        finally:
            sys.path.pop()
        made = tiny_captioners.qwen3_vl if hasattr(comfy.sd.CLIP, "generate") else tiny_captioners.clip_l
        return io.NodeOutput(made())


class ProbeDisk(io.ComfyNode):
    """Makes every write of a safetensors file by the pack fail as on a full disk, half-way through; or mends it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeDisk",
            category="probe",
            inputs=[io.Boolean.Input("full", default=True)],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        return float("nan")

    @classmethod
    def execute(cls, full: bool) -> io.NodeOutput:
        def fail(tensors: Any, path: Any, metadata: Any = None) -> None:
            Path(path).write_bytes(b"half a file")
            raise OSError(28, "No space left on device")

        pack_module("trainer.safefile").save_file = fail if full else save_file  # type: ignore[attr-defined]
        return io.NodeOutput()


class ProbeHoldOut(io.ComfyNode):
    """Every n-th item for validation."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        encoded = io.Custom("KILN_ENCODED")
        return io.Schema(
            node_id="ProbeHoldOut",
            category="probe",
            inputs=[encoded.Input("encoded"), io.Int.Input("every")],
            outputs=[encoded.Output()],
        )

    @classmethod
    def execute(cls, encoded: Any, every: int) -> io.NodeOutput:
        items = [
            dataclasses.replace(item, role="validation") if place % every == 0 else item
            for place, item in enumerate(encoded.items)
        ]
        return io.NodeOutput(dataclasses.replace(encoded, items=tuple(items)))


class ProbeBrokenVae(io.ComfyNode):
    """A VAE that cannot decode."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeBrokenVae",
            category="probe",
            inputs=[io.Vae.Input("vae")],
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def execute(cls, vae: Any) -> io.NodeOutput:
        def decode(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("this VAE is broken on purpose")

        broken = copy.copy(vae)
        broken.decode = decode
        return io.NodeOutput(broken)


class ProbeBrokenModel(io.ComfyNode):
    """A MODEL that fails inside the sampler; handed on once a run is training and has done some steps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeBrokenModel",
            category="probe",
            inputs=[io.Model.Input("model")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        return float("nan")

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        def fail(*args: Any) -> Any:
            raise RuntimeError("this model is broken on purpose")

        runs = pack_module("nodes.host.canvas.monitor").all_runs
        deadline = time.monotonic() + 300
        while not any(r.status == "running" and r.state()["step"] >= 3 for r in runs()):
            assert time.monotonic() < deadline, "no run trains"
            time.sleep(0.02)
        broken = model.clone()
        broken.set_model_unet_function_wrapper(fail)
        return io.NodeOutput(broken)


class ProbeWords(io.ComfyNode):
    """The tiny text encoder with layers that can be trained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="ProbeWords", category="probe", inputs=[], outputs=[io.Clip.Output()])

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(load_clip())


class ProbeExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            *(ProbeModel, ProbeEncoded, ProbeHoldOut, ProbeDisk, ProbeBrokenVae, ProbeBrokenModel),
            ProbeSlowGarbage,
            ProbeCaptioner,
            ProbeWords,
        ]
