"""Make the subgraph blueprint "Train a LoRA" out of the starter template, by the frontend itself:

    python -m scripts.blueprint

Dataset to saved LoRA in one node: model, text encoder and VAE go in, the LoRA and the model with it come out; folder,
trigger word, preset and the usual figures stand on it. Needs Chromium.
"""

from __future__ import annotations

import json
import os

from playwright.sync_api import sync_playwright

from scripts.host_files import REPO
from scripts.node_sizes import FRONTENDS, frontend
from scripts.training_templates import STORIES
from scripts.workflows import TEMPLATES

NAME = "Train a LoRA (LoRA Kiln)"
BLUEPRINT = REPO / "subgraphs" / f"{NAME}.json"
DESCRIPTION = "From a folder of pictures or clips with captions to a saved LoRA of the connected model."
INSIDE = ("KilnLoadDataset", "KilnCaptionTemplate", "KilnEncodeDataset", "KilnTrainLora", "KilnSaveLora")
WIDGETS = {
    "KilnLoadDataset": ("folder",),
    "KilnCaptionTemplate": ("trigger_word",),
    "KilnEncodeDataset": ("resolution",),
    "KilnTrainLora": ("preset", "steps", "learning_rate", "rank", "alpha"),
    "KilnSaveLora": ("filename_prefix",),
}
MAKE = """async ([workflow, name, inside, widgets]) => {
    await window.app.loadGraphData(workflow);
    const graph = window.app.graph;
    const chosen = (graph.nodes ?? graph._nodes).filter(n => inside.includes(n.type));
    // Without a consumer outside, an output would not become one of the subgraph
    const train = chosen.find(n => n.type === 'KilnTrainLora');
    for (const [slot, kind, input] of [[0, 'KilnApplyLora', 'lora'], [1, 'KilnApplyLora', 'model']]) {
        const user = window.LiteGraph.createNode(kind);
        graph.add(user);
        train.connect(slot, user, user.inputs.findIndex(i => i.name === input));
    }
    const {subgraph, node} = graph.convertToSubgraph(new Set(chosen));
    subgraph.name = node.title = name;
    const ids = Object.fromEntries((subgraph.nodes ?? subgraph._nodes).map(n => [n.type, n.id]));
    node.properties.proxyWidgets = inside.flatMap(t => (widgets[t] ?? []).map(w => [String(ids[t]), w]));
    const all = graph.serialize();
    return JSON.stringify({node: all.nodes.find(n => n.type === subgraph.id), subgraph: all.definitions.subgraphs[0]});
}"""


def main() -> None:
    template = json.loads((TEMPLATES / f"{STORIES[0].title}.json").read_text("utf-8"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"),
            args=["--no-sandbox", "--disable-gpu"],
        )
        with frontend(FRONTENDS[0], browser) as (client, url):  # the oldest, so that all can read it
            client.post_json("/settings", {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": False})
            page = browser.new_page(viewport={"width": 1500, "height": 1000})
            page.goto(url)
            page.wait_for_function("window.app?.graph && window.app?.extensionManager")
            made = json.loads(page.evaluate(MAKE, [template, NAME, INSIDE, WIDGETS]))
        browser.close()
    node, subgraph = made["node"], made["subgraph"]
    for socket in node["inputs"]:
        socket["link"] = None
    for socket in node["outputs"]:
        socket["links"] = []
    node.update(pos=[0, 0], size=[400, 320], order=0)
    subgraph.update(category="LoRA Kiln/train", description=DESCRIPTION)
    workflow = {
        "revision": 0,
        "last_node_id": node["id"],
        "last_link_id": 0,
        "nodes": [node],
        "links": [],
        "groups": [],
        "definitions": {"subgraphs": [subgraph]},
        "config": {},
        "extra": {},
        "version": 0.4,
    }
    BLUEPRINT.parent.mkdir(exist_ok=True)
    BLUEPRINT.write_text(json.dumps(workflow, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
