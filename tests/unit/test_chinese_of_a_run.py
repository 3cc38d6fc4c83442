"""What the engine really says of a run, put together of parts, is Chinese through and through in the browser."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainer.config import AdapterConfig, MemoryConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
from trainer.config.import_settings import import_settings
from trainer.errors import KilnError
from trainer.events import ValidationPoint
from trainer.lora_files.layer_checks import check_layer
from trainer.lora_files.lora_weights import LoraWeights
from trainer.lora_files.read import check_header
from trainer.memory.estimate import Estimate
from trainer.parsers import parse_json
from trainer.patterns import compile_pattern
from trainer.runs.checkpoint import RunState, save_checkpoint
from trainer.runs.differences import changed_settings
from trainer.runs.resume import choose_checkpoint, continue_run, why_anew
from trainer.runs.run import Run

ROOT = Path(__file__).parents[2]
PROGRAM = """
import { toChinese } from "./web/to_chinese.mjs";
let text = "";
for await (const piece of process.stdin) text += piece;
console.log(JSON.stringify(JSON.parse(text).map(toChinese)));
"""
FIELDS = {
    field.name
    for each in (AdapterConfig, MemoryConfig, ObjectiveConfig, OptimizerConfig, TrainConfig)
    for field in dataclasses.fields(each)
}
SAME = """Kiln LoRA LoHa CLIP MLP GiB JSON ComfyUI output loras resume latest new run anyway step
resident stream blocks"""
NAMES = FIELDS | set(SAME.split())
"""Words that are the same in both languages: names of settings, of their choices and of things."""


def chinese(*texts: str) -> list[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    node = shutil.which("node", path=path)
    if node is None:
        pytest.skip("node is not installed")
    done = subprocess.run(
        [node, "--input-type=module", "-e", PROGRAM],
        input=json.dumps(texts),
        capture_output=True,
        encoding="utf-8",
        cwd=ROOT,
        check=True,
    )
    answers: list[str] = json.loads(done.stdout)
    return answers


def english_in(answer: str, *names: str) -> list[str]:
    """Words of Latin letters that are neither names nor in quotes."""
    for name in names:
        answer = answer.replace(name, "")
    return [word for word in re.findall(r"[A-Za-z_]{3,}", answer) if word not in NAMES]


def demand(texts: list[str], *names: str) -> None:
    answers = chinese(*texts)
    left = {
        text: (answer, found)
        for text, answer in zip(texts, answers, strict=True)
        if (found := english_in(answer, *names))
    }
    assert not left


def save(folder: Path, config: TrainConfig, dataset: str = "d", model: str = "m") -> Path:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.sum().backward()
    optimizer.step()
    state = RunState(
        step=5,
        losses=[1.0] * 5,
        config=config.to_dict(),
        dataset=dataset,
        base_model=model,
    )
    return save_checkpoint(folder, state, {"a": parameter.detach()}, optimizer)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as refused:
        call()
    return str(refused.value)


def test_why_a_run_is_not_gone_on_with(tmp_path: Path) -> None:
    config = TrainConfig(adapter=AdapterConfig(rank=16, target_modules="", alpha=16.0))
    save(tmp_path / "20260101-a", config, model="m+t")
    other = dataclasses.replace(config.adapter, rank=5, target_modules="attn1, attn2")
    texts = [
        refusal(lambda: choose_checkpoint(tmp_path, "20260101-a", "other", "n", other)),
        refusal(lambda: choose_checkpoint(tmp_path, "20260101-a", "other", "m+t", config.adapter)),
        why_anew(tmp_path, "other", "m", other)[0],
        why_anew(tmp_path, "other", "m+u", config.adapter)[0],
    ]
    demand(texts, "attn1, attn2")


def test_a_run_that_goes_on_as_another(tmp_path: Path) -> None:
    config = TrainConfig(steps=9)
    path = save(tmp_path / "20260101-a", config)
    changed = dataclasses.replace(config, seed=7, batch_size=3)
    assert len(changed_settings(config.to_dict(), changed)) == 2
    texts = [
        continue_run(path, tmp_path / f"fresh{n}", now, dataset).notice
        for n, (now, dataset) in enumerate([(changed, "d"), (changed, "e"), (config, "e")])
    ]
    demand(texts)


def test_the_memory_line() -> None:
    size = 2**30
    plan = Estimate(
        memory=MemoryConfig(level="stream blocks", offload_block_inputs=True, recompute_parts=True),
        weights=3 * size,
        adapter=size,
        gradients=size,
        optimizer=size,
        activations=size,
        pinned=size,
        reason=", chosen for the 22.00 GiB that are free (resident needs 30.00 GiB)",
        advice="The device has 5.00 GiB free; batch_size 1 with gradient_accumulation 4 would fit.",
    )
    fewer = dataclasses.replace(plan, advice="", reason="", memory=MemoryConfig(level="resident"), pinned=0)
    texts = [plan.sentence(), dataclasses.replace(plan, advice="").sentence(), fewer.sentence()]
    demand(texts)


def test_the_sentence_of_a_run() -> None:
    run = Run(
        run_id="r",
        folder=Path("r"),
        config=TrainConfig(),
        lora=LoraWeights(
            {
                "diffusion_model.a.lora_A.weight": torch.ones(2, 3),
                "diffusion_model.a.lora_B.weight": torch.zeros(3, 2),
            }
        ),
        losses=[1.0] * 9,
        seconds=12.3,
        stopped=False,
        trained_parameters=1000,
        model_parameters=100_000,
    )
    still = dataclasses.replace(run, config=TrainConfig(optimizer=OptimizerConfig(learning_rate=0.0)))
    measured = dataclasses.replace(
        run, stopped=True, validation=[ValidationPoint(step=n, loss=1.0, bands=[]) for n in (3, 6)]
    )
    texts = [each.sentence() for each in (run, still, measured, dataclasses.replace(run, losses=[]))]
    for where in (
        "the LoRA: output/loras/r1.x",
        "the LoRA: in the run's folder only (17)",
        "Resume it with latest: r1",
    ):
        texts += [f"{text}; {where}" for text in texts[:3]]
    demand(texts)


def test_notes_of_a_run_in_the_background() -> None:
    note = (
        "Trains in the background, {}while other prompts run; they have the device first. The nodes behind did not "
        "run: queue the graph again when it is done. The LoRA will also be in ComfyUI/output/loras."
    )
    source = (ROOT / "nodes" / "host" / "running" / "requests.py").read_text("utf-8")
    assert "after the run that trains now, " in source
    demand([note.format(""), note.format("after the run that trains now, ")])


def test_what_is_wrong_with_a_file() -> None:
    r = torch.rand
    layers = [
        {"lora_A.weight": r(0, 2)},
        {"alpha": r(2)},
        {"lora_A.weight": r(())},
        {"lora_A.weight": torch.ones(2, 2, dtype=torch.int32)},
        {"lora_A.weight": r(2, 2), "hada_w1_a": r(2, 2)},
        {"diff_b": r(2), "b_norm": r(2)},
        {"diff_b": r(2), "lora_magnitude_vector": r(3)},
        {"lora_A.weight": r(2, 3), "lora_B.weight": r(4, 2), "diff_b": r(3)},
        {"lora_A.weight": r(2, 3), "lora_B.weight": r(4, 2), "dora_scale": r(7, 1)},
        {"oft_blocks": r(2, 3, 4)},
        {"oft_R.weight": r(2, 5)},
    ]
    frame = "x.1 is damaged: the layer a.0 cannot be right, {}; download or train it again."
    texts = [frame.format(refusal(lambda layer=layer: check_layer(layer))) for layer in layers]  # type: ignore[misc]
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    headers = [
        {"__metadata__": {"a": 1}},
        {"a" * 100_000: entry},
        {"a": {**entry, "dtype": 3}},
        {"a": {**entry, "shape": 3}},
        {"a": {**entry, "shape": [1] * 100}},
        {"a": {**entry, "shape": [7]}},
    ]
    header = "The header of x.1 is damaged ({}); download or make it again."
    texts += [header.format(refusal(lambda h=h: check_header(h))) for h in headers]  # type: ignore[misc]
    texts.append(header.format(refusal(lambda: parse_json("[" * 100_000))))
    names = [name for layer in layers for name in layer]
    demand(texts, *sorted(names, key=len, reverse=True), "dtype", "oft_R", "int32", "shape")


@pytest.mark.parametrize("text", ["a" * 300_000, "(?R)", "(" * 5000, "a{9999999}"])
def test_what_is_wrong_with_an_expression(text: str) -> None:
    with pytest.raises(KilnError) as refused:
        compile_pattern(text, "rank_pattern")
    quoted = [text, *re.findall(r"'a{9,}", str(refused.value))]
    demand([str(refused.value)], *quoted)


def test_what_becomes_of_imported_settings() -> None:
    text = "network_dim: 8\nlr_scheduler: rex\nseed: -1\nnum_epochs: 3\nmax_train_epochs: 2\nsdpa: true\nrank: 16\n"
    report = import_settings(text).report
    assert len(report) >= 7
    keys = [line.partition(":")[0] for line in report]
    demand(
        report, *keys, "epochs", "num_train_epochs", "rex", "max_train_epochs", "sd-scripts", "musubi-tuner"
    )
