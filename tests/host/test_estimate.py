"""The memory estimate that the canvas asks for before a run is the one that the run then makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from scripts.host import RunningHost
from scripts.host_client import EventStream, HostClient, HostError
from tests.media import clip, picture

from .conftest import MakeFolder, RunGraph
from .graphs import dataset, loaders, saved, training


def question(**changes: Any) -> dict[str, Any]:
    return {
        "loader": "UNETLoader",
        "file": "tiny_wan.safetensors",
        "weight_dtype": "default",
        "config": {"batch_size": 4, "adapter": {"rank": 4, "alpha": 4.0}},
        "resolution": 64,
        "max_frames": 1,
        **changes,
    }


def ask(client: HostClient, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = client.post_json("/lora_kiln/estimate", question(**changes))
    return found


def test_it_is_the_plan_of_the_run(client: HostClient, events: EventStream, run_graph: RunGraph) -> None:
    big = {"batch_size": 256, "rank": 128}  # enough to show in GiB
    client.queue_prompt({**loaders(), **dataset(), **training(steps=1000, seed=401, **big), **saved()})
    event = events.wait_for(lambda e: e.type == "lora_kiln.run" and e.data["plan"])
    client.post_json(f"/lora_kiln/runs/{event.data['run']}/stop", {})
    found = ask(client, config={"batch_size": 256, "adapter": {"rank": 128, "alpha": 4.0}})
    planned = event.data["plan"]
    assert (planned["total"], planned["parts"]) == (found["total"], found["parts"])
    assert f"at memory level {planned['level']}" in found["sentence"]
    assert found["parts"]["activations"] > 2**28


def test_it_follows_the_settings(client: HostClient) -> None:
    plain, wide, large = (
        ask(client),
        ask(client, config={"adapter": {"rank": 8}, "batch_size": 4}),
        ask(client, resolution=128),
    )
    assert wide["parts"]["adapter"] == 2 * plain["parts"]["adapter"]
    assert large["parts"]["activations"] == 4 * plain["parts"]["activations"]
    assert ask(client, max_frames=5)["parts"]["activations"] == 2 * plain["parts"]["activations"]
    assert ask(client, weight_dtype="fp8_e4m3fn")["parts"]["weights"] < plain["parts"]["weights"]
    assert sum(plain["parts"].values()) == plain["total"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"file": "../../../etc/passwd"}, "lists no model file"),
        ({"loader": "LoadAnything"}, "LoadAnything"),
        ({"config": {"steps": 0}}, "steps"),
        ({"config": {"speed": 1}}, "Unknown setting"),
        ({"config": {"adapter": {"rank": "x"}}}, "rank"),
        ({"resolution": "64"}, "resolution is not a int"),
        ({"max_frames": 0}, "max_frames is 0"),
        ({"more": 1}, "JSON object with loader"),
        ({"datasets": [{"folder": 1}]}, "datasets is a list of at most 64 objects with folder"),
        ({"datasets": [{"folder": "", "recursive": 1, "validation_folder": ""}]}, "datasets is a list"),
        ({"fps": "16"}, "fps is '16'"),
        ({"max_upscale": 0.5}, "max_upscale is 0.5"),
    ],
)
def test_wrong_questions_get_a_sentence(client: HostClient, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(HostError, match=rf"status 400.*{sentence}"):
        ask(client, **changes)


def test_a_file_that_is_no_network(client: HostClient, host: RunningHost) -> None:
    (host.base / "models" / "diffusion_models" / "broken.safetensors").write_bytes(b"nonsense")
    with pytest.raises(HostError, match=r"status 400.*broken"):
        ask(client, file="broken.safetensors")


def frames_of(client: HostClient, *folders: str, **changes: Any) -> tuple[int, int, int]:
    """Width, height and frames of the largest item."""
    sets = [{"folder": f, "recursive": False, "validation_folder": ""} for f in folders]
    found = ask(client, datasets=sets, **{"resolution": 64, "max_frames": 33, **changes})
    return found["width"], found["height"], found["frames"]


def test_it_counts_the_items_that_there_are(
    client: HostClient, run_graph: RunGraph, make_folder: MakeFolder
) -> None:
    """Stills are one frame, before anything has been read of them and after."""
    stills, clips = make_folder("estimated_stills"), make_folder("estimated_clips")
    for number in range(2):
        picture(stills / f"{number}.png", (48, 32), caption="one")
    assert frames_of(client, "estimated_stills") == (64, 64, 1), "not measured yet"
    clip(clips / "a.mp4", frames=12, size=(64, 48))
    (clips / "a.txt").write_text("it grows brighter")
    assert frames_of(client, "estimated_stills", "estimated_clips") == (64, 64, 33)
    for name in ("estimated_stills", "estimated_clips"):
        run_graph({**loaders(), **dataset(name)})
    assert frames_of(client, "estimated_stills") == (48, 32, 1)
    assert frames_of(client, "estimated_stills", "estimated_clips") == (64, 48, 9)
    assert frames_of(client, "estimated_clips", max_frames=5) == (64, 48, 5)
    assert frames_of(client, "estimated_clips", fps=8) == (64, 48, 5)
    assert frames_of(client, "estimated_stills", max_upscale=2.0) == (80, 48, 1)
    assert frames_of(client, "nowhere") == frames_of(client, "../..") == (64, 64, 33)
    plain = ask(client, resolution=64, max_frames=33)
    assert (plain["width"], plain["height"], plain["frames"]) == (64, 64, 33), (
        "from elsewhere: the largest possible"
    )


def test_control_pictures_are_not_counted(client: HostClient, make_folder: MakeFolder) -> None:
    folder = make_folder("estimated_pairs")
    picture(folder / "a.png", (48, 32))
    clip(folder / "before" / "a.mp4", frames=12, size=(64, 48))
    sets = [{"folder": folder.name, "recursive": True, "validation_folder": ""}]
    sizes = {"resolution": 64, "max_frames": 33}
    assert ask(client, datasets=sets, **sizes)["frames"] == 33, "it is an item as any other"
    sets[0]["control_folders"] = f"{folder.name}/before"
    assert ask(client, datasets=sets, **sizes)["frames"] == 1


def test_the_runs_plan_is_that_of_its_items(
    client: HostClient, events: EventStream, make_folder: MakeFolder
) -> None:
    folder = make_folder("estimated_run")
    for number in range(2):
        picture(folder / f"{number}.png", (64, 48), caption=f"number {number}")
    graph = {
        **loaders(),
        **dataset("estimated_run"),
        **training(steps=1000, seed=402, batch_size=256),
        **saved(),
    }
    client.queue_prompt(graph)
    event = events.wait_for(lambda e: e.type == "lora_kiln.run" and e.data["plan"])
    client.post_json(f"/lora_kiln/runs/{event.data['run']}/stop", {})
    sets = [{"folder": "estimated_run", "recursive": False, "validation_folder": ""}]
    config = {"batch_size": 256, "adapter": {"rank": 4, "alpha": 4.0}}
    found = ask(client, config=config, max_frames=33, datasets=sets)
    assert found["parts"] == event.data["plan"]["parts"]


def test_a_text_encoder_that_is_trained_counts(host: RunningHost, client: HostClient) -> None:
    folder = host.base / "models" / "text_encoders"
    folder.mkdir(parents=True, exist_ok=True)
    layers = {f"text_model.encoder.layers.{i}.mlp.fc1.weight": torch.zeros(64, 32) for i in range(3)}
    save_file(layers, folder / "tiny_clip.safetensors")
    plain = ask(client)
    found = ask(client, text_encoder={"loader": "CLIPLoader", "files": ["tiny_clip.safetensors"]})
    more = {name: size - plain["parts"][name] for name, size in found["parts"].items()}
    assert more["weights"] == 3 * 64 * 32 * 2, "ComfyUI holds text encoders in fp16"
    assert more["adapter"] == more["gradients"] == 3 * 4 * (64 + 32) * 4
    assert more["activations"] == 4 * 77 * 3 * (64 + 32) * 4
    for wrong, said in (
        ({"loader": "Another", "files": ["x"]}, "cannot be planned for"),
        ({"loader": "CLIPLoader", "files": ["../x.safetensors"]}, "The host lists no model file"),
        ({"loader": "CLIPLoader"}, "text_encoder is not an object"),
    ):
        with pytest.raises(HostError, match=said):
            ask(client, text_encoder=wrong)
