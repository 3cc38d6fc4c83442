"""The trainer one can leave alone, on a live server: validation, history, resume choices, run files, bad nights."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from scripts.host import RunningHost
from scripts.host_client import EventStream, HostClient, failure_of
from scripts.host_files import REPO

from .conftest import GraphFailed, RunGraph
from .graphs import dataset, loaders, node, sampled_files, sampling, saved, training
from .test_samples import sample_settings


def run_folder(host: RunningHost, outputs: dict[str, Any]) -> Path:
    return host.base / "user" / "__lora_kiln" / "runs" / outputs["train"]["summary"][0]["run"]


def held_out() -> dict[str, Any]:
    """The encoded concept images, every fifth for validation."""
    return {**dataset(), "split": node("ProbeHoldOut", encoded=["encoded", 0], every=5)}


def trained(**options: Any) -> dict[str, Any]:
    graph = {**loaders(), **held_out(), **training(**options), **saved()}
    graph["train"]["inputs"]["encoded"] = ["split", 0]
    return graph


def history(**options: Any) -> dict[str, Any]:
    values = {"filter": "", "order": "newest", "place": 1, "rating": 0, "notes": "", **options}
    return {"history": node("KilnRunHistory", **values)}


def test_validation_best_and_history(host: RunningHost, run_graph: RunGraph) -> None:
    graph = trained(steps=12, seed=201)
    graph["validation"] = node("KilnValidationSettings", every=4, levels=2, patience=0, result="best")
    graph["train"]["inputs"]["settings"] = ["validation", 0]
    outputs = run_graph(graph)
    summary = outputs["train"]["summary"][0]
    assert summary["best_step"] in (4, 8, 12) and "validation best" in outputs["train"]["text"][0]
    folder = run_folder(host, outputs)
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert manifest["best"] == f"step-{summary['best_step']:08d}"

    listed = run_graph({**history(rating=4, notes="a test of the history")})
    table = listed["history"]["text"][0]
    line = next(row for row in table.splitlines() if row.startswith(folder.name))
    assert "done" in line and "12/12" in line and "****" in line and "a test of the history" in line
    again = run_graph({**history(filter="test history"), "plot": node("KilnLossPlot", run=["history", 1])})
    assert len(again["history"]["text"][0].splitlines()) == 2 and again["plot"]["images"]


def test_the_lora_of_the_history_is_the_one_of_the_run(host: RunningHost, run_graph: RunGraph) -> None:
    outputs = run_graph(trained(steps=3, seed=211))
    name = outputs["train"]["summary"][0]["run"]
    save = node("KilnSaveLora", lora=["history", 2], filename_prefix="test/h", format="comfyui", dtype="fp32")
    again = run_graph({**history(filter=name), "save": save})
    first, second = load_file(outputs["save"]["path"][0]), load_file(again["save"]["path"][0])
    assert first.keys() == second.keys() and all(first[k].equal(second[k]) for k in first)


def test_resume_from_a_chosen_step(host: RunningHost, client: HostClient, run_graph: RunGraph) -> None:
    options = {"steps": 8, "seed": 221, "checkpoint_every": 3, "keep_checkpoints": 5}
    whole = run_graph(trained(**options))
    name = whole["train"]["summary"][0]["run"]
    listed = client.object_info("KilnTrainLora")["KilnTrainLora"]["input"]["required"]["resume"]
    assert f"{name} step 3" in str(listed) and f"{name} step 8" in str(listed)
    rest = run_graph(trained(**options, resume=f"{name} step 3"))
    assert rest["train"]["summary"][0]["run"] != name  # a copy goes on
    first, second = load_file(whole["save"]["path"][0]), load_file(rest["save"]["path"][0])
    assert all(first[k].equal(second[k]) for k in first)
    with pytest.raises(GraphFailed, match="cannot be resumed: its rank is 4 and is 8 now"):
        run_graph(trained(**{**options, "rank": 8}, resume=f"{name} step 3"))


def everything(host: RunningHost, client: HostClient, run: str) -> dict[str, Any]:
    """All that is kept of a run: its files' bytes, and its entry in the history."""
    folder = host.base / "user" / "__lora_kiln" / "runs" / run
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    (entry,) = client.get_json(f"/lora_kiln/history?words={run}")["runs"]
    return {"files": files, "entry": entry, "curve": client.get_json(f"/lora_kiln/history/{run}/curve")}


def test_resuming_never_rewrites_a_run(host: RunningHost, client: HostClient, run_graph: RunGraph) -> None:
    whole = run_graph(trained(steps=8, seed=222))
    name = whole["train"]["summary"][0]["run"]
    before = everything(host, client, name)
    for choice in ("latest", name):
        with pytest.raises(GraphFailed, match=f"The run {name} has done 8 steps and steps is 4"):
            run_graph(trained(steps=4, seed=222, resume=choice))
    with pytest.raises(GraphFailed, match="has done 8 steps and steps is 8: nothing is left to train"):
        run_graph(trained(steps=8, seed=223, learning_rate=1e-3, resume=name))
    again = run_graph(trained(steps=8, seed=222, resume=name))
    assert again["train"]["summary"] == whole["train"]["summary"], "nothing to train: the run as it ended"
    assert everything(host, client, name) == before

    # Another seed and rate: a new run that names its parent and has its curve
    other = run_graph(trained(steps=10, seed=223, learning_rate=1e-3, resume=name))["train"]["summary"][0]
    assert other["run"] != name and other["steps"] == 10
    assert everything(host, client, name) == before
    child = everything(host, client, other["run"])
    assert child["entry"]["parent"] == name
    assert [p[0] for p in child["curve"]["points"]] == list(range(1, 11))
    assert child["curve"]["points"][:8] == before["curve"]["points"]

    # More steps alone: the same run
    assert run_graph(trained(steps=9, seed=222, resume=name))["train"]["summary"][0]["run"] == name


@pytest.mark.parametrize("left", ["all but the record", "no LoRA", "no result"])
def test_a_run_that_was_killed_before_its_end_was_written_is_ended(
    host: RunningHost, client: HostClient, run_graph: RunGraph, left: str
) -> None:
    """With samples at the end and validation, as after a kill behind the last checkpoint."""
    seed = 240 + len(left)
    graph = trained(steps=6, seed=seed)
    graph |= {"validation": node("KilnValidationSettings", every=3, levels=2, patience=0, result="last")}
    graph |= sample_settings(every=0, at_start=False)
    graph["samples"]["inputs"]["settings"] = ["validation", 0]
    graph["train"]["inputs"]["settings"] = ["samples", 0]
    whole = run_graph(graph)
    folder = run_folder(host, whole)
    before = everything(host, client, folder.name)
    if left != "all but the record":
        (folder / "lora.safetensors").unlink()
    if left == "no result":
        (folder / "result.json").unlink()
        shutil.rmtree(folder / "samples")
    with closing(sqlite3.connect(folder.parents[1] / "history.db")) as db, db:
        db.execute("UPDATE runs SET status = 'running', step = 4, seconds = 0 WHERE id = ?", (folder.name,))
        db.execute("DELETE FROM points WHERE run = ? AND kind != 'validation' AND step > 4", (folder.name,))
    graph["train"]["inputs"]["resume"] = "latest"
    ended = run_graph(graph)
    assert run_folder(host, ended) == folder
    summaries = [{**outputs["train"]["summary"][0], "seconds": 0} for outputs in (whole, ended)]
    assert summaries[0] == summaries[1] and ended["train"]["text"][0].startswith("done: 6 steps")
    first, second = (load_file(outputs["save"]["path"][0]) for outputs in (whole, ended))
    assert first.keys() == second.keys() and all(first[k].equal(second[k]) for k in first)
    after = everything(host, client, folder.name)
    assert after["files"].keys() == before["files"].keys()
    assert (after["entry"]["status"], after["entry"]["step"]) == ("done", 6)
    assert [p[:2] for p in after["curve"]["points"]] == [p[:2] for p in before["curve"]["points"]]
    assert after["curve"]["validation"] == before["curve"]["validation"]
    if left != "all but the record":
        shown = client.get_json(f"/lora_kiln/runs/{folder.name}")
        assert (shown["status"], shown["step"], shown["total"]) == ("done", 6, 6)
        assert f"The run {folder.name} has done its 6 steps: nothing is trained" in shown["start"]
        assert [(s["step"], s["place"]) for s in shown["samples"]] == [(6, 0), (6, 1)]


def test_a_mended_caption_is_named_and_gone_on_with_on_demand(
    host: RunningHost, client: HostClient, events: EventStream, run_graph: RunGraph
) -> None:
    folder = host.base / "input" / "mended"
    shutil.copytree(host.base / "input" / "tiny_concept", folder)

    def graph(**options: Any) -> dict[str, Any]:
        return {**loaders(), **dataset("mended"), **training(seed=224, **options), **saved()}

    name = run_graph(graph(steps=4))["train"]["summary"][0]["run"]
    caption = min(folder.glob("*.txt"))
    caption.write_text(caption.read_text("utf-8") + ", mended", "utf-8")
    count = len(list(folder.glob("*.txt")))
    changed = f"1 of its {count} captions are others now"
    offer = f"{name} step 4 anyway"
    with pytest.raises(GraphFailed, match=f"{name} cannot be resumed: {changed}. Set resume to '{offer}'"):
        run_graph(graph(steps=6, resume=name))
    events.wait_for(lambda e: e.type == "lora_kiln.offer" and e.data["offer"] == offer)

    anew = run_graph(graph(steps=4, resume="latest"))["train"]["summary"][0]
    assert anew["run"] != name
    state = client.get_json(f"/lora_kiln/runs/{anew['run']}")
    assert changed in state["start"] and name in state["start"] and state["offer"] == offer

    on = run_graph(graph(steps=6, resume=offer))["train"]["summary"][0]
    assert on["steps"] == 6 and on["run"] not in (name, anew["run"])
    state = client.get_json(f"/lora_kiln/runs/{on['run']}")
    assert f"goes on from step 4 of the run {name}" in state["start"]
    more = run_graph(graph(steps=7, resume=on["run"]))["train"]["summary"][0]
    assert more["run"] == on["run"], "the copied checkpoint is one of the new run's dataset"


def test_start_from_a_file(host: RunningHost, run_graph: RunGraph) -> None:
    first = run_graph(trained(steps=6, seed=231, learning_rate=0.01))
    for format in ("comfyui", "kohya", "diffusers"):
        save = {"filename_prefix": f"test/start_{format}", "format": format}
        path = Path(
            run_graph({**trained(steps=6, seed=231, learning_rate=0.01), **saved(**save)})["save"]["path"][0]
        )
        name = str(path.relative_to(host.base / "output" / "loras"))
        still = run_graph(trained(steps=1, seed=232, learning_rate=0.0, start_from=name))
        begun, expected = load_file(still["save"]["path"][0]), load_file(first["save"]["path"][0])
        assert all(begun[k].equal(expected[k]) for k in expected), format
    with pytest.raises(GraphFailed, match="has rank 4 and this run 2; set rank to 4 or more"):
        run_graph(trained(steps=1, rank=2, start_from=name))


def test_start_from_a_lora_of_another_model(
    host: RunningHost, client: HostClient, run_graph: RunGraph
) -> None:
    """Another size of model says that and not "rank"; where most layers fit nothing, that is said; endings of any
    case, and text encoder layers, which are left out by name."""
    folder = host.base / "models" / "loras"

    def write(name: str, layers: list[str], width: int = 256, rank: int = 4) -> str:
        a, b = torch.randn(rank, width), torch.randn(width, rank)
        save_file(
            {f"{x}.{n}": t.clone() for x in layers for n, t in (("lora_A.weight", a), ("lora_B.weight", b))},
            folder / name,
        )
        return name

    blocks = [f"diffusion_model.blocks.{i}.self_attn.q" for i in range(40)]
    larger = write("larger.safetensors", blocks[:2], width=320, rank=64)
    with pytest.raises(GraphFailed, match=r"This LoRA is for Wan of width 320, and the model is another one"):
        run_graph(trained(steps=1, start_from=larger))
    with pytest.raises(
        GraphFailed, match=r"4 of its layers fit this model \(WAN21\) and 36 fit nothing, such as"
    ):
        run_graph(trained(steps=1, start_from=write("deeper.SAFETENSORS", blocks)))
    text = [f"text_encoders.clip_l.transformer.text_model.encoder.layers.{i}.mlp.fc1" for i in range(9)]
    mostly = write("with_text.sft", [*blocks[:4], *text])
    outputs = run_graph(trained(steps=1, start_from=mostly, seed=236))
    state = client.get_json(f"/lora_kiln/runs/{outputs['train']['summary'][0]['run']}")
    assert "9 layers fit nothing and are left out, such as text_encoders." in state["start"]


def test_a_run_that_learns_nothing_says_so(client: HostClient, run_graph: RunGraph) -> None:
    outputs = run_graph(trained(steps=2, learning_rate=0.0, seed=237))
    assert "nothing was learned, for learning_rate is 0" in outputs["train"]["text"][0]
    state = client.get_json(f"/lora_kiln/runs/{outputs['train']['summary'][0]['run']}")
    assert "learning_rate is 0: nothing will be learned" in state["start"]
    graph = trained(steps=2, learning_rate=0.0, seed=237)
    graph |= {
        "on": node("KilnApplyLora", model=["model", 0], lora=["train", 0], strength=1.0),
        **sampling("drawn", ["on", 0], batch=1),
    }
    run_graph(graph)


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_start_from_other_trainers_scale_and_rank(
    host: RunningHost, run_graph: RunGraph, format: str
) -> None:
    """alpha is a tensor in kohya's files and metadata in diffusers'; this run has another alpha and rank."""
    options = {"steps": 6, "seed": 233, "learning_rate": 0.01, "alpha": 2.0}
    saving = saved(filename_prefix=f"test/scale_{format}", format=format)
    path = Path(run_graph({**trained(**options), **saving})["save"]["path"][0])
    begin = {"steps": 1, "seed": 234, "learning_rate": 0.0, "rank": 6, "alpha": 3.0}
    name = str(path.relative_to(host.base / "output" / "loras"))
    begun = load_file(run_graph(trained(**begin, start_from=name))["save"]["path"][0])
    expected = load_file(run_graph(trained(**options))["save"]["path"][0])
    downs = [key for key in expected if key.endswith("lora_A.weight")]
    assert downs
    for down in downs:
        up = down.replace("lora_A", "lora_B")
        change = begun[up] @ begun[down] * 3.0 / 6
        wanted = expected[up] @ expected[down] * 2.0 / 4
        assert wanted.any() and float((change - wanted).norm() / wanted.norm()) < 1e-5


def test_imported_settings_drive_the_run(run_graph: RunGraph, host: RunningHost) -> None:
    text = (
        "lora:\n  rank: 2\n  alpha: 2\n  target_modules: [to_q]\nsteps: 3\nlr_scheduler: cosine_with_warmup\n"
    )
    graph = trained(seed=241)
    graph["imported"] = node("KilnImportSettings", yaml=text)
    graph["train"]["inputs"] |= {
        "settings": ["imported", 0],
        "steps": ["imported", 1],
        "rank": ["imported", 3],
    }
    outputs = run_graph(graph)
    assert "target_modules: used as target_modules = to_q" in outputs["imported"]["text"][0]
    tensors = load_file(outputs["save"]["path"][0])
    assert len({k.split(".lora")[0] for k in tensors if "lora_A" in k}) == 8
    assert all(t.shape[0] == 2 for k, t in tensors.items() if "lora_A" in k)
    graph["imported"]["inputs"]["yaml"] = (
        "rnak: 2\nsteps: 3"  # else it trains for as long as the default says
    )
    reported = run_graph(graph)["imported"]["text"][0]
    assert "rnak: not used, it is not known; the nearest known one is 'rank'" in reported.splitlines()
    graph["imported"]["inputs"]["yaml"] = "rank: many"
    with pytest.raises(GraphFailed, match="rank is 'many'"):
        run_graph(graph)


def test_on_a_model_that_other_nodes_patched(run_graph: RunGraph, host: RunningHost) -> None:
    """A LoRA is on already: it is part of what is trained on, and nothing of it is lost or doubled."""
    graph = trained(steps=3, seed=251)
    graph["first"] = node("KilnTrainLora", **{**graph["train"]["inputs"], "seed": 250})
    graph["train"]["inputs"]["model"] = ["first", 1]
    before = sampled_files(host, run_graph({**loaders(), **sampling("before", ["model", 0])}), "before")
    outputs = run_graph(graph)
    assert outputs["train"]["text"][0].startswith("done: 3 steps")
    after = sampled_files(host, run_graph({**loaders(), **sampling("after", ["model", 0])}), "after")
    assert after == before
    text = (run_folder(host, outputs) / "run.toml").read_text("utf-8")
    assert 'loader = ""' in text  # no file holds this model, and the run file says so


def test_full_disk_loses_nothing(host: RunningHost, run_graph: RunGraph, client: HostClient) -> None:
    """The folder of runs cannot be written: a clear sentence, and the next run is as ever."""
    runs = host.base / "user" / "__lora_kiln" / "runs"
    aside = runs.with_name("runs aside")
    runs.rename(aside)
    runs.write_text("in the way")
    try:
        failure = failure_of(client.wait(client.queue_prompt(trained(steps=2, seed=261))))
        assert failure is not None and "Cannot write" in failure and "check free space" in failure
    finally:
        runs.unlink()
        aside.rename(runs)
    assert run_graph(trained(steps=2, seed=261))["train"]["text"][0].startswith("done: 2 steps")


def test_an_error_in_a_sampler_beside_it_loses_nothing(
    host: RunningHost, client: HostClient, run_graph: RunGraph
) -> None:
    """Of the same prompt: the error is the sampler's own, the run keeps its steps, the model is as it was."""
    before = sampled_files(host, run_graph({**loaders(), **sampling("before", ["model", 0])}), "before")
    options = {"steps": 100_000, "seed": 265, "checkpoint_every": 0}
    graph = {
        **trained(**options),
        "broken": node("ProbeBrokenModel", model=["model", 0]),
        **sampling("beside", ["broken", 0]),
    }
    failure = failure_of(client.wait(client.queue_prompt(graph), timeout=120))
    assert failure is not None and "beside sampler (KSampler)" in failure
    assert "this model is broken on purpose" in failure
    run = client.get_json("/lora_kiln/runs")["runs"][-1]
    (checkpoint,) = (host.base / "user" / "__lora_kiln" / "runs" / run["run"]).glob("step-*")
    steps = json.loads((checkpoint / "state.json").read_text("utf-8"))["step"]
    assert steps >= 3
    after = sampled_files(host, run_graph({**loaders(), **sampling("after", ["model", 0])}), "after")
    assert after == before
    rest = run_graph(trained(**{**options, "steps": steps + 2}, resume="latest"))
    assert (
        rest["train"]["summary"][0] | {"run": run["run"], "steps": steps + 2} == rest["train"]["summary"][0]
    )


def headless(host: RunningHost, run_file: Path, launch: list[str]) -> Path:
    command = [*launch, str(REPO / "headless.py"), "train", str(run_file), "--base-directory", str(host.base)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ}, cwd=run_file.parent
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Path(done.stdout.splitlines()[-1])


def exported(host: RunningHost, outputs: dict[str, Any], tmp_path: Path, **changes: str) -> Path:
    """The run's own files, copied elsewhere."""
    folder = run_folder(host, outputs)
    text = (folder / "run.toml").read_text("utf-8")
    for old, new in changes.items():
        assert f"{old} = " in text
        text = "\n".join(
            f"{old} = {new}" if line.startswith(f"{old} = ") else line for line in text.splitlines()
        )
    (tmp_path / "run.toml").write_text(text + "\n", "utf-8")
    (tmp_path / "dataset.json").write_text((folder / "dataset.json").read_text("utf-8"), "utf-8")
    return tmp_path / "run.toml"


def killed_at(host: RunningHost, run_file: Path, step: int) -> str:
    """Kill a headless run when it has written the checkpoint of a step; the run's id."""
    command = [sys.executable, str(REPO / "headless.py"), "train", str(run_file)]
    with subprocess.Popen(
        [*command, "--base-directory", str(host.base)], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("checkpoint ") and line.rstrip().endswith(f"step-{step:08d}"):
                process.kill()
                break
    assert process.returncode not in (0, 1), "".join(lines)
    return Path(lines[-1].removeprefix("checkpoint ").strip()).parent.name


def test_headless_killed_and_resumed_gives_the_same_bits(
    host: RunningHost, run_graph: RunGraph, tmp_path: Path
) -> None:
    graph = trained(steps=20, seed=271)
    graph["validation"] = node("KilnValidationSettings", every=3, levels=2, patience=0, result="last")
    graph["train"]["inputs"]["settings"] = ["validation", 0]
    outputs = run_graph(graph)
    run = killed_at(host, exported(host, outputs, tmp_path, checkpoint_every="1"), 2)
    assert not (tmp_path / "lora.safetensors").exists()
    path = headless(host, exported(host, outputs, tmp_path, resume=f'"{run}"'), [sys.executable])
    assert path == tmp_path / "lora.safetensors"
    ours, expected = load_file(path), load_file(outputs["save"]["path"][0])
    assert ours.keys() == expected.keys() and all(ours[k].equal(expected[k]) for k in expected)


def test_headless_on_two_processes(host: RunningHost, run_graph: RunGraph, tmp_path: Path) -> None:
    """accelerate launch, two processes with half the batch each: the node's LoRA to 1e-5."""
    graph = trained(steps=4, seed=281, learning_rate=2e-4)
    graph["adapter"] = node(
        "KilnAdapterSettings", dropout=0.0, target_modules=""
    )  # masks hang on the process
    graph["train"]["inputs"]["settings"] = ["adapter", 0]
    outputs = run_graph(graph)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += [
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]
    path = headless(host, exported(host, outputs, tmp_path, batch_size="2"), launch)
    ours, expected = load_file(path), load_file(outputs["save"]["path"][0])
    assert ours.keys() == expected.keys()
    worst = max(float((ours[k] - expected[k]).abs().max()) for k in expected)
    print(f"worst difference {worst:.2g}")
    assert worst < 1e-5
