"""Bad input: one sentence on the node that caused it, nothing half-written, and the server lives on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from scripts.host import RunningHost
from scripts.host_client import HostClient, HostError

from .conftest import GraphFailed, RunGraph
from .graphs import dataset, loaders, node, saved, training


def load_only(folder: str, **options: Any) -> dict[str, Any]:
    graph = dataset(folder, **options)
    caption = {"template": "{caption}", "values": "", "trigger_word": "", "missing": "drop clause", "seed": 0}
    return {
        "dataset": graph["dataset"],
        "captions": node("KilnCaptionTemplate", dataset=["dataset", 0], **caption),
        "show": node("PreviewAny", source=["captions", 1]),
    }


@pytest.fixture
def folder(host: RunningHost, request: pytest.FixtureRequest) -> Path:
    made = host.base / "input" / request.node.name.replace("[", "_").replace("]", "")
    made.mkdir()
    return made


def put_picture(folder: Path, name: str = "a.png", caption: bytes | None = None) -> None:
    Image.new("RGB", (64, 64), "red").save(folder / name)
    if caption is not None:
        (folder / name).with_suffix(".txt").write_bytes(caption)


def test_missing_folder(run_graph: RunGraph) -> None:
    with pytest.raises(GraphFailed, match=r"node dataset \(KilnLoadDataset\): .*'nowhere' does not exist"):
        run_graph(load_only("nowhere"))


def test_empty_folder(run_graph: RunGraph, folder: Path) -> None:
    with pytest.raises(GraphFailed, match=r"node dataset .* cannot be used: it holds no image"):
        run_graph(load_only(folder.name))


@pytest.mark.parametrize("escape", ["../..", "/etc", "a/../../../x", "~"])
def test_folder_outside_is_refused(run_graph: RunGraph, escape: str) -> None:
    with pytest.raises(GraphFailed, match=r"(lies outside ComfyUI/input|does not exist under)"):
        run_graph(load_only(escape))


def test_link_out_of_input_is_refused(run_graph: RunGraph, host: RunningHost) -> None:
    link = host.base / "input" / "link_outside"
    link.symlink_to("/usr")
    with pytest.raises(GraphFailed, match="lies outside ComfyUI/input; move it there, or open its place"):
        run_graph(load_only("link_outside"))


def test_unreadable_image_stops_or_is_skipped(run_graph: RunGraph, folder: Path) -> None:
    put_picture(folder, caption=b"fine")
    (folder / "broken.png").write_text("no picture")
    with pytest.raises(GraphFailed, match=r"node dataset .*broken\.png cannot be read.*replace or remove it"):
        run_graph(load_only(folder.name))
    outputs = run_graph(load_only(folder.name, on_bad_file="skip"))
    assert "1 images, 1 with captions" in outputs["dataset"]["text"][0]
    assert "broken.png" in outputs["dataset"]["text"][0]


def test_caption_that_is_not_utf8(run_graph: RunGraph, folder: Path) -> None:
    put_picture(folder, caption="caf\u00e9".encode("latin-1"))
    with pytest.raises(
        GraphFailed, match=r"node dataset .*a\.txt is not UTF-8 text \(byte 3\); save it as UTF-8"
    ):
        run_graph(load_only(folder.name))


def test_unknown_placeholder(run_graph: RunGraph) -> None:
    graph = load_only("tiny_concept")
    graph["captions"]["inputs"]["template"] = "a {colour} thing"
    with pytest.raises(
        GraphFailed, match=r"node captions .*uses \{colour\}, but there is no such field; known are"
    ):
        run_graph(graph)


def test_rank_zero_is_refused_before_anything_runs(client: HostClient) -> None:
    with pytest.raises(HostError, match=r"(?s)\"train\".*smaller than min of 1.*\"rank\""):
        client.queue_prompt({**loaders(), **dataset(), **training(rank=0), **saved()})


def test_contradicting_settings(run_graph: RunGraph) -> None:
    graph = {**loaders(), **dataset(), **training(), **saved()}
    graph["objective"] = node(
        "KilnObjectiveSettings", timestep_sampling="uniform", shift=1.0, min_timestep=0.9, max_timestep=0.2
    )
    graph["train"]["inputs"]["settings"] = ["objective", 0]
    with pytest.raises(GraphFailed, match=r"node objective .*the minimum must be smaller"):
        run_graph(graph)


def test_targets_that_match_nothing(run_graph: RunGraph) -> None:
    graph = {**loaders(), **dataset(), **training(), **saved()}
    graph["adapter"] = node("KilnAdapterSettings", dropout=0.0, target_modules="attn.to_qkv")
    graph["train"]["inputs"]["settings"] = ["adapter", 0]
    with pytest.raises(
        GraphFailed, match=r"node train .*'attn.to_qkv' matches no linear layer .*self_attn.k"
    ):
        run_graph(graph)


def test_full_disk(run_graph: RunGraph, host: RunningHost) -> None:
    """While saving the LoRA, and then while encoding: nothing is left behind, and afterwards it works."""
    graph = {**loaders(), **dataset(), **training(seed=81), **saved(filename_prefix="full/lora")}
    run_graph(graph)
    files = sorted(host.base.glob("output/loras/full/*"))
    assert len(files) == 1
    run_graph({"disk": node("ProbeDisk", full=True)})
    try:
        graph["save"]["inputs"]["dtype"] = "bf16"
        with pytest.raises(
            GraphFailed, match=r"node save \(KilnSaveLora\).*No space left on device.*check free space"
        ):
            run_graph(graph)
        graph["encoded"]["inputs"]["resolution"] = 32
        with pytest.raises(GraphFailed, match=r"node encoded \(KilnEncodeDataset\).*No space left on device"):
            run_graph(graph)
    finally:
        run_graph({"disk": node("ProbeDisk", full=False)})
    assert sorted(host.base.glob("output/loras/full/*")) == files
    assert not list(host.base.glob("user/__lora_kiln/**/*.tmp"))
    run_graph(graph)


def test_damaged_lora_file(run_graph: RunGraph, host: RunningHost, client: HostClient) -> None:
    path = host.base / "models" / "loras" / "damaged.safetensors"
    path.write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    load = node("KilnLoadLora", lora_name="damaged.safetensors", model=["model", 0], strength=1.0)
    graph = {**loaders(), "load": load, "probe": node("ProbeModel", model=["load", 0])}
    with pytest.raises(GraphFailed, match=r"node load .*damaged.safetensors is cut off in its header"):
        run_graph(graph)


def test_prefix_that_escapes(run_graph: RunGraph, host: RunningHost) -> None:
    graph = {**loaders(), **dataset(), **training(seed=91), **saved(filename_prefix="../../../escaped")}
    with pytest.raises(GraphFailed, match=r"node save .*leaves ComfyUI/output/loras; use a plain name"):
        run_graph(graph)
    assert not list(host.base.rglob("escaped*"))


def test_an_impossible_value_refuses_the_whole_prompt(client: HostClient) -> None:
    """The host alone would run the outputs that do not depend on the node, and call that a success."""
    other = {"other": node("PreviewAny", source=["dataset", 0])}
    before = client.get_json("/history")
    for wrong in ({"steps": 0}, {"rank": "many"}, {"rank": 100_000}):
        graph = {**loaders(), **dataset(), **training(**wrong), **saved(), **other}
        with pytest.raises(HostError, match=rf"status 400.*{next(iter(wrong))}"):
            client.queue_prompt(graph)
    lacking = {**loaders(), **dataset(), **training(), **saved(), **other}
    del lacking["train"]["inputs"]["model"]
    with pytest.raises(HostError, match=r"status 400.*model"):
        client.queue_prompt(lacking)
    assert client.get_json("/history") == before
