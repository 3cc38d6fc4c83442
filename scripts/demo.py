"""The demo: the tiny workflow on a real ComfyUI, with a progress bar here and the pictures in demo_output/.

Run it through demo.sh, which makes the environment first. Everything happens over the server's HTTP and websocket
interface, as a browser would do it. Leaves

    grid.png           four samples each: without the LoRA, at strength 0.5, 0.8 and 1.0
    loss.png           the loss curve
    lora.safetensors   what was trained; dropping it on the canvas brings back the graph
    summary.json       host, steps, seconds, losses, concept scores (share of samples that show the new shape)
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from scripts.host import serve, start_host
from scripts.host_client import Event, HostClient, HostError, failure_of
from scripts.host_files import REPO, workspace
from scripts.workflow_graph import to_prompt
from tests.tiny_wan.world import concept_score

WORKFLOW = REPO / "tests" / "tiny_wan" / "workflows" / "train_then_sample_tiny.json"
OUTPUT = REPO / "demo_output"
COLUMNS = ("without", "strength 0.5", "strength 0.8", "strength 1.0")  # titles of the save nodes
BAR = 28


class ProgressBar:
    """One line in the terminal that follows the nodes' own progress texts; plain lines where there is no terminal."""

    def __init__(self, titles: dict[str, str]) -> None:
        self._titles = titles
        self._live = sys.stderr.isatty()
        self._last = ""
        self._bar = ""

    def __call__(self, event: Event) -> None:
        if event.type == "executing" and event.data.get("node") in self._titles:
            self._bar = ""
            self._show(self._titles[event.data["node"]], important=True)
        elif event.type == "progress_state":
            for key, state in event.data["nodes"].items():
                if state["state"] == "running" and state["max"] > 1 and key in self._titles:
                    share = state["value"] / state["max"]
                    self._bar = f"[{'#' * round(BAR * share):{BAR}}] {share:4.0%} "
                    self._show(self._bar + self._titles[key])
        elif event.type == "text":
            self._show(self._bar + event.data["text"].splitlines()[0])

    def _show(self, line: str, important: bool = False) -> None:
        if self._live:
            print(f"\r\033[K{line[:110]}", end="", file=sys.stderr, flush=True)
        elif important and line != self._last:
            print(line, file=sys.stderr, flush=True)
            self._last = line

    def close(self) -> None:
        if self._live:
            print(file=sys.stderr)


def run_workflow(client: HostClient, output: Path) -> dict[str, Any]:
    """Run the tiny workflow on a server and fill the folder `output`; returns the summary.

    Raises:
        HostError: a node failed.
    """
    workflow = json.loads(WORKFLOW.read_text("utf-8"))
    prompt = to_prompt(workflow, client.object_info())
    titles = {key: node["_meta"]["title"] or node["class_type"] for key, node in prompt.items()}
    bar = ProgressBar(titles)
    started = time.monotonic()
    with client.events(bar):
        queued = client.queue_prompt(prompt, {"extra_pnginfo": {"workflow": workflow}})
        entry = client.wait(queued, timeout=1800)
    bar.close()
    failure = failure_of(entry)
    if failure is not None:
        raise HostError(f"The workflow failed: {failure}.")
    seconds = time.monotonic() - started
    outputs = {titles[key]: value for key, value in entry["outputs"].items()}
    columns = {title: download(client, outputs[title]["images"]) for title in COLUMNS}
    output.mkdir(exist_ok=True)
    label_grid(columns).save(output / "grid.png")
    download(client, outputs["KilnLossPlot"]["images"])[0].save(output / "loss.png")
    shutil.copyfile(outputs["KilnSaveLora"]["path"][0], output / "lora.safetensors")
    summary = {
        "host_version": client.get_json("/system_stats")["system"]["comfyui_version"],
        **outputs["KilnTrainLora"]["summary"][0],
        "workflow_seconds": round(seconds, 1),
        "concept_score": {
            title: round(concept_score(np.asarray(image) for image in images), 2)
            for title, images in columns.items()
        },
        "samples_per_score": len(columns["without"]),
        "grid": str(output / "grid.png"),
        "loss_plot": str(output / "loss.png"),
        "lora": str(output / "lora.safetensors"),
    }
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    return summary


def download(client: HostClient, images: list[dict[str, str]]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(client.view(**image))).convert("RGB") for image in images]


def label_grid(
    columns: dict[str, list[Image.Image]], rows: int = 4, side: int = 160, gap: int = 12
) -> Image.Image:
    """The first `rows` images of each column under its title, enlarged without smoothing."""
    grid = Image.new("RGB", (len(columns) * (side + gap) + gap, rows * (side + gap) + gap + 34), "white")
    draw = ImageDraw.Draw(grid)
    for column, (title, images) in enumerate(columns.items()):
        x = gap + column * (side + gap)
        draw.text((x + side / 2, 22), title, fill="#222222", font=ImageFont.load_default(17), anchor="mm")
        for row, image in enumerate(images[:rows]):
            grid.paste(image.resize((side, side), Image.Resampling.NEAREST), (x, 40 + row * (side + gap)))
    return grid


def serve_demo(port: int | None) -> int:
    """ComfyUI in the foreground, with the tiny models and the template in place."""
    print(
        "When the server is up, open the address below and choose Templates -> tiny_wan_demo -> "
        "train_then_sample_tiny, then press Run. Ctrl-C ends it.",
        file=sys.stderr,
    )
    return serve(workspace("demo"), port, [])


def main() -> int:
    parser = argparse.ArgumentParser(description="Train a LoRA in a real ComfyUI graph and sample with it.")
    parser.add_argument("--serve", action="store_true", help="leave ComfyUI running instead")
    parser.add_argument("--port", type=int, help="for --serve; default 8188")
    arguments = parser.parse_args()
    try:
        if arguments.serve:
            return serve_demo(arguments.port or 8188)
        with start_host(workspace("demo")) as host:
            print(f"ComfyUI runs at {host.url}, its log is {host.log_path}", file=sys.stderr)
            summary = run_workflow(HostClient(host.url), OUTPUT)
    except HostError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print(json.dumps(summary, indent=2))
    print(f"Look at {summary['grid']}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
