"""Everything can be reached and read with the keyboard, and the page stays whole at 200 %."""

from __future__ import annotations

from playwright.sync_api import Browser, expect

from scripts.host import RunningHost
from scripts.host_client import HostClient

from .conftest import RUNS_TAB, Canvas, done_now, finished
from .test_dataset_page import complaints


def train(canvas: Canvas, client: HostClient) -> None:
    canvas.load(steps=20)
    seed = done_now(client)  # another one each time: the same graph again would train nothing
    canvas.page.evaluate(
        """seed => {
            const node = (window.app.graph.nodes ?? window.app.graph._nodes).find(n => n.type === 'KilnTrainLora');
            node.widgets.find(w => w.name === 'seed').value = seed;
            window.app.queuePrompt(0);
        }""",
        seed,
    )
    finished(client, seed + 1)
    canvas.wait_panel("panel.state?.status === 'done'")
    client.interrupt()


def test_every_control_has_a_name_and_takes_the_focus(canvas: Canvas, client: HostClient) -> None:
    train(canvas, client)
    canvas.page.click(RUNS_TAB)
    canvas.page.wait_for_selector(".kiln-runs .kiln-card")
    nameless = canvas.page.evaluate(
        """() => [...document.querySelectorAll('.kiln-runs :is(button, input, select, canvas), .kiln-panel button')]
            .filter(e => e.getAttribute('aria-hidden') !== 'true')
            .filter(e => !(e.getAttribute('aria-label') || e.textContent.trim())
                || (e.tabIndex < 0 && !e.disabled && !e.closest('[data-kiln-group]')))
            .map(e => e.outerHTML)"""
    )
    assert nameless == []
    stops = canvas.page.evaluate(
        """() => [...document.querySelectorAll('.kiln-runs .kiln-card')].map(card => ({
            card: [...card.querySelectorAll('button, input')].filter(e => e.tabIndex >= 0 && !e.disabled).length,
            groups: [...card.querySelectorAll('[data-kiln-group]')].map(
                group => [...group.querySelectorAll('button')].filter(e => e.tabIndex >= 0).length),
        }))"""
    )
    assert all(s == {"card": 5, "groups": [1, 1]} for s in stops), "name, choice, stars, notes, actions"


def test_a_group_is_walked_with_the_arrow_keys(canvas: Canvas, client: HostClient) -> None:
    train(canvas, client)
    canvas.page.click(RUNS_TAB)
    card = canvas.page.locator(".kiln-card").first
    actions = card.get_by_role("toolbar").get_by_role("button")
    actions.first.focus()
    seen = [canvas.page.evaluate("document.activeElement.dataset.kiln")]
    for _ in range(actions.count() - 1):
        canvas.page.keyboard.press("ArrowRight")
        seen.append(canvas.page.evaluate("document.activeElement.dataset.kiln"))
    assert seen == ["openGraph", "useSettings", "resumeRun", "showItems", "showLora", "delete"]
    canvas.page.keyboard.press("Home")
    assert canvas.page.evaluate("document.activeElement.dataset.kiln") == "openGraph"
    card.get_by_label("1 of 5 stars").focus()
    canvas.page.keyboard.press("End")
    canvas.page.keyboard.press("Enter")
    expect(card.get_by_label("5 of 5 stars")).to_have_attribute("aria-pressed", "true")


def test_the_chart_is_a_whole_slider_before_any_run(canvas: Canvas) -> None:
    canvas.load(steps=20)
    chart = canvas.page.locator(".kiln-panel canvas").first
    expect(chart).to_have_attribute("role", "slider")
    for name, value in {"valuenow": "0", "valuemin": "0", "valuemax": "1"}.items():
        expect(chart).to_have_attribute(f"aria-{name}", value)
    expect(chart).to_have_attribute("aria-valuetext", "The loss will appear here while training.")


def test_values_are_read_with_the_arrow_keys(canvas: Canvas, client: HostClient) -> None:
    train(canvas, client)
    chart = canvas.page.locator(".kiln-panel canvas").first
    chart.focus()
    chart.press("End")
    expect(chart).to_have_attribute("aria-valuenow", "20")
    chart.press("ArrowLeft")
    expect(chart).to_have_attribute("aria-valuenow", "19")
    expect(chart).to_have_attribute("aria-valuemax", "20")
    text = chart.get_attribute("aria-valuetext") or ""
    assert text.startswith("19: 0.") and "lr" in text
    for _ in range(5):
        chart.press("+")
    chart.press("Home")
    range_ = canvas.page.evaluate(
        "() => (window.app.graph.nodes ?? window.app.graph._nodes).find(n => n.kilnPanel).kilnPanel.chart.range()"
    )
    assert range_["from"] == 1 and range_["to"] < 20, "the view follows what is read"
    chart.press("0")
    canvas.shot("read")


def test_assistive_technology_reads_the_panel_and_the_runs(
    canvas: Canvas, client: HostClient, axe: str
) -> None:
    canvas.load(steps=20)
    expect(canvas.page.locator(".kiln-estimate")).to_contain_text("Memory: about")
    assert complaints(canvas, axe, ".kiln-panel") == [] and complaints(canvas, axe, ".kiln-estimate") == []
    train(canvas, client)
    assert complaints(canvas, axe, ".kiln-panel") == []
    canvas.page.click(RUNS_TAB)
    card = canvas.page.locator(".kiln-runs .kiln-card").first
    expect(card).to_be_visible()
    assert complaints(canvas, axe, ".kiln-runs") == []
    card.locator("[data-kiln=delete]").click()
    expect(card.get_by_role("alertdialog")).to_be_visible()
    assert complaints(canvas, axe, ".kiln-runs") == []


def test_a_run_is_deleted_with_the_keyboard_alone(canvas: Canvas, client: HostClient) -> None:
    train(canvas, client)
    run = client.get_json("/lora_kiln/history?limit=1")["runs"][0]["id"]
    canvas.page.click(RUNS_TAB)
    card = canvas.page.locator(f"[data-run='{run}']")
    card.locator("[data-kiln=delete]").focus()
    canvas.page.keyboard.press("Enter")
    expect(card.get_by_role("button", name="Keep it")).to_be_focused()
    canvas.page.keyboard.press("Tab")
    canvas.page.keyboard.press("Enter")
    expect(card).to_have_count(0)
    expect(canvas.page.locator(".kiln-runs input[type=search]")).to_be_focused()


def test_whole_at_200_percent(
    canvas: Canvas, client: HostClient, host: RunningHost, browser: Browser
) -> None:
    train(canvas, client)
    page = browser.new_page(
        viewport={"width": 750, "height": 500}, device_scale_factor=2
    )  # what 200 % makes of it
    large = Canvas(page, host.url, "at_200_percent")
    large.open()
    page.click(RUNS_TAB)
    page.wait_for_selector(".kiln-runs .kiln-card")
    page.locator(".kiln-card input[type=checkbox]").first.check()
    cut = page.evaluate(
        """() => {
            const tab = document.querySelector('.kiln-runs'), box = tab.getBoundingClientRect();
            const out = [...tab.querySelectorAll('button, input, select, canvas')]
                .filter(e => e.getBoundingClientRect().right > box.right + 1).map(e => e.outerHTML);
            return [...out, ...(tab.scrollWidth > tab.clientWidth ? ['scrolls sideways'] : [])];
        }"""
    )
    large.shot("tab")
    page.close()
    assert cut == [] and large.problems == []
