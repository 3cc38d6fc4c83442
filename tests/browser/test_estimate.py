"""The memory line on the training node follows the widgets before any run."""

from __future__ import annotations

from playwright.sync_api import expect

from scripts.host_client import HostClient

from .conftest import Canvas

SET = """([kind, name, value]) => {
    const node = (window.app.graph.nodes ?? window.app.graph._nodes).find(n => n.type === kind);
    node.widgets.find(w => w.name === name).value = value;
}"""


def test_it_follows_the_graph(canvas: Canvas, client: HostClient) -> None:
    canvas.load(steps=10)
    line = canvas.page.locator(".kiln-estimate")
    expect(line).to_contain_text("Memory: about 0.")
    before = line.text_content()
    canvas.page.evaluate(SET, ["KilnTrainLora", "rank", 128])
    expect(line).not_to_have_text(before or "")
    wide = line.text_content()
    canvas.page.evaluate(SET, ["KilnEncodeDataset", "resolution", 32])
    expect(line).to_contain_text("for items up to 32 x 32")
    canvas.page.evaluate(SET, ["KilnEncodeDataset", "resolution", 64])
    expect(line).to_have_text(wide or "")
    canvas.shot("follows")
    canvas.page.evaluate(SET, ["KilnTrainLora", "batch_size", 0])
    expect(line).to_have_text("Memory: batch_size is 0; it must lie between 1 and 256.")
    canvas.page.evaluate(SET, ["KilnTrainLora", "batch_size", 1])
    expect(line).to_contain_text("Memory: about")
    canvas.page.evaluate(
        """() => {
            const node = (window.app.graph.nodes ?? window.app.graph._nodes).find(n => n.type === 'KilnTrainLora');
            const slider = LiteGraph.createNode('KilnSliderTargets');
            window.app.graph.add(slider);
            slider.connect(0, node, node.inputs.findIndex(i => i.name === 'encoded'));
        }"""
    )
    expect(line).to_contain_text("said when the run begins")
    canvas.page.evaluate(
        """() => {
            const node = (window.app.graph.nodes ?? window.app.graph._nodes).find(n => n.type === 'KilnTrainLora');
            node.disconnectInput(node.inputs.findIndex(i => i.name === 'model'));
        }"""
    )
    expect(line).to_contain_text("connect a Load Diffusion Model")
    assert client.get_json("/queue")["queue_running"] == []
