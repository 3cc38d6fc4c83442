// @ts-check
// Bringing files from the user's computer into a dataset's folder: chosen or dropped, singly, as a folder or as a zip.
import * as server from "./dataset_api.mjs";
import { addStyle, make } from "./dom.mjs";
import { inUsersLanguage, t } from "./texts.mjs";

/** @typedef {{name: string, file: File}} Wanted a file and its name relative to the folder */
/** @typedef {import("./dataset_api.mjs").Clash} Clash */

const AT_ONCE = 3; // uploads at the same time
const PATIENCE = 250; // milliseconds after the last key
/** @type {["keepBoth"|"replace"|"skip", Clash][]} */
const CLASHES = [["keepBoth", "keep both"], ["replace", "replace"], ["skip", "skip"]];

/** @param {{file: File}} wanted */
const isArchive = ({ file }) => /\.zip$/i.test(file.name);

/** @param {number} bytes */
const megabytes = (bytes) => (bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0);

/** What belongs to a dataset and is none: trainer/dataset/files.py has the same names. */
const PART = /^(masks?|set_aside|controls?|conditioning)$/i;
const REPEATED = /^([1-9]\d{0,2}|1000)_/; // 10_photos

/** The folder that all lie in; "" for none. @param {Wanted[]} files */
function topOf(files) {
  const tops = new Set(files.map(({ name }) => (name.includes("/") ? name.split("/")[0] : "")));
  const [top] = tops;
  return tops.size === 1 ? top : "";
}

/** What a dataset of these files may be called, as the dropped folder or the zip is; "" for nothing. @param {Wanted[]} files */
export function commonFolder(files) {
  const name = files.length === 1 && isArchive(files[0]) ? files[0].name.replace(/\.zip$/i, "") : topOf(files);
  return PART.test(name) ? "" : name;
}

/**
 * photos/a.png, photos/b.png -> a.png, b.png. masks/a.png stays, as does 10_photos/a.png unless it goes into a folder of that name.
 * @param {Wanted[]} files @param {string} into the folder that they go to
 */
export function withoutCommonFolder(files, into) {
  const top = topOf(files);
  if (!top || files.some(isArchive)) return files;
  const last = into.split("/").pop() ?? "";
  if ((PART.test(top) || REPEATED.test(top)) && top.toLowerCase() !== last.toLowerCase()) return files;
  return files.map(({ name, file }) => ({ name: name.slice(name.indexOf("/") + 1), file }));
}

/**
 * Let the user choose files.
 * @param {(files: Wanted[]) => void} then
 * @param {boolean} [folder] a whole folder
 */
export function chooseFiles(then, folder = false) {
  const input = make("input", { type: "file", multiple: true, webkitdirectory: folder, style: "display:none", "aria-hidden": "true", tabindex: -1 });
  input.addEventListener("change", () => {
    const files = [...(input.files ?? [])].map((file) => ({ name: file.webkitRelativePath || file.name, file }));
    input.remove();
    if (files.length) then(files);
  });
  input.addEventListener("cancel", () => input.remove());
  document.body.append(input); // some browsers open no dialog for an element outside the page
  input.click();
}

/** @param {DataTransfer | null} transfer @returns {boolean} whether files are being dragged */
export const holdsFiles = (transfer) => !!transfer && [...transfer.types].includes("Files");

/**
 * What was dropped, folders with all that is in them.
 * @param {DataTransfer} transfer only readable while its event is handled: the first lines run at once
 * @returns {Promise<Wanted[]>}
 */
export async function dropped(transfer) {
  const found = [...transfer.items].filter((item) => item.kind === "file");
  const entries = found.map((item) => item.webkitGetAsEntry?.() ?? null);
  const files = found.map((item) => item.getAsFile());
  /** @type {Wanted[]} */ const wanted = [];
  for (const [place, entry] of entries.entries()) {
    if (entry?.isDirectory) await walk(/** @type {FileSystemDirectoryEntry} */ (entry), "", wanted);
    else {
      const file = files[place];
      if (file) wanted.push({ name: file.name, file });
    }
  }
  return wanted;
}

/** @param {FileSystemDirectoryEntry} folder @param {string} path @param {Wanted[]} wanted */
async function walk(folder, path, wanted) {
  const here = `${path}${folder.name}/`;
  const reader = folder.createReader();
  for (;;) {
    /** @type {FileSystemEntry[]} */
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a part at a time
    if (!some.length) return;
    for (const entry of some) {
      if (entry.isDirectory) await walk(/** @type {FileSystemDirectoryEntry} */ (entry), here, wanted);
      else {
        /** @type {File} */
        const file = await new Promise((resolve, reject) => /** @type {FileSystemFileEntry} */ (entry).file(resolve, reject));
        wanted.push({ name: here + file.name, file });
      }
    }
  }
}

/** Files dropped on an element are ours, not the graph's. @param {HTMLElement} element @param {(files: Wanted[]) => void} then */
export function catchDrops(element, then) {
  const over = (/** @type {DragEvent} */ event) => {
    if (!holdsFiles(event.dataTransfer)) return;
    event.preventDefault();
    event.stopPropagation();
    element.classList.add("kiln-dropping");
  };
  element.addEventListener("dragenter", over);
  element.addEventListener("dragover", over);
  element.addEventListener("dragleave", () => element.classList.remove("kiln-dropping"));
  element.addEventListener("drop", async (event) => {
    element.classList.remove("kiln-dropping");
    if (!event.dataTransfer || !holdsFiles(event.dataTransfer)) return;
    event.preventDefault();
    event.stopPropagation();
    then(await dropped(event.dataTransfer));
  });
}

/**
 * Ask where files go and what happens to names that are taken, then upload them.
 * @param {string} folder proposed
 * @param {Wanted[]} files
 * @param {(folder: string) => void} done
 * @param {boolean} [asNamed] keep the folder that all lie in, whatever it is called
 */
export function uploadTo(folder, files, done, asNamed = false) {
  addStyle();
  return new UploadDialog(folder, files, done, asNamed).open();
}

class UploadDialog {
  /** @param {string} folder @param {Wanted[]} files @param {(folder: string) => void} done @param {boolean} asNamed */
  constructor(folder, files, done, asNamed) {
    this.given = files;
    this.files = files; // as they are called in the folder
    this.done = done;
    this.asNamed = asNamed;
    this.total = files.reduce((sum, { file }) => sum + file.size, 0);
    this.stop = new AbortController();
    this.busy = false;
    this.asked = 0;
    /** @type {import("./dataset_api.mjs").Answer | null} */ this.answer = null;
    /** @type {string[]} */ this.failed = [];
    /** @type {ReturnType<typeof setTimeout> | undefined} */ this.timer = undefined;
    this.folders = make("datalist", { id: "kiln-folders" });
    this.folder = make("input", { type: "text", list: "kiln-folders", id: "kiln-upload-folder", spellcheck: "false", oninput: () => this.soon() });
    this.folder.value = folder;
    this.place = make("div", { class: "kiln-faint", role: "status" });
    this.refused = make("details", { hidden: true });
    this.clash = make("fieldset", { hidden: true });
    this.bar = make("progress", { max: 1, value: 0, hidden: true, "aria-label": t("uploadGo") });
    this.said = make("div", { role: "status" });
    this.go = make("button", { type: "button", class: "kiln-main", "data-kiln": "uploadGo", text: t("uploadGo"), onclick: () => this.start() });
    this.leave = make("button", { type: "button", "data-kiln": "uploadCancel", text: t("cancel"), onclick: () => this.close() });
    this.root = make(
      "dialog",
      { class: "kiln-dialog", "aria-labelledby": "kiln-upload-title" },
      make("h2", { id: "kiln-upload-title", text: t("uploadTitle") }),
      make("div", { text: t("uploadWhat", files.length, megabytes(this.total)) }),
      make("label", { for: "kiln-upload-folder", text: t("uploadInto") }),
      this.folder,
      this.folders,
      this.place,
      this.refused,
      this.clash,
      this.bar,
      this.said,
      make("div", { class: "kiln-row" }, this.go, this.leave),
    );
    for (const kind of ["keydown", "keyup", "paste", "copy", "cut"]) this.root.addEventListener(kind, (event) => event.stopPropagation());
    this.root.addEventListener("cancel", (event) => {
      event.preventDefault();
      this.close();
    });
    this.folder.addEventListener("keydown", (event) => event.key === "Enter" && !this.go.disabled && this.start());
  }

  async open() {
    document.body.append(this.root);
    this.root.showModal();
    this.folder.select();
    void this.look();
    const known = await server.listFolders().catch(() => []);
    this.folders.replaceChildren(...known.map(([value]) => make("option", { value })));
  }

  close() {
    this.stop.abort();
    this.root.close();
    this.root.remove();
  }

  soon() {
    clearTimeout(this.timer);
    this.go.disabled = true;
    this.timer = setTimeout(() => this.look(), PATIENCE);
  }

  /** Ask the server what would become of the files. */
  async look() {
    const question = ++this.asked;
    this.go.disabled = true;
    if (!this.asNamed) this.files = withoutCommonFolder(this.given, this.folder.value.trim());
    const plain = this.files.filter((wanted) => !isArchive(wanted)).map(({ name }) => name);
    try {
      const answer = await server.lookOver(this.folder.value.trim(), plain);
      if (question !== this.asked) return;
      this.answer = answer;
      const kept = this.asNamed ? "" : topOf(this.files);
      this.place.textContent = t(answer.exists ? "uploadThere" : "uploadNew") + (kept ? ` ${t("uploadKept", kept)}` : "");
      this.place.classList.remove("kiln-wrong");
      this.showAnswer(answer);
      this.go.disabled = !this.taken().length;
    } catch (error) {
      if (question !== this.asked) return;
      this.place.textContent = inUsersLanguage(/** @type {Error} */ (error).message);
      this.place.classList.add("kiln-wrong");
    }
  }

  /** @param {import("./dataset_api.mjs").Answer} answer */
  showAnswer(answer) {
    const limit = answer.limit ?? Infinity;
    const large = this.files.filter(({ file }) => file.size > limit).map(({ name }) => t("uploadLarge", name, Math.floor(limit / 2 ** 20)));
    const reasons = [...answer.refused.map(([, reason]) => inUsersLanguage(reason)), ...large];
    this.refused.hidden = !reasons.length;
    const summary = make("summary", { text: t("uploadRefused", reasons.length) });
    this.refused.replaceChildren(summary, make("ul", {}, ...reasons.map((text) => make("li", { text }))));
    this.showClash(answer.clashing);
  }

  /** @param {string[]} names that are taken already */
  showClash(names) {
    this.clash.hidden = !names.length;
    const choices = CLASHES.map(([key, value], place) => {
      const input = make("input", { type: "radio", name: "kiln-clash", value });
      input.checked = place === 0;
      return make("label", {}, input, ` ${t(`clash_${key}`)}`);
    });
    this.clash.replaceChildren(make("legend", { text: t("uploadClash", names.length, names[0] ?? "") }), ...choices);
  }

  /** @returns {Clash} */
  chosenClash() {
    const chosen = /** @type {HTMLInputElement | null} */ (this.clash.querySelector("input:checked"));
    return /** @type {Clash} */ (this.clash.hidden ? "refuse" : (chosen?.value ?? "refuse"));
  }

  /** Files that are sent. */
  taken() {
    const limit = this.answer?.limit ?? Infinity;
    const names = new Set(this.answer?.taken ?? []);
    return this.files.filter((wanted) => wanted.file.size <= limit && (isArchive(wanted) || names.has(wanted.name)));
  }

  async start() {
    if (this.busy) return;
    this.busy = true;
    const folder = this.folder.value.trim();
    const files = this.taken();
    const total = files.reduce((sum, { file }) => sum + file.size, 0) || 1;
    /** @type {Map<Wanted, number>} */ const sent = new Map();
    const progress = (/** @type {Wanted} */ wanted) => (/** @type {number} */ bytes) => {
      sent.set(wanted, bytes);
      const all = [...sent.values()].reduce((sum, each) => sum + each, 0);
      this.bar.value = Math.min(1, all / total);
      this.said.textContent = t("uploadProgress", megabytes(Math.min(all, total)), megabytes(total));
    };
    this.go.disabled = this.folder.disabled = true;
    this.bar.hidden = false;
    let written = 0;
    const clash = this.chosenClash();
    const plain = files.filter((wanted) => !isArchive(wanted));
    const work = async () => {
      for (let wanted = plain.shift(); wanted && !this.stop.signal.aborted; wanted = plain.shift()) {
        written += await this.send(folder, wanted, clash, progress(wanted));
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
    for (const wanted of files.filter(isArchive)) {
      if (!this.stop.signal.aborted) written += await this.sendArchive(folder, wanted, progress(wanted));
    }
    if (this.stop.signal.aborted && !written) return;
    this.finish(folder, written);
  }

  /**
   * @param {string} folder @param {Wanted} wanted @param {Clash} clash @param {(sent: number) => void} onProgress
   * @returns {Promise<number>} files written
   */
  async send(folder, { name, file }, clash, onProgress) {
    const renamed = clash === "keep both" ? (this.answer?.renamed[name] ?? name) : name;
    try {
      const answer = await server.upload("file", { folder, name: renamed, clash: clash === "keep both" ? "refuse" : clash }, file, onProgress, this.stop.signal);
      return answer.written ? 1 : 0;
    } catch (error) {
      if (!this.stop.signal.aborted) this.failed.push(`${name}: ${inUsersLanguage(/** @type {Error} */ (error).message)}`);
      return 0;
    }
  }

  /** @param {string} folder @param {Wanted} wanted @param {(sent: number) => void} onProgress @returns {Promise<number>} */
  async sendArchive(folder, { name, file }, onProgress) {
    try {
      const answer = await server.upload("archive", { folder }, file, onProgress, this.stop.signal);
      this.failed.push(...answer.refused.map((/** @type {[string, string]} */ [, reason]) => inUsersLanguage(reason)));
      if (!answer.taken.length) return 0;
      let clash = /** @type {Clash} */ ("refuse");
      if (answer.clashing.length) clash = await this.askClash(answer.clashing);
      this.said.textContent = t("uploadUnpacking", name);
      return (await server.unpack(folder, answer.token, clash)).written;
    } catch (error) {
      if (!this.stop.signal.aborted) this.failed.push(`${name}: ${inUsersLanguage(/** @type {Error} */ (error).message)}`);
      return 0;
    }
  }

  /** What an archive holds is known only when it is there. @param {string[]} names @returns {Promise<Clash>} */
  askClash(names) {
    this.showClash(names);
    this.said.textContent = "";
    this.go.disabled = false;
    return new Promise((resolve) => {
      this.go.onclick = () => {
        this.go.disabled = true;
        this.go.onclick = null;
        resolve(this.chosenClash());
      };
      /** @type {HTMLInputElement | null} */ (this.clash.querySelector("input"))?.focus();
    });
  }

  /** @param {string} folder @param {number} written */
  finish(folder, written) {
    if (written) this.done(folder);
    if (!this.failed.length) return this.close();
    this.bar.hidden = this.clash.hidden = this.go.hidden = this.refused.hidden = true;
    this.said.replaceChildren(
      make("div", { text: t("uploadDone", written, folder) }),
      make("div", { text: t("uploadFailed") }),
      make("ul", {}, ...this.failed.map((text) => make("li", { text }))),
    );
    this.leave.textContent = t("close");
    this.leave.focus();
  }
}
