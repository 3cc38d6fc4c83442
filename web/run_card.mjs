// @ts-check
// One run in the runs tab: what it was, how it went, what can be done with it.
import { deleteRun, fetchGraph, fetchItems, fetchLeavings, rateRun, sampleAddress } from "./api.mjs";
import { make } from "./dom.mjs";
import { openGraph, resume, trainer, useSettings } from "./graph_actions.mjs";
import { roving } from "./roving.mjs";
import { clock } from "./series.mjs";
import { inUsersLanguage, t } from "./texts.mjs";

/** @typedef {import("./api.mjs").RunRecord} RunRecord */

/**
 * @typedef {Object} Surroundings what a card needs of the tab
 * @property {any} app
 * @property {(sentence: string, severity?: "info"|"warn") => void} say
 * @property {boolean} compared
 * @property {(run: RunRecord, chosen: boolean) => void} compare
 * @property {(run: RunRecord) => void} gone
 */

/**
 * A card that stays the same element while its run goes on: what the user types or is asked in it is not lost.
 * @typedef {Object} Card
 * @property {HTMLLIElement} element
 * @property {(run: RunRecord) => void} update the record is another one
 * @property {(state: import("./api.mjs").RunState) => void} follow the run has gone on
 */

/**
 * @param {RunRecord} run
 * @param {Surroundings} around
 * @returns {Card}
 */
export function card(run, around) {
  const { app, say } = around;
  const extra = make("div", {});
  const tick = make("input", {
    type: "checkbox",
    id: `kiln-compare-${run.id}`,
    "aria-label": t("compareRun", run.id),
    onchange: () => around.compare(run, tick.checked),
  });
  tick.checked = around.compared;

  /** @param {() => any} act errors become a sentence for the user */
  const trying = (act) => async () => {
    try {
      await act();
    } catch (error) {
      say(/** @type {Error} */ (error).message, "warn");
    }
  };
  /** @param {string} name @param {() => any} act */
  const action = (name, act) =>
    make("button", { type: "button", "data-kiln": name, title: t(`${name}Help`), text: t(name), onclick: trying(act) });

  const name = nameOf(run, trying);
  const status = make("span", {});
  const body = make("div", { class: "kiln-body" });
  const rating = stars(run, trying);
  const remarks = notes(run, trying);
  const actions = make(
    "div",
    { class: "kiln-row", role: "toolbar", "aria-label": t("actions", run.id) },
    action("openGraph", async () => openGraph(app, await fetchGraph(run.id), run.name || `run ${run.id}`)),
    action("useSettings", () => say(useSettings(trainer(app), run))),
    action("resumeRun", () => {
      resume(trainer(app), run);
      say(t("resumeSet", run.id, run.step));
    }),
    action("showItems", async () => extra.replaceChildren(hardItems(await fetchItems(run.id)))),
    action("showLora", () => extra.replaceChildren(path(run))),
    action("delete", async () => ask(run, around, extra, trying)),
  );
  const settle = roving(actions);
  const element = make(
    "li",
    { class: "kiln-card", "data-run": run.id },
    make("div", { class: "kiln-head" }, tick, name, status),
    body,
    make("div", { class: "kiln-row" }, rating.group, remarks),
    actions,
    extra,
  );
  const refresh = () => {
    status.textContent = t(`status_${run.status}`);
    body.replaceChildren(...[picture(run), facts(run)].filter((part) => part !== null));
    for (const [field, value] of /** @type {[HTMLInputElement, string][]} */ ([[name, run.name], [remarks, run.notes]])) {
      if (document.activeElement !== field) field.value = value;
    }
    rating.show();
    const possible = { openGraph: !!run.lora, resumeRun: run.resumable && !run.live, showLora: !!run.lora, delete: !run.live };
    for (const [what, allowed] of Object.entries(possible)) {
      /** @type {HTMLButtonElement} */ (actions.querySelector(`[data-kiln=${what}]`)).disabled = !allowed;
    }
    settle();
  };
  refresh();
  return {
    element,
    update: (fresh) => {
      Object.assign(run, fresh);
      refresh();
    },
    follow: (state) => {
      status.textContent = t(`status_${state.status}`);
      const line = body.querySelector("[data-kiln=progress]");
      if (line) line.textContent = t("progress", state.step, state.total, clock(run.seconds), run.items);
    },
  };
}

/** @param {RunRecord} run @returns {string} when it began, for people */
const when = (run) => new Date(run.started * 1000).toLocaleString([], { dateStyle: "short", timeStyle: "short" });

/** @param {RunRecord} run @param {(act: () => any) => () => Promise<void>} trying */
function nameOf(run, trying) {
  const field = make("input", {
    type: "text",
    class: "kiln-name",
    value: run.name,
    placeholder: when(run),
    title: t("nameHelp"),
    "aria-label": t("nameOf", run.id),
    maxlength: 100,
    onchange: trying(async () => {
      run.name = (await rateRun(run.id, { name: field.value })).name;
    }),
    onkeydown: (/** @type {KeyboardEvent} */ event) => event.stopPropagation(), // the graph has shortcuts of its own
  });
  return field;
}

/** @param {RunRecord} run the newest sample, or nothing */
function picture(run) {
  if (!run.samples.length) return null;
  const place = run.samples.lastIndexOf(Math.max(...run.samples));
  return make("img", { src: sampleAddress(run.id, place), loading: "lazy", alt: t("sampleAt", run.id, run.samples[place]) });
}

/** @param {RunRecord} run */
function facts(run) {
  const { adapter = {}, optimizer = {} } = run.config;
  const figures = [
    run.loss === null ? "" : t("loss", run.loss.toPrecision(4)),
    run.best_loss === null ? "" : t("bestLoss", run.best_loss.toPrecision(4), run.best_step ?? 0),
  ].filter(Boolean);
  const others = Object.entries(run.changed).flatMap(([theme, value]) =>
    typeof value === "object" && value !== null && !Array.isArray(value) ? Object.entries(value) : [[theme, value]],
  );
  const shown = new Set(["kind", "rank", "alpha", "learning_rate", "batch_size", "steps"]);
  const rest = others.filter(([name]) => !shown.has(String(name))).map(([name, value]) => `${name} ${value}`);
  const rate = Number(optimizer.learning_rate).toExponential().replace("+", "");
  const kind = adapter.kind ?? "lora";
  return make(
    "div",
    { class: "kiln-facts" },
    make("div", { class: "kiln-faint", text: `${when(run)}  ·  ${run.id}` }),
    run.parent && make("div", { class: "kiln-faint", text: t("fromRun", run.parent) }),
    make("div", { text: t("facts", kind, adapter.rank, adapter.alpha, rate, run.config.batch_size) }),
    make("div", { "data-kiln": "progress", text: t("progress", run.step, run.config.steps, clock(run.seconds), run.items) }),
    figures.length > 0 && make("div", { text: figures.join(", ") }),
    rest.length > 0 && make("div", { class: "kiln-faint", text: t("otherSettings", rest.join(", ")) }),
    ...[run.message, ...run.advice].filter(Boolean).map((text) => make("div", { class: "kiln-faint", text: inUsersLanguage(text) })),
  );
}

/** @param {RunRecord} run @param {(act: () => any) => () => Promise<void>} trying */
function stars(run, trying) {
  const buttons = [1, 2, 3, 4, 5].map((count) =>
    make("button", {
      type: "button",
      "aria-label": t("star", count),
      onclick: trying(async () => {
        // The same star again takes the rating back
        run.rating = (await rateRun(run.id, { rating: run.rating === count ? 0 : count })).rating;
        show();
      }),
    }),
  );
  const show = () =>
    buttons.forEach((button, i) => {
      button.textContent = i < run.rating ? "★" : "☆";
      button.setAttribute("aria-pressed", String(i < run.rating));
    });
  show();
  const group = make("span", { class: "kiln-stars", role: "group", "aria-label": t("stars") }, ...buttons);
  roving(group);
  return { group, show };
}

/** @param {RunRecord} run @param {(act: () => any) => () => Promise<void>} trying */
function notes(run, trying) {
  const field = make("input", {
    type: "text",
    value: run.notes,
    placeholder: t("notes"),
    "aria-label": t("notesOf", run.id),
    maxlength: 2000,
    onchange: trying(async () => {
      run.notes = (await rateRun(run.id, { notes: field.value })).notes;
    }),
    onkeydown: (/** @type {KeyboardEvent} */ event) => event.stopPropagation(), // the graph has shortcuts of its own
  });
  return field;
}

/** @param {{high: import("./api.mjs").HardItem[], low: import("./api.mjs").HardItem[]}} found */
function hardItems({ high, low }) {
  /** @param {import("./api.mjs").HardItem} item */
  const tile = (item) => {
    const name = item.name || t("nameLeftOut");
    const label = t("itemFigures", item.number, name, item.times.toFixed(2), item.draws);
    return make(
      "figure",
      { class: item.stands_out && "kiln-apart", title: item.stands_out ? `${label} ${t("itemApart")}` : label },
      item.picture ? make("img", { src: item.picture, alt: label }) : make("span", { class: "kiln-nothing", text: t("noPicture") }),
      make("figcaption", {}, make("b", { text: t("itemTimes", item.times.toFixed(2)) }), ` ${name}`),
    );
  };
  /** @param {"high" | "low"} end @param {import("./api.mjs").HardItem[]} items */
  const row = (end, items) =>
    items.length > 0 &&
    make("section", { "aria-label": t(`items_${end}`) }, make("div", { text: t(`items_${end}`) }), make("div", { class: "kiln-items" }, ...items.map(tile)));
  return make("div", { "data-kiln": "items" }, row("high", high), row("low", low), make("div", { class: "kiln-faint", text: t("itemsHelp") }));
}

/** @param {RunRecord} run */
function path(run) {
  const field = make("input", { type: "text", readonly: true, value: run.lora, "aria-label": t("loraPath") });
  const copy = () => {
    field.select();
    // Without a secure origin there is no clipboard; the text is selected then
    navigator.clipboard?.writeText(run.lora).catch(() => {});
  };
  return make("div", { class: "kiln-row" }, field, make("button", { type: "button", text: t("copy"), onclick: copy }));
}

/**
 * Say what deleting would remove, and ask.
 * @param {RunRecord} run
 * @param {Surroundings} around
 * @param {HTMLElement} place
 * @param {(act: () => any) => () => Promise<void>} trying
 */
async function ask(run, around, place, trying) {
  const found = await fetchLeavings(run.id);
  const goes = [
    t("goesEntry"),
    found.checkpoints && t("goesCheckpoints", found.checkpoints),
    found.samples && t("goesSamples", found.samples),
    found.lora && t("goesLora"),
    found.bytes && t("goesBytes", (found.bytes / 1e6).toFixed(1)),
  ].filter(Boolean);
  const no = make("button", { type: "button", text: t("keep"), onclick: () => place.replaceChildren() });
  const yes = make("button", {
    type: "button",
    "data-kiln": "reallyDelete",
    text: t("delete"),
    onclick: trying(async () => {
      await deleteRun(run.id);
      around.say(t("deleted", run.id));
      around.gone(run);
    }),
  });
  const kept = found.kept.length ? `, ${found.kept.join(", ")}` : "";
  const text = `${t("deleteAsk", run.id, goes.join(", "))} ${t("deleteKeeps", kept)}`;
  const leave = (/** @type {KeyboardEvent} */ event) => event.key === "Escape" && place.replaceChildren();
  place.replaceChildren(
    make(
      "div",
      { class: "kiln-ask", role: "alertdialog", "aria-label": t("delete"), onkeydown: leave },
      make("div", { text }),
      make("div", { class: "kiln-row" }, no, yes),
    ),
  );
  no.focus();
}
