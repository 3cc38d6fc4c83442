// @ts-check
// Load Dataset shows its data: the folders there are, the first pictures, what is missing; files dropped on it are uploaded.
//
// The widget `folder` stays as it is, so that any value can be typed and saved workflows keep theirs; the list here sets it.
// Widgets tell nobody when they are changed by undo or by another extension, so they are looked at a few times a second.
import { onDataset, onPromptStart, onReconnected } from "./api.mjs";
import { glance, leftOut, listFolders, thumbnail } from "./dataset_api.mjs";
import { DatasetPage } from "./dataset_page.mjs";
import { catchDrops, chooseFiles, commonFolder, dropped, holdsFiles, uploadTo } from "./dataset_upload.mjs";
import { addStyle, make } from "./dom.mjs";
import { allNodes, keepWithNode } from "./find_node.mjs";
import { followNodeWidth } from "./panel.mjs";
import { inUsersLanguage, t } from "./texts.mjs";

const HEIGHT = 150; // canvas units
const SIDE = 128; // pixels of a thumbnail
const PERIOD = 400; // milliseconds between two looks
const MEASURING = 700; // milliseconds between two questions for what is measured
const NOT_FIELDS = new Set(["caption", "name", "folder"]); // what a caption template knows of every item
/** @typedef {import("./dataset_api.mjs").Part} Part */
/** @typedef {import("./dataset_api.mjs").Glance} Glance */
/** @type {Set<Strip>} */
const strips = new Set();

/** @param {any} node @param {string} name */
const widgetOf = (node, name) => node.widgets?.find((/** @type {any} */ widget) => widget.name === name);

class Strip {
  /** @param {any} node @param {any} app */
  constructor(node, app) {
    this.node = node;
    this.app = app;
    this.seen = ""; // the part of a folder that is shown
    this.asked = 0;
    /** @type {[string, number][]} */ this.folders = [];
    this.choice = make("select", {
      "aria-label": t("folderChoice"),
      "data-kiln": "folder",
      onchange: () => this.setFolder(this.choice.value),
      onpointerdown: () => this.refreshFolders(),
      onfocus: () => this.refreshFolders(),
    });
    const button = (/** @type {string} */ name, /** @type {string} */ text, /** @type {() => void} */ act) =>
      make("button", { type: "button", "data-kiln": name, text: t(text), title: t(`${text}Help`), onclick: act });
    this.pictures = make("div", {
      class: "kiln-pictures",
      role: "group",
      tabindex: 0, // it scrolls
      "aria-label": t("datasetItems"),
      onclick: () => this.openPage(),
      onkeydown: (/** @type {KeyboardEvent} */ event) => event.key === "Enter" && this.openPage(),
    });
    this.figures = make("div", { class: "kiln-figures", role: "status" });
    this.root = make(
      "div",
      { class: "kiln-strip" },
      make("div", { class: "kiln-row" }, this.choice),
      this.pictures,
      this.figures,
      make(
        "div",
        { class: "kiln-row" },
        button("upload", "upload", () => this.askForFiles(false)),
        button("uploadFolder", "uploadFolder", () => this.askForFiles(true)),
        button("openDataset", "openDataset", () => this.openPage()),
      ),
    );
    this.root.addEventListener("pointerdown", (event) => event.stopPropagation()); // the graph would drag the node
    this.pictures.addEventListener("wheel", (event) => event.stopPropagation());
    catchDrops(this.root, (files) => this.upload(files));
    const widget = node.addDOMWidget("kiln_strip", "kiln_strip", this.root, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => HEIGHT,
      getMaxHeight: () => HEIGHT,
    });
    widget.serialize = false;
    followNodeWidth(widget);
    this.takeDrops();
    void this.refreshFolders();
  }

  /** Files dropped anywhere on the node, not on our widget alone. */
  takeDrops() {
    const { onDragOver, onDragDrop } = this.node;
    this.node.onDragOver = function (/** @type {DragEvent} */ event) {
      return holdsFiles(event.dataTransfer) || (onDragOver?.apply(this, arguments) ?? false);
    };
    const take = (/** @type {DragEvent} */ event) => {
      if (!event.dataTransfer || !holdsFiles(event.dataTransfer)) return false;
      void dropped(event.dataTransfer).then((files) => this.upload(files));
      return true;
    };
    this.node.onDragDrop = function (/** @type {DragEvent} */ event) {
      return take(event) || (onDragDrop?.apply(this, arguments) ?? false);
    };
  }

  get folder() {
    return String(widgetOf(this.node, "folder")?.value ?? "").trim();
  }

  /** The folder comes from another node, which knows it only when it runs. */
  get linked() {
    return !!this.node.inputs?.some((/** @type {any} */ input) => input.name === "folder" && input.link != null);
  }

  /** @returns {import("./dataset_api.mjs").Part} */
  part() {
    const [also, controls] = ["validation_folder", "control_folders"].map((name) => String(widgetOf(this.node, name)?.value ?? "").trim());
    return { folder: this.folder, recursive: !!widgetOf(this.node, "recursive")?.value, also, controls, masks: widgetOf(this.node, "masks")?.value !== "off" };
  }

  /** @param {string} value */
  setFolder(value) {
    const widget = widgetOf(this.node, "folder");
    if (!widget) return;
    widget.value = value;
    widget.callback?.(value);
    this.node.setDirtyCanvas?.(true, true);
    this.look();
  }

  async refreshFolders() {
    this.folders = await listFolders().catch(() => this.folders);
    this.showFolders();
  }

  showFolders() {
    const now = this.folder;
    const options = this.folders.map(([value, count]) => make("option", { value, text: `${value} (${count})` }));
    if (!this.folders.some(([value]) => value === now)) options.unshift(make("option", { value: now, text: t("folderTyped", now) }));
    const texts = options.map((option) => option.textContent);
    const there = [...this.choice.options].map((option) => option.textContent);
    if (texts.join("\n") !== there.join("\n")) this.choice.replaceChildren(...options); // an open list stays open
    this.choice.value = now;
    this.choice.disabled = this.linked;
  }

  look() {
    const key = JSON.stringify([this.part(), this.linked]);
    if (key === this.seen) return;
    this.seen = key;
    this.showFolders();
    void this.refresh();
  }

  async refresh() {
    const question = ++this.asked;
    if (this.linked) return this.say(t("glanceLinked"));
    const part = this.part();
    try {
      const found = await glance(part);
      if (question !== this.asked) return;
      const below = !/^([/~]|\.\.|[A-Za-z]:)/.test(part.folder); // then it can be made
      if (!found.missing) {
        this.show(part.folder, found);
        void this.measure(question, part, found).catch(() => undefined); // it stays as it was seen at first
      } else this.say(below ? t("glanceNoFolder") : inUsersLanguage(found.missing));
    } catch (error) {
      if (question === this.asked) this.say(inUsersLanguage(/** @type {Error} */ (error).message));
    }
  }

  /** @param {string} sentence */
  say(sentence) {
    this.pictures.replaceChildren();
    this.figures.textContent = this.figures.title = sentence;
  }

  /** @param {string} folder @param {import("./dataset_api.mjs").Glance} found */
  show(folder, found) {
    const pictures = found.first.map((item) => make("img", { src: thumbnail(folder, item, SIDE), alt: item.name, title: item.name, loading: "lazy", draggable: "false" }));
    this.pictures.replaceChildren(...pictures);
    this.tell(found);
  }

  /** Ask what the node would say of the folder until that is known. @param {number} question @param {Part} part @param {Glance} found */
  async measure(question, part, found) {
    /** @type {import("./dataset_api.mjs").Told} */
    const told = await leftOut(part).catch((error) => ({ ready: true, error: error.message }));
    if (question !== this.asked || !this.node.graph) return;
    this.tell(found, told);
    if (!told.ready) setTimeout(() => void this.measure(question, part, found).catch(() => undefined), MEASURING);
  }

  /** @param {Glance} found @param {import("./dataset_api.mjs").Told} [told] */
  tell(found, told) {
    const read = told?.ready && !told.error;
    const [count, clips, without] = read ? [told.count ?? 0, told.clips ?? 0, told.without ?? 0] : [found.count, found.clips, found.without];
    const left = told?.error ? [told.error] : (told?.skipped ?? []);
    const remarks = told?.remarks ?? [];
    const parts = [clips ? t("glance", count - clips, clips, without) : t("glanceStills", count, without)];
    if (told?.error) parts.push(inUsersLanguage(told.error));
    else if (left.length) parts.push(t("datasetLeftOut", left.length));
    if (remarks.length) parts.push(t("remarks", remarks.length));
    if (found.by_model) parts.push(t("glanceByModel", found.by_model));
    if (found.aside) parts.push(t("glanceAside", found.aside));
    if (told && !told.ready && told.total) parts.push(t("datasetMeasuring", told.done ?? 0, told.total));
    const nothing = told?.error ? inUsersLanguage(told.error) : t("glanceEmpty");
    this.figures.textContent = count ? parts.join(" · ") : nothing;
    this.figures.title = [this.figures.textContent, ...[...left, ...remarks].map(inUsersLanguage)].join("\n");
  }

  openPage() {
    if (this.linked) return;
    const nodes = allNodes(this.app);
    const encoder = nodes.find((node) => node.comfyClass === "KilnEncodeDataset");
    const size = (/** @type {string} */ name, /** @type {number} */ usual) => Math.round(Number(widgetOf(encoder ?? {}, name)?.value ?? usual));
    const sizes = { resolution: size("resolution", 512), max_frames: size("max_frames", 33), fps: size("fps", 16) };
    const templates = nodes.filter((node) => node.comfyClass === "KilnCaptionTemplate").map((node) => String(widgetOf(node, "template")?.value ?? ""));
    const names = templates.flatMap((text) => [...text.matchAll(/[{[]([^{}[\]]+)[}\]]/g)].map((match) => match[1].trim()));
    void new DatasetPage(this.part(), sizes, [...new Set(names)].filter((name) => !NOT_FIELDS.has(name))).start();
  }

  /** @param {boolean} folder a whole one */
  askForFiles(folder) {
    chooseFiles((files) => this.upload(files), folder);
  }

  /** @param {import("./dataset_upload.mjs").Wanted[]} files */
  upload(files) {
    if (!files.length) return;
    const own = commonFolder(files);
    const known = this.folders.some(([name]) => name === this.folder);
    void uploadTo(own && known ? own : this.folder || own || "my_dataset", files, async (folder) => {
      this.seen = ""; // the node has the folder before the dialog is gone: Run may be the next click
      this.setFolder(folder);
      await this.refreshFolders();
    });
  }
}

/** @param {any} node a KilnLoadDataset @param {any} app */
export function addStrip(node, app) {
  addStyle();
  keepWithNode(node, strips, new Strip(node, app));
}

export function watchStrips() {
  setInterval(() => {
    if (document.hidden) return;
    for (const strip of strips) if (strip.node.graph) strip.look();
  }, PERIOD);
  onDataset(({ folder }) => {
    for (const strip of strips) if (strip.folder === folder) void strip.refresh();
  });
  const again = () => {
    for (const strip of strips) if (strip.node.graph) void strip.refresh();
  };
  onReconnected(again);
  onPromptStart(again); // files may have changed outside, and the node is about to read them
}
