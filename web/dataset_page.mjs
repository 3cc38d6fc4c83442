// @ts-check
// The dataset page: every item of a folder in a grid, and beside it what is chosen, to be edited. It lies over the canvas
// as a modal dialog, so it is the same in canvas mode and in Nodes 2.0.
//
// Files are the truth. A change names the version of each item that is shown here; where another tab or program was
// faster, the server writes nothing and sends the items as they are now.
import { onDataset } from "./api.mjs";
import { kindOf, moves, passes, tagCounts } from "./captions.mjs";
import * as server from "./dataset_api.mjs";
import { BulkPanel } from "./dataset_bulk.mjs";
import { DetailPanel } from "./dataset_detail.mjs";
import { catchDrops, chooseFiles, uploadTo } from "./dataset_upload.mjs";
import { addStyle, make } from "./dom.mjs";
import { Grid } from "./grid.mjs";
import { paint } from "./mask_editor.mjs";
import { inUsersLanguage, t } from "./texts.mjs";

/** @typedef {import("./dataset_api.mjs").Item} Item */
/** @typedef {import("./dataset_api.mjs").Figures} Figures */

const TILE = { width: 184, height: 236 }; // pixels, as in dataset.css
const SIDE = 256; // of a thumbnail
const FIRST = 60; // items that fill the largest screen
const PATIENCE = 200; // milliseconds after the last key
const MOST_TAGS = 200;
const SHOWN = ["all", "missing", "model", "warnings", "stills", "clips", "masked", "aside"];
const SIZES = ["0", "512", "1024"];

/** @type {Set<DatasetPage>} */
const open = new Set();

export class DatasetPage {
  /**
   * @param {import("./dataset_api.mjs").Part} part
   * @param {import("./dataset_api.mjs").Sizes} sizes
   * @param {string[]} fieldNames that the graph's caption template uses
   */
  constructor(part, sizes, fieldNames) {
    this.part = part;
    this.sizes = sizes;
    this.fieldNames = fieldNames;
    this.writable = true;
    /** @type {Map<string, Item>} */ this.items = new Map();
    /** @type {Record<string, Figures>} */ this.figures = {};
    /** @type {Record<string, string>} */ this.bad = {}; // why items are left out, as far as that is known
    /** @type {Set<string>} */ this.controls = new Set(); // names of control pictures, which are no items
    this.there = false; // whether there is such a folder
    /** @type {Item[]} */ this.shown = [];
    /** @type {Set<string>} */ this.selected = new Set();
    this.active = ""; // name of the item that the keys go from
    this.anchor = ""; // where a range begins
    this.filter = { words: "", tag: "", show: "all", below: 0 };
    /** @type {import("./dataset_api.mjs").Undo | null} */ this.undoable = null;
    this.asked = 0; // number of the newest listing; answers to older ones are dropped
    /** @type {ReturnType<typeof setTimeout> | undefined} */ this.timer = undefined;
    /** @type {ReturnType<typeof setTimeout> | undefined} */ this.measuring = undefined;
    this.detail = new DetailPanel(this);
    this.bulk = new BulkPanel(this);
    this.words = make("input", {
      type: "search",
      placeholder: t("datasetFilter"),
      "aria-label": t("datasetFilter"),
      oninput: () => {
        clearTimeout(this.timer);
        this.timer = setTimeout(() => this.refilter({ words: this.words.value }), PATIENCE);
      },
    });
    this.show = make("select", { "data-kiln": "show", onchange: () => this.refilter({ show: this.show.value }) });
    this.below = make(
      "select",
      { onchange: () => this.refilter({ below: Number(this.below.value) }) },
      ...SIZES.map((value) => make("option", { value, text: t(`size_${value}`) })),
    );
    this.tagFilter = make("button", { type: "button", hidden: true, onclick: () => this.refilter({ tag: "" }) });
    this.heading = make("h2", { id: "kiln-page-title", text: t("dataset", this.part.folder) });
    this.counts = make("span", { class: "kiln-faint" });
    this.progress = make("span", { class: "kiln-faint" });
    this.status = make("span", { role: "status", class: "kiln-said" });
    this.undo = make("button", { type: "button", "data-kiln": "undo", text: t("undo"), disabled: true, onclick: () => this.takeBack() });
    const upload = make("button", { type: "button", "data-kiln": "pageUpload", text: t("upload"), title: t("uploadHelp"), onclick: () => this.upload() });
    const uploadFolder = make("button", { type: "button", "data-kiln": "pageUploadFolder", text: t("uploadFolder"), title: t("uploadFolderHelp"), onclick: () => chooseFiles((chosen) => this.upload(chosen), true) });
    const close = make("button", { type: "button", "data-kiln": "closePage", text: t("close"), onclick: () => this.close() });
    this.grid = this.makeGrid();
    this.side = make("div", { class: "kiln-side" });
    this.tags = make("details", { class: "kiln-tags" });
    this.left = make("details", { class: "kiln-left", hidden: true });
    this.remarks = make("details", { class: "kiln-left", hidden: true });
    this.empty = make("p", { class: "kiln-empty", hidden: true });
    this.root = make(
      "dialog",
      { class: "kiln-page", "aria-labelledby": "kiln-page-title" },
      make("header", { class: "kiln-row" }, this.heading, this.counts, this.progress, make("span", { class: "kiln-gap" }), this.status, this.undo, upload, uploadFolder, close),
      this.filterBar(),
      make(
        "div",
        { class: "kiln-columns" },
        make("div", { class: "kiln-left-column" }, this.grid.root, this.empty),
        make("aside", { class: "kiln-right-column", "aria-label": t("caption") }, this.side, this.tags, this.left, this.remarks),
      ),
    );
    this.keepFromGraph();
    catchDrops(this.root, (files) => this.upload(files));
  }

  /** The graph behind has shortcuts, and listeners for what is pasted and dropped. */
  keepFromGraph() {
    for (const kind of ["keydown", "keyup", "keypress", "paste", "copy", "cut", "wheel", "contextmenu"]) {
      this.root.addEventListener(kind, (event) => event.stopPropagation());
    }
    this.root.addEventListener("cancel", (event) => {
      event.preventDefault(); // Escape: what is being typed is saved first
      this.close();
    });
  }

  makeGrid() {
    return new Grid({
      label: t("datasetItems"),
      ...TILE,
      tile: () => this.tile(),
      isSelected: (index) => this.selected.has(this.shown[index]?.name),
      choose: (index, how) => this.choose(index, how),
      chooseAll: () => this.chooseAll(),
      open: () => this.detail.focus(),
    });
  }

  filterBar() {
    const field = (/** @type {string} */ label, /** @type {HTMLElement} */ input) => make("label", { class: "kiln-field" }, make("span", { text: label }), input);
    this.showKinds();
    return make(
      "div",
      { class: "kiln-row kiln-filter" },
      this.words,
      field(t("datasetShow"), this.show),
      field(t("datasetSize"), this.below),
      this.tagFilter,
      make("button", { type: "button", "data-kiln": "chooseAll", text: t("chooseAll"), onclick: () => this.chooseAll() }),
      make("button", { type: "button", "data-kiln": "chooseNone", text: t("chooseNone"), onclick: () => this.chooseNone() }),
    );
  }

  /** The list of what can be shown, with the kinds of warnings that there are. */
  showKinds() {
    /** @type {Map<string, number>} */ const kinds = new Map();
    for (const { warnings } of Object.values(this.figures)) {
      for (const kind of new Set(warnings.map((warning) => kindOf(warning.kind)))) kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
    }
    const options = SHOWN.map((value) => make("option", { value, text: t(`show_${value}`) }));
    for (const [kind, count] of kinds) {
      if (kind !== "no") options.push(make("option", { value: `kind:${kind}`, text: `${t(`kind_${kind}`)} (${count})` }));
    }
    this.show.replaceChildren(...options);
    this.show.value = this.filter.show;
    if (!this.show.value) this.show.value = this.filter.show = "all";
  }

  /** @returns {import("./grid.mjs").Tile} */
  tile() {
    const picture = make("img", { alt: "", decoding: "async", draggable: "false" });
    const tick = make("span", { class: "kiln-tick", "aria-hidden": "true" });
    const badges = make("span", { class: "kiln-badges" });
    const name = make("span", { class: "kiln-tile-name" });
    const caption = make("span", { class: "kiln-tile-caption" });
    const element = make("div", { class: "kiln-tile" }, picture, tick, badges, name, caption);
    let wanted = "";
    picture.onerror = () => picture.classList.add("kiln-broken");
    return {
      element,
      fill: (index) => {
        const item = this.shown[index];
        if (!item) return;
        const address = server.thumbnail(this.part.folder, item, SIDE);
        if (address !== wanted) picture.removeAttribute("src");
        wanted = address;
        picture.classList.remove("kiln-broken");
        name.textContent = item.name;
        caption.textContent = item.caption || t("noCaption");
        element.classList.toggle("kiln-no-caption", !item.caption);
        const marks = this.marks(item);
        badges.replaceChildren(...marks.map(([text, kind]) => make("span", { class: `kiln-badge ${kind}`, text })));
        element.setAttribute("aria-label", [item.name, item.caption || t("noCaption"), ...marks.map(([text]) => text)].join(", "));
      },
      load: () => {
        if (picture.getAttribute("src") !== wanted) picture.src = wanted;
      },
    };
  }

  /** Why it is left out; "" when it is not. @param {Item} item */
  wrongWith(item) {
    return item.error || this.bad[item.name] || "";
  }

  /** Short words on a tile: what it is, and what is wrong with it. @param {Item} item @returns {[string, string][]} */
  marks(item) {
    const figures = this.figures[item.name];
    /** @type {[string, string][]} */ const marks = [];
    if (moves(item, figures)) marks.push([figures ? `▶ ${figures.seconds} s` : "▶", ""]);
    if (item.mask || figures?.masked) marks.push([t("kind_mask"), ""]);
    if (figures && figures.repeats > 1) marks.push([`×${figures.repeats}`, ""]);
    if (item.by_model.length) marks.push([t("byModel"), "kiln-by-model"]);
    if (this.wrongWith(item)) marks.push(["!", "kiln-severe"]);
    for (const warning of figures?.warnings ?? []) {
      const kind = kindOf(warning.kind);
      if (kind !== "no") marks.push([t(`kind_${kind}`), warning.severe ? "kiln-severe" : "kiln-mild"]);
    }
    return marks.slice(0, 4);
  }

  async start() {
    addStyle();
    document.body.append(this.root);
    this.root.showModal();
    this.grid.root.focus();
    open.add(this);
    await this.reload();
  }

  async close() {
    if (!(await this.detail.save())) return; // what is typed could not be saved: it stays in view
    open.delete(this);
    clearTimeout(this.measuring);
    this.root.close();
    this.root.remove();
  }

  /** @param {string} sentence @param {boolean} [wrong] */
  say(sentence, wrong = false) {
    this.status.textContent = inUsersLanguage(sentence);
    this.status.classList.toggle("kiln-wrong", wrong);
  }

  /** Read the folder again. */
  async reload() {
    const question = ++this.asked;
    if (!this.items.size) this.counts.textContent = t("datasetLoading");
    try {
      if (!this.items.size) await this.showFirst(question);
      const found = await server.listItems(this.part);
      if (question !== this.asked) return;
      this.writable = found.writable;
      this.items = new Map(found.items.map((item) => [item.name, item]));
      this.there = true;
      this.undoable = found.undo;
      if (!found.writable) this.say(t("datasetReadOnly"));
    } catch (error) {
      if (question !== this.asked) return;
      this.items = new Map();
      this.there = false;
      if (/** @type {any} */ (error).status !== 404) this.say(/** @type {Error} */ (error).message, true);
    }
    this.refresh();
    await this.measure();
  }

  /** What is in view at first, while the rest of a large folder is read. @param {number} question */
  async showFirst(question) {
    const found = await server.listItems(this.part, FIRST);
    if (question !== this.asked || found.items.length < FIRST) return;
    this.items = new Map(found.items.map((item) => [item.name, item]));
    this.refresh();
    this.counts.textContent = t("datasetLoading");
  }

  /** Ask for sizes and warnings until they are there. */
  async measure() {
    clearTimeout(this.measuring);
    if (!open.has(this) || !this.there) return;
    /** @type {import("./dataset_api.mjs").Measured} */
    const found = await server.measured(this.part, this.sizes).catch((error) => ({ ready: true, error: error.message }));
    if (!found.ready) {
      if (found.total) this.progress.textContent = t("datasetMeasuring", found.done ?? 0, found.total);
      this.measuring = setTimeout(() => this.measure(), 500);
      return;
    }
    this.progress.textContent = found.error ? inUsersLanguage(found.error) : "";
    this.figures = found.items ?? {};
    this.bad = found.bad ?? {};
    this.controls = new Set(found.controls);
    this.list(this.left, "leftOut", found.skipped ?? []);
    this.list(this.remarks, "remarks", found.remarks ?? []);
    this.showKinds();
    this.refresh();
  }

  /** @param {HTMLDetailsElement} place @param {string} title @param {string[]} sentences */
  list(place, title, sentences) {
    place.hidden = !sentences.length;
    const items = sentences.map((sentence) => make("li", { text: inUsersLanguage(sentence) }));
    place.replaceChildren(make("summary", { text: t(title, sentences.length) }), make("ul", {}, ...items));
  }

  /** @param {Partial<import("./captions.mjs").Filter>} change */
  refilter(change) {
    Object.assign(this.filter, change);
    this.refresh();
    this.grid.root.scrollTop = 0;
  }

  /** The items, as far as it is known which pictures are controls of others. */
  all() {
    return [...this.items.values()].filter((item) => !this.controls.has(item.name));
  }

  /** Everything that hangs on items, figures and filter. */
  refresh() {
    const all = this.all();
    this.shown = all.filter((item) => passes(this.bad[item.name] ? { ...item, error: this.bad[item.name] } : item, this.figures[item.name], this.filter));
    for (const name of this.selected) if (!this.items.has(name)) this.selected.delete(name);
    let place = this.shown.findIndex((item) => item.name === this.active);
    if (place < 0) place = Math.min(this.grid.active, this.shown.length - 1);
    this.active = this.shown[place]?.name ?? "";
    this.grid.setCount(this.shown.length, place);
    this.tagFilter.hidden = !this.filter.tag;
    this.tagFilter.textContent = `✕ ${this.filter.tag}`;
    this.empty.hidden = this.shown.length > 0;
    this.empty.textContent = t(all.length ? "datasetNone" : "datasetEmpty");
    this.undo.disabled = !this.undoable;
    this.undo.title = this.undoable ? this.undoText(this.undoable) : "";
    this.showCounts(all.filter((item) => !item.aside));
    this.showTags();
    this.showSide();
  }

  /** @param {import("./dataset_api.mjs").Undo} undo */
  undoText({ what, count, time }) {
    return t("undoHelp", t(`undo_${what}`), count, new Date(time * 1000).toLocaleTimeString());
  }

  /** @param {Item[]} read */
  showCounts(read) {
    const parts = [t("datasetCount", read.length, read.filter((item) => !item.caption).length)];
    if (this.shown.length !== read.length) parts.push(t("datasetShown", this.shown.length));
    if (this.selected.size > 1) parts.push(t("datasetChosen", this.selected.size));
    this.counts.textContent = parts.join(" · ");
  }

  showTags() {
    const counts = tagCounts(this.shown);
    const buttons = counts.slice(0, MOST_TAGS).map(([tag, count]) =>
      make("button", { type: "button", "aria-pressed": String(tag === this.filter.tag), text: `${tag} ${count}`, onclick: () => this.refilter({ tag: tag === this.filter.tag ? "" : tag }) }),
    );
    const more = counts.length > MOST_TAGS && make("p", { class: "kiln-faint", text: t("tagsMore", counts.length - MOST_TAGS) });
    this.tags.hidden = !counts.length;
    this.tags.replaceChildren(make("summary", { text: t("tags", counts.length) }), make("div", { class: "kiln-row" }, ...buttons), more || "");
  }

  /** The chosen items, or the active one where none is. @returns {Item[]} */
  chosen() {
    const names = this.selected.size ? [...this.selected] : [this.active];
    return /** @type {Item[]} */ (names.map((name) => this.items.get(name)).filter(Boolean));
  }

  showSide() {
    const chosen = this.chosen();
    const panel = chosen.length > 1 ? this.bulk : this.detail;
    if (this.side.firstChild !== panel.root) this.side.replaceChildren(panel.root);
    if (chosen.length > 1) this.bulk.show(chosen);
    else this.detail.show(chosen[0] ?? null);
  }

  /** @param {number} index @param {"only"|"toggle"|"range"|"move"} how */
  async choose(index, how) {
    const name = this.shown[index]?.name;
    if (name === undefined) return;
    if (how === "range") {
      const from = Math.max(0, this.shown.findIndex((item) => item.name === this.anchor));
      const [first, last] = from < index ? [from, index] : [index, from];
      this.selected = new Set(this.shown.slice(first, last + 1).map((item) => item.name));
    } else {
      this.anchor = name;
      if (how === "only") this.selected = new Set([name]);
      if (how === "toggle" && !this.selected.delete(name)) this.selected.add(name);
    }
    this.active = name;
    this.afterChoice();
  }

  /** Show one item again. @param {string} name */
  goBackTo(name) {
    this.selected = new Set([name]);
    this.active = this.anchor = name;
    this.refresh();
  }

  chooseAll() {
    this.selected = new Set(this.shown.map((item) => item.name));
    this.afterChoice();
  }

  chooseNone() {
    this.selected.clear();
    this.afterChoice();
  }

  afterChoice() {
    this.grid.render(true);
    this.showCounts(this.all().filter((item) => !item.aside));
    this.showSide();
  }

  /**
   * Write captions and fields.
   * @param {string} what see WRITING of the server
   * @param {import("./dataset_api.mjs").Change[]} changes
   * @returns {Promise<boolean>} whether it is written; where not, the user has been told why
   */
  write(what, changes) {
    return this.act(() => server.writeChanges(this.part, what, changes), t(changes.length > 1 ? "applied" : "saved", changes.length));
  }

  /**
   * @param {() => Promise<import("./dataset_api.mjs").Changed>} change
   * @param {string} sentence that is said afterwards
   * @returns {Promise<boolean>}
   */
  async act(change, sentence) {
    this.say(t("writing")); // thousands of files take some seconds
    try {
      const done = await change();
      this.undoable = done.undo;
      for (const item of done.items) this.items.set(item.name, item);
      this.say(sentence.replace("{files}", String(done.files)));
      this.refresh();
      return true;
    } catch (error) {
      const { message, answer } = /** @type {import("./api.mjs").ServerError} */ (error);
      for (const item of answer?.items ?? []) this.items.set(item.name, item);
      this.say(message, true);
      if (answer?.outdated) this.refresh();
      return false;
    }
  }

  /** @param {Item[]} items */
  async aside(items) {
    const back = items.every((item) => item.aside);
    const moving = back ? items : items.filter((item) => !item.aside);
    const change = () => (back ? server.bringBack : server.setAside)(this.part, moving);
    if (await this.act(change, t(back ? "backDone" : "asideDone", moving.length))) await this.goneFromView();
  }

  /** @param {Item[]} items that the user was asked about */
  async remove(items) {
    if (await this.act(() => server.deleteItems(this.part, items), t("deletedItems", "{files}"))) await this.goneFromView();
  }

  /** Let the user paint an item's mask; the page makes room for the editor meanwhile. @param {Item} item */
  async paintMask(item) {
    if (!(await this.detail.save())) return;
    this.say(t("writing"));
    try {
      const place = await server.maskSheet(this.part, item);
      this.root.close(); // a modal dialog lies above everything else
      const painted = await paint(place).finally(() => this.root.showModal());
      this.say("");
      if (!painted) return;
      const now = this.items.get(item.name) ?? item;
      if (await this.act(() => server.writeMask(this.part, now, painted), t("maskPainted"))) await this.measure();
    } catch (error) {
      this.say(/** @type {Error} */ (error).message, true);
    }
  }

  async takeBack() {
    if (!(await this.detail.save()) || !this.undoable) return;
    const { id } = this.undoable;
    this.undoable = null; // another press has to wait for what is the newest change then
    this.undo.disabled = true;
    await this.act(() => server.undoChange(this.part, id), t("undone"));
    await this.reload();
    this.grid.root.focus();
  }

  async goneFromView() {
    this.selected.clear();
    await this.reload();
    this.grid.root.focus();
  }

  /**
   * @param {import("./dataset_upload.mjs").Wanted[]} [files] those dropped; else the user is asked for some
   * @param {boolean} [asNamed] keep their folder, even where all lie in one
   */
  upload(files, asNamed = false) {
    if (!files) return chooseFiles((chosen) => this.upload(chosen));
    const done = (/** @type {string} */ folder) => {
      if (folder === this.part.folder) return void this.reload();
      this.part = { ...this.part, folder };
      this.heading.textContent = t("dataset", folder);
      this.items = new Map();
      this.figures = this.bad = {};
      this.controls = new Set();
      return void this.reload();
    };
    return uploadTo(this.part.folder, files, done, asNamed);
  }
}

/** Pages that show a folder follow what other tabs do to it. */
export function watchDatasets() {
  /** @type {ReturnType<typeof setTimeout> | undefined} */ let timer;
  onDataset(({ folder }) => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      for (const page of open) if (page.part.folder === folder) void page.reload();
    }, PATIENCE);
  });
}
