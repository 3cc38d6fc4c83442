// @ts-check
// Many items of the dataset page at once: a change of all captions or a field, seen before it is written.
import { changed } from "./captions.mjs";
import { askToDelete } from "./dataset_detail.mjs";
import { make } from "./dom.mjs";
import { t } from "./texts.mjs";

/** @typedef {import("./dataset_api.mjs").Item} Item */
/** @typedef {import("./captions.mjs").Operation} Operation */

/** @type {Operation[]} */
const OPERATIONS = ["addFirst", "addLast", "removeTag", "replaceText", "fillMissing", "setField"];
/** Words by which undo names a change. @type {Record<Operation, string>} */
const NAMES = { addFirst: "add", addLast: "add", removeTag: "remove", replaceText: "replace", fillMissing: "caption", setField: "fields" };
/** Labels of the two inputs. @type {Record<Operation, [string, string]>} */
const LABELS = {
  addFirst: ["opText", ""],
  addLast: ["opText", ""],
  removeTag: ["opText", ""],
  replaceText: ["opFind", "opWith"],
  fillMissing: ["opCaption", ""],
  setField: ["fieldName", "fieldValue"],
};
const SHOWN = 8; // changes in the preview

export class BulkPanel {
  /** @param {import("./dataset_page.mjs").DatasetPage} page */
  constructor(page) {
    this.page = page;
    /** @type {Item[]} */ this.items = [];
    this.heading = make("h3", {});
    const options = OPERATIONS.map((value) => make("option", { value, text: t(`op_${value}`) }));
    this.operation = make("select", { "data-kiln": "operation", "aria-label": t("operation"), onchange: () => this.preview() }, ...options);
    this.text = make("input", { type: "text", "data-kiln": "opText", list: "kiln-bulk-names", oninput: () => this.preview() });
    this.other = make("input", { type: "text", "data-kiln": "opOther", oninput: () => this.preview() });
    this.names = make("datalist", { id: "kiln-bulk-names" });
    this.count = make("div", { role: "status" });
    this.result = make("ul", { class: "kiln-preview", tabindex: 0, "aria-label": t("previewOf") });
    this.apply = make("button", { type: "button", "data-kiln": "apply", class: "kiln-main", onclick: () => this.write() });
    this.aside = make("button", { type: "button", "data-kiln": "setAside", onclick: () => page.aside(this.items) });
    this.question = make("div", {});
    const remove = () => askToDelete(this.question, t("deleteItemsAsk", this.items.length), () => page.remove(this.items));
    this.root = make(
      "section",
      { class: "kiln-detail" },
      this.heading,
      make("p", { class: "kiln-faint", text: t("manyHelp") }),
      make("div", { class: "kiln-stack" }, this.operation, this.text, this.other, this.names),
      this.count,
      this.result,
      this.apply,
      make("div", { class: "kiln-row" }, this.aside, make("button", { type: "button", "data-kiln": "deleteItem", title: t("deleteItemHelp"), text: t("deleteItem"), onclick: remove })),
      this.question,
    );
    this.text.addEventListener("keydown", (event) => event.key === "Enter" && this.write());
    this.other.addEventListener("keydown", (event) => event.key === "Enter" && this.write());
  }

  /** @param {Item[]} items */
  show(items) {
    this.items = items;
    this.heading.textContent = t("many", items.length);
    const back = items.every((item) => item.aside) ? "bringBack" : "setAside";
    this.aside.textContent = t(back);
    this.aside.title = t(`${back}Help`);
    const known = new Set(this.page.fieldNames);
    for (const item of items) for (const name of Object.keys(item.fields)) known.add(name);
    this.names.replaceChildren(...[...known].map((value) => make("option", { value })));
    this.question.replaceChildren();
    this.preview();
  }

  get kind() {
    return /** @type {Operation} */ (this.operation.value);
  }

  /** @returns {{item: Item, before: string, after: string}[]} */
  changes() {
    const kind = this.kind;
    const [text, other] = [this.text.value, this.other.value];
    if (!text.trim()) return [];
    const found = this.items.map((item) => {
      const before = kind === "setField" ? (item.fields[text.trim()] ?? "") : item.caption;
      const after = kind === "setField" ? other.trim() : changed(item.caption, kind, text, other).trim();
      return { item, before, after };
    });
    return found.filter(({ before, after }) => before !== after);
  }

  preview() {
    const [label, second] = LABELS[this.kind];
    this.text.placeholder = t(label);
    this.text.setAttribute("aria-label", t(label));
    this.text.toggleAttribute("list", this.kind === "setField");
    if (this.kind === "setField") this.text.setAttribute("list", "kiln-bulk-names");
    this.other.hidden = !second;
    if (second) {
      this.other.placeholder = t(second);
      this.other.setAttribute("aria-label", t(second));
    }
    const changes = this.changes();
    const shown = changes.slice(0, SHOWN).map(({ item, before, after }) =>
      make("li", {}, make("b", { text: item.name }), make("del", { text: before || t("noCaption") }), make("ins", { text: after || t("noCaption") })),
    );
    if (changes.length > SHOWN) shown.push(make("li", { text: t("previewMore", changes.length - SHOWN) }));
    this.count.textContent = t("preview", changes.length, this.items.length);
    this.result.replaceChildren(...shown);
    this.result.hidden = !shown.length;
    this.apply.textContent = t("apply", changes.length);
    this.apply.disabled = !changes.length || !this.page.writable;
  }

  async write() {
    const kind = this.kind;
    const name = this.text.value.trim();
    const changes = this.changes().map(({ item, after }) => ({
      name: item.name,
      version: item.version,
      ...(kind === "setField" ? { fields: { [name]: after } } : { caption: after }),
    }));
    if (!changes.length) return;
    this.apply.disabled = true; // until it is done
    await this.page.write(NAMES[kind], changes);
    this.preview();
  }
}
