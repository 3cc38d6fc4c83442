"""The shell's commands, without ComfyUI."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
LAYER = "blocks.0.self_attn.q"


@pytest.fixture(scope="module")
def headless() -> ModuleType:
    spec = importlib.util.spec_from_file_location("headless_under_test", ROOT / "headless.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    name = f"lora_unet_{LAYER.replace('.', '_')}"
    tensors = {f"{name}.lora_down.weight": torch.eye(4, 8), f"{name}.lora_up.weight": 2 * torch.eye(16, 4)}
    metadata = {"lora_kiln.steps": "500", "lora_kiln.config": '{"seed": 3}'}
    save_file({**tensors, f"{name}.alpha": torch.tensor(2.0)}, path, metadata)
    return path


def test_info(headless: ModuleType, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert headless.main(["info", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["for"], found["layers"]) == ("kohya", "Wan of width 8", 1)
    assert (found["family"], found["rank"], found["alpha"]) == ({"LoRA": 1}, {"4": 1}, {"2.0": 1})
    assert found["norm"] == {"whole": 2.0, "largest": {LAYER: 2.0}}  # 0.5 * 2 on four diagonal places
    assert found["training"] == {"steps": "500", "settings": {"seed": 3}}
    assert headless.main(["info", str(file)]) == 0
    text = capsys.readouterr().out
    assert "rank: 4\n" in text and "steps: 500" in text


@pytest.mark.parametrize("format", ["comfyui", "kohya", "diffusers", "peft"])
def test_convert(headless: ModuleType, file: Path, tmp_path: Path, format: str) -> None:
    out = tmp_path / "out.safetensors"
    assert headless.main(["convert", str(file), str(out), "--format", format]) == 0
    where = tmp_path / "out" / "adapter_model.safetensors" if format == "peft" else out
    key = {
        "comfyui": f"diffusion_model.{LAYER}.lora_A.weight",
        "kohya": "lora_unet_blocks_0_self_attn_q.lora_down.weight",
        "diffusers": "transformer.blocks.0.attn1.to_q.lora_A.weight",
        "peft": "base_model.model.blocks.0.attn1.to_q.lora_A.weight",
    }[format]
    assert torch.equal(load_file(where)[key], torch.eye(4, 8))


def test_nothing_is_overwritten_without_a_word(
    headless: ModuleType, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = file.read_bytes()
    assert headless.main(["resize", str(file), str(file), "--rank", "2"]) == 1
    assert "exists; choose another name, or say --force" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert headless.main(["resize", str(file), str(file), "--rank", "2", "--force"]) == 0
    assert load_file(file)[f"diffusion_model.{LAYER}.lora_A.weight"].shape == (2, 8)


def test_merge(headless: ModuleType, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    assert headless.main(["merge", f"{file}:0.5", str(file), "--out", str(out)]) == 0
    assert "rank 8, exact" in capsys.readouterr().out
    found = load_file(out)
    product = (
        found[f"diffusion_model.{LAYER}.lora_B.weight"] @ found[f"diffusion_model.{LAYER}.lora_A.weight"]
    )
    assert torch.allclose(product, 1.5 * torch.eye(16, 8)[:, :8] * (torch.arange(8) < 4))
    assert (
        headless.main(
            ["merge", f"{file}:1", str(file), "--out", str(tmp_path / "t"), "--method", "ties", "--rank", "3"]
        )
        == 0
    )
    base = tmp_path / "base.safetensors"
    save_file({f"{LAYER}.weight": torch.zeros(16, 8)}, base)
    merged = tmp_path / "merged.safetensors"
    assert headless.main(["merge", f"{file}:2", "--base", str(base), "--out", str(merged)]) == 0
    assert float(load_file(merged)[f"{LAYER}.weight"].sum()) == pytest.approx(8.0)


def test_errors_are_sentences(
    headless: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.safetensors").write_text("no")
    assert headless.main(["info", str(tmp_path / "x.safetensors")]) == 1
    assert capsys.readouterr().err.startswith("headless: x.safetensors is not a safetensors file")


def test_info_of_a_file_with_strange_metadata(headless: ModuleType, file: Path) -> None:
    save_file(load_file(file), file, {"lora_kiln.config": "{not JSON"})
    assert headless.main(["info", str(file)]) == 0


def test_a_name_that_is_too_long(
    headless: ModuleType, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert headless.main(["convert", str(file), str(tmp_path / ("n" * 300))]) == 1
    assert "headless: Cannot write" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]


WITHOUT_TORCHVISION = """
import importlib.abc, runpy, sys

class Broken(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")

sys.meta_path.insert(0, Broken())
headless = runpy.run_path(sys.argv[1])["main"]
for words in sys.argv[2:]:
    assert headless(words.split()) == 0, words
"""


def test_needs_no_torchvision(file: Path, tmp_path: Path) -> None:
    """PyPI's torchvision beside another build of torch cannot even be looked up, and nothing here needs it."""
    base, patterns = tmp_path / "base.safetensors", tmp_path / "patterns"
    save_file({f"{LAYER}.weight": torch.zeros(16, 8)}, base)
    patterns.mkdir()
    name = f"base_model.model.{LAYER}"
    tensors = {f"{name}.lora_A.weight": torch.eye(4, 8), f"{name}.lora_B.weight": torch.eye(16, 4)}
    save_file(tensors, patterns / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "alpha_pattern": {"self_attn.q": 2}}
    (patterns / "adapter_config.json").write_text(json.dumps(config))
    commands = [
        f"info {file}",
        f"convert {file} {tmp_path}/peft --format peft",
        f"convert {patterns} {tmp_path}/again.safetensors",
        f"resize {file} {tmp_path}/small.safetensors --rank 2",
        f"merge {file} {file} --out {tmp_path}/exact.safetensors",
        f"merge {file} --base {base} --out {tmp_path}/merged.safetensors",
    ]
    for method in ("svd", "task_arithmetic", "ties", "dare_linear", "dare_ties", "magnitude_prune"):
        commands.append(
            f"merge {file} {file} --out {tmp_path}/{method}.safetensors --method {method} --rank 3"
        )
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCHVISION, str(ROOT / "headless.py"), *commands],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list(tmp_path.glob("*.safetensors"))) == len(commands)


def test_the_wrong_python_is_named(file: Path) -> None:
    """With the system's Python there is no torch: a sentence, no traceback."""
    hide = "import runpy, sys; sys.modules['torch'] = None; main = runpy.run_path(sys.argv[1])['main']; "
    script = f"{hide}sys.exit(main(['info', sys.argv[2]]))"
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT / "headless.py"), str(file)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"headless: {sys.executable} has no package torch; run it with ComfyUI's Python, after pip install -r "
        "requirements.txt.\n"
    )


def test_names_with_dots_and_options_that_would_do_nothing(
    headless: ModuleType, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert headless.main(["resize", str(file), str(tmp_path / "mine.v2"), "--rank", "2"]) == 0
    assert (tmp_path / "mine.v2.safetensors").is_file()
    assert headless.main(["convert", str(file), str(tmp_path / "other.v2"), "--format", "peft"]) == 0
    assert (tmp_path / "other.v2" / "adapter_config.json").is_file()
    capsys.readouterr()
    for options, words in (
        (["--base", str(file), "--format", "kohya"], "--format kohya is one of LoRA files"),
        (["--pipeline", str(tmp_path)], "say --base and --format diffusers too"),
    ):
        assert headless.main(["merge", str(file), "--out", str(tmp_path / "x.safetensors"), *options]) != 0
        assert words in capsys.readouterr().err


def test_ctrl_c_leaves_no_traceback(
    headless: ModuleType, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While it loads; a run that trains stops after its step."""

    def interrupted(name: str) -> object:
        raise KeyboardInterrupt

    engine = headless.engine
    monkeypatch.setattr(
        headless, "engine", lambda name: engine(name) if name == "errors" else interrupted(name)
    )
    assert headless.main(["info", str(file)]) == 130
    assert capsys.readouterr().err == "headless: stopped\n"
