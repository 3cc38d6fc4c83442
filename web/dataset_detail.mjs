// @ts-check
// One item of the dataset page: its picture or clip, figures, caption and fields.
import * as server from "./dataset_api.mjs";
import { chooseFiles } from "./dataset_upload.mjs";
import { make } from "./dom.mjs";
import { canPaint } from "./mask_editor.mjs";
import { inUsersLanguage, t } from "./texts.mjs";

/** @typedef {import("./dataset_api.mjs").Item} Item */
/** A caption as typed, and the one that it is to take the place of. @typedef {{ caption: string, based: string }} Draft */

const SHOWN_WHOLE = /\.(png|jpe?g|webp|gif|avif|bmp|apng|jfif)$/i; // what browsers draw
const LARGE = 12e6; // bytes, from which on a smaller copy is shown

export class DetailPanel {
  /** @param {import("./dataset_page.mjs").DatasetPage} page */
  constructor(page) {
    this.page = page;
    /** @type {Item | null} */ this.item = null;
    this.based = ""; // the caption that the user began to edit
    /** What is typed and not written yet, by item: others may be chosen meanwhile. @type {Map<string, Draft>} */ this.drafts = new Map();
    /** @type {Promise<boolean> | null} */ this.saving = null;
    /** What is on its way to the server. @type {{ name: string, caption: string } | null} */ this.writing = null;
    this.view = make("div", { class: "kiln-view" });
    this.name = make("h3", {});
    this.facts = make("div", { class: "kiln-faint" });
    this.warnings = make("ul", { class: "kiln-warnings" });
    this.mask = make("input", { type: "checkbox", onchange: () => this.showMask() });
    this.maskRow = make("label", { hidden: true }, this.mask, ` ${t("showMask")}`);
    this.caption = make("textarea", {
      rows: 5,
      "data-kiln": "caption",
      title: t("captionHelp"),
      onchange: () => this.save(),
      onkeydown: (/** @type {KeyboardEvent} */ event) => this.key(event),
    });
    this.byModel = make("div", { class: "kiln-faint", title: t("byModelHelp"), text: t("byModel"), hidden: true });
    this.conflict = make("div", { class: "kiln-ask", role: "alert", hidden: true });
    this.fields = make("div", { class: "kiln-fields" });
    this.question = make("div", {});
    this.actions = make("div", { class: "kiln-row" });
    this.root = make(
      "section",
      { class: "kiln-detail" },
      this.view,
      this.maskRow,
      this.name,
      this.facts,
      this.warnings,
      this.caption,
      this.byModel,
      this.conflict,
      this.fields,
      this.actions,
      this.question,
    );
  }

  focus() {
    this.caption.focus();
  }

  get dirty() {
    return this.item !== null && this.caption.value.trim() !== this.based.trim();
  }

  /** @param {Item | null} item */
  show(item) {
    const other = item?.name !== this.item?.name;
    if (other) void this.save();
    const before = this.item;
    this.item = item;
    this.root.hidden = !item;
    if (!item) return;
    if (other || before?.stamp !== item.stamp || before?.mask_stamp !== item.mask_stamp) this.showPicture(item);
    this.name.textContent = item.name;
    this.showFacts(item);
    this.showCaption(item, other);
    this.caption.setAttribute("aria-label", t("captionOf", item.name));
    this.caption.placeholder = t("noCaption");
    this.byModel.hidden = !item.by_model.includes("caption");
    this.caption.readOnly = !this.page.writable;
    if (other || !this.fields.contains(document.activeElement)) this.showFields(item);
    if (other) this.question.replaceChildren();
    this.showActions(item);
  }

  /** @param {Item} item @param {boolean} other than the one shown before */
  showCaption(item, other) {
    const draft = this.drafts.get(item.name);
    if (other) {
      this.caption.value = draft?.caption ?? item.caption;
      this.based = draft?.based ?? item.caption;
    }
    const same = this.caption.value.trim() === item.caption.trim();
    const written = this.writing?.name === item.name && this.writing.caption.trim() === item.caption.trim();
    if (same || !this.dirty) this.caption.value = this.based = item.caption;
    else if (written) this.based = item.caption; // typing has gone on meanwhile
    if (item.caption === this.based) this.conflict.hidden = true;
    else this.askWhich(item);
  }

  /** @param {Item} item */
  showPicture(item) {
    const { folder } = this.page.part;
    const small = () => make("img", { src: server.thumbnail(folder, item, 512), alt: item.name });
    /** @type {HTMLElement} */ let shown = small();
    if (item.clip && !SHOWN_WHOLE.test(item.name)) {
      const video = make("video", { src: server.whole(folder, item), controls: true, loop: true, "aria-label": item.name });
      video.muted = true;
      video.autoplay = !matchMedia("(prefers-reduced-motion: reduce)").matches;
      video.onerror = () => this.view.replaceChildren(small(), make("p", { class: "kiln-faint", text: t("playsNot") }));
      shown = video;
    } else if (SHOWN_WHOLE.test(item.name) && item.bytes < LARGE) {
      const picture = make("img", { src: server.whole(folder, item), alt: item.name });
      picture.onerror = () => picture.replaceWith(small());
      shown = picture;
    }
    this.view.replaceChildren(shown);
    this.showMask();
  }

  showMask() {
    this.view.querySelector(".kiln-overlay")?.remove();
    const item = this.item;
    const masked = !!item && (item.mask || !!this.page.figures?.[item.name]?.masked); // not there yet while it is made
    this.maskRow.hidden = !masked;
    if (!item || !masked || !this.mask.checked) return;
    const over = make("img", { class: "kiln-overlay", src: server.overlay(this.page.part.folder, item), alt: "" });
    this.view.append(over);
  }

  /** @param {Item} item */
  showFacts(item) {
    const figures = this.page.figures[item.name];
    const size = item.bytes < 1e6 ? `${Math.ceil(item.bytes / 1e3)} kB` : `${(item.bytes / 1e6).toFixed(1)} MB`;
    const lines = [];
    if (!figures) lines.push(`${size} · ${t("factsUnknown")}`);
    else {
      const { width, height, frames, seconds, bucket, lost, repeats } = figures;
      lines.push(frames > 1 ? t("factsClip", width, height, frames, seconds, size) : t("factsStill", width, height, size));
      lines.push(t("factsBucket", bucket, Math.round(lost * 100), repeats));
    }
    this.facts.replaceChildren(...lines.map((text) => make("div", { text })));
    const wrong = this.page.wrongWith(item);
    const said = [...(wrong ? [wrong] : []), ...(figures?.warnings ?? []).map((warning) => warning.text)];
    this.warnings.replaceChildren(...said.map((text) => make("li", { text: inUsersLanguage(text) })));
    this.showMask();
  }

  /** Another tab has changed what is being edited here. @param {Item} item */
  askWhich(item) {
    const question = JSON.stringify([item.name, item.caption]);
    if (!this.conflict.hidden && this.conflict.dataset.about === question) return; // a button may be held down
    this.conflict.dataset.about = question;
    const mine = () => {
      this.based = item.caption;
      return void this.save();
    };
    const theirs = () => {
      this.drafts.delete(item.name);
      this.caption.value = this.based = item.caption;
      this.conflict.hidden = true;
      this.caption.focus();
    };
    this.conflict.hidden = false;
    this.conflict.replaceChildren(
      make("div", { text: t("captionTheirs", item.caption || t("noCaption")) }),
      make(
        "div",
        { class: "kiln-row" },
        make("button", { type: "button", "data-kiln": "keepMine", text: t("keepMine"), onclick: mine }),
        make("button", { type: "button", "data-kiln": "takeTheirs", text: t("takeTheirs"), onclick: theirs }),
      ),
    );
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    if (event.key === "Escape") {
      event.preventDefault(); // it would close the page
      void this.save();
      this.page.grid.root.focus();
    } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) void this.save();
  }

  /**
   * Write what is typed, here and for items left since.
   * @returns {Promise<boolean>} false where something could not be written and is still only here
   */
  save() {
    const { item, based } = this;
    if (item && this.page.writable) {
      const onItsWay = this.writing?.name === item.name; // then what it was is a change, too
      if (this.dirty || onItsWay) this.drafts.set(item.name, { caption: this.caption.value, based });
      else this.drafts.delete(item.name); // typed back to what it was
    }
    if (!this.drafts.size) return Promise.resolve(true);
    this.saving ??= Promise.resolve().then(() => this.writeDrafts());
    return this.saving;
  }

  /** One after the other: each is told the version that the one before has made. */
  async writeDrafts() {
    try {
      for (let [draft] = this.drafts; draft; [draft] = this.drafts) {
        if (await this.write(...draft)) continue;
        const inView = this.item?.name === draft[0] && this.root.isConnected;
        if (!inView) this.page.goBackTo(draft[0]); // what was typed is not lost by going to another item
        return false;
      }
      return true;
    } finally {
      this.saving = null; // at once: who saves now begins anew
    }
  }

  /** @param {string} name @param {Draft} draft @returns {Promise<boolean>} false where it stays a draft */
  async write(name, { caption, based }) {
    const item = this.page.items.get(name);
    if (!item) {
      this.drafts.delete(name);
      this.page.say(t("typedForGone", name, caption), true);
      return true;
    }
    if (item.caption !== based) return false; // the user is being asked which one counts
    this.writing = { name, caption };
    const done = await this.page.write("caption", [{ name, version: item.version, caption }]);
    this.writing = null;
    if (!done) return false;
    const now = this.drafts.get(name);
    if (now?.caption === caption) this.drafts.delete(name);
    else if (now) now.based = this.page.items.get(name)?.caption ?? caption; // typing has gone on
    return true;
  }

  /** @param {Item} item */
  showFields(item) {
    const rows = Object.entries(item.fields).map(([name, value]) => this.fieldRow(name, value, item.by_model.includes(name)));
    const known = new Set(this.page.fieldNames);
    for (const each of this.page.items.values()) for (const name of Object.keys(each.fields)) known.add(name);
    const fresh = [...known].filter((name) => !(name in item.fields));
    const list = make("datalist", { id: "kiln-field-names" }, ...fresh.map((value) => make("option", { value })));
    const name = make("input", { type: "text", list: "kiln-field-names", placeholder: t("fieldName"), "aria-label": t("fieldName") });
    const value = make("input", { type: "text", placeholder: t("fieldValue"), "aria-label": t("fieldValue") });
    const add = () => name.value.trim() && value.value.trim() && this.setField(name.value.trim(), value.value);
    value.addEventListener("keydown", (event) => event.key === "Enter" && add());
    const button = make("button", { type: "button", "data-kiln": "addField", text: t("addField"), onclick: add });
    this.fields.replaceChildren(
      make("h4", { text: t("fields"), title: t("fieldsHelp", "{lighting}") }),
      ...rows,
      make("div", { class: "kiln-field-row", hidden: !this.page.writable }, list, name, value, button),
    );
  }

  /** @param {string} name @param {string} value @param {boolean} byModel */
  fieldRow(name, value, byModel) {
    const input = make("input", { type: "text", "aria-label": t("fieldOf", name), onchange: () => this.setField(name, input.value) });
    input.value = value;
    input.readOnly = !this.page.writable;
    const mark = byModel && make("small", { class: "kiln-faint", title: t("byModelHelp"), text: t("byModel") });
    return make("div", { class: "kiln-field-row" }, make("span", { text: name }), input, mark);
  }

  /** @param {string} name @param {string} value "" removes it */
  async setField(name, value) {
    const item = this.item;
    if (!item) return;
    await this.page.write("fields", [{ name: item.name, version: item.version, fields: { [name]: value } }]);
    const now = this.page.items.get(item.name);
    if (now && this.item?.name === item.name) this.showFields((this.item = now));
  }

  /** A mask from this computer, under the name by which it is found. @param {Item} item */
  uploadMask(item) {
    const slash = item.name.lastIndexOf("/") + 1;
    const stem = `${item.name.slice(0, slash)}masks/${item.name.slice(slash).replace(/\.[^.]*$/, "")}`;
    chooseFiles(([{ file }]) => {
      const ending = /\.[^.]+$/.exec(file.name)?.[0] ?? "";
      return this.page.upload([{ name: stem + ending, file }], true);
    });
  }

  /** @param {Item} item */
  showActions(item) {
    const back = item.aside ? "bringBack" : "setAside";
    this.actions.hidden = !this.page.writable;
    const buttons = [
      make("button", { type: "button", "data-kiln": back, title: t(`${back}Help`), text: t(back), onclick: () => this.page.aside([item]) }),
      canPaint() && make("button", { type: "button", "data-kiln": "paintMask", title: t("paintMaskHelp"), text: t("paintMask"), onclick: () => this.page.paintMask(item) }),
      make("button", { type: "button", "data-kiln": "uploadMask", title: t("uploadMaskHelp"), text: t("uploadMask"), onclick: () => this.uploadMask(item) }),
      make("button", {
        type: "button",
        "data-kiln": "deleteItem",
        title: t("deleteItemHelp"),
        text: t("deleteItem"),
        onclick: () => askToDelete(this.question, t("deleteItemAsk", item.name), () => this.page.remove([item])),
      }),
    ];
    this.actions.replaceChildren(...buttons.filter((button) => button !== false));
  }
}

/** @param {HTMLElement} place @param {string} sentence @param {() => any} act */
export function askToDelete(place, sentence, act) {
  const before = /** @type {HTMLElement | null} */ (document.activeElement);
  const leave = () => {
    place.replaceChildren();
    before?.focus();
  };
  const keep = make("button", { type: "button", text: t("keep"), onclick: leave });
  const sure = () => {
    place.replaceChildren();
    void act();
  };
  const onkeydown = (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Escape") return;
    event.preventDefault(); // it would close the page
    leave();
  };
  place.replaceChildren(
    make(
      "div",
      { class: "kiln-ask", role: "alertdialog", "aria-label": t("deleteItem"), onkeydown },
      make("div", { text: sentence }),
      make("div", { class: "kiln-row" }, keep, make("button", { type: "button", "data-kiln": "reallyDeleteItem", text: t("deleteItem"), onclick: sure })),
    ),
  );
  keep.focus();
}
