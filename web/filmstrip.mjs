// @ts-check
// The samples of a run under its chart: a row per prompt, a column per step. A click shows one large, the arrow keys walk.
import { sampleUrl } from "./api.mjs";
import { layOut, neighbour } from "./samples.mjs";
import { t } from "./texts.mjs";

/** @typedef {import("./samples.mjs").Sample} Sample */

const SIDE = 64; // of a thumbnail, in canvas units
const ROW = SIDE + 16;
const SHOWN_ROWS = 2; // further ones are scrolled to

/** @param {Sample} sample */
const caption = (sample) =>
  `${sample.step ? `${t("step")} ${sample.step}` : t("withoutLora")}  ·  ${sample.prompt || t("promptLeftOut")}`;

export class Filmstrip {
  constructor() {
    this.run = "";
    /** @type {Sample[]} */ this.samples = [];
    this.root = document.createElement("div");
    this.root.className = "kiln-film";
    this.root.style.cssText = "display:none;overflow:auto;flex:0 0 auto;gap:2px 4px;justify-content:start";
    this.root.setAttribute("role", "group");
    this.root.setAttribute("aria-label", t("samples"));
    // The wheel scrolls the strip, it does not zoom the graph
    this.root.addEventListener("wheel", (event) => event.stopPropagation());
  }

  /** Height that the strip wants on the node. */
  get height() {
    return Math.min(layOut(this.samples).rows.length, SHOWN_ROWS) * ROW;
  }

  /** @param {string} run @param {Sample[]} samples all of the run's */
  show(run, samples) {
    if (run === this.run && JSON.stringify(samples) === JSON.stringify(this.samples)) return;
    const focused = /** @type {HTMLElement|null} */ (this.root.contains(document.activeElement) ? document.activeElement : null);
    const atEnd = this.root.scrollLeft + this.root.clientWidth >= this.root.scrollWidth - SIDE;
    this.run = run;
    this.samples = samples;
    const { steps, rows } = layOut(samples);
    this.root.style.display = samples.length ? "grid" : "none";
    this.root.style.height = `${this.height}px`;
    this.root.style.gridTemplateColumns = `repeat(${steps.length}, ${SIDE}px)`;
    // Thumbnails that are there stay, so that their pictures are not fetched again
    const there = new Map([...this.root.children].map((child) => [/** @type {HTMLElement} */ (child).dataset.of, child]));
    const cells = rows.flatMap((row) => row.cells);
    this.root.replaceChildren(
      ...cells.map((cell) => (cell ? (there.get(this.name(cell)) ?? this.thumbnail(cell)) : document.createElement("span"))),
    );
    if (atEnd) this.root.scrollLeft = this.root.scrollWidth;
    if (focused?.dataset.key) this.focus(focused.dataset.key);
  }

  /** @param {Sample} sample @returns {string} tells it from all others, of other runs too */
  name(sample) {
    return JSON.stringify([this.run, sample]);
  }

  /** @param {string} key */
  focus(key) {
    /** @type {HTMLElement|null} */ (this.root.querySelector(`[data-key="${key}"]`))?.focus();
  }

  /** @param {Sample} sample */
  thumbnail(sample) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.key = `${sample.step}-${sample.place}`;
    button.dataset.of = this.name(sample);
    button.title = caption(sample);
    button.style.cssText =
      `width:${SIDE}px;height:${ROW}px;padding:0;border:0;background:none;cursor:pointer;` +
      "color:var(--input-text);font-size:10px;line-height:14px;display:flex;flex-direction:column;align-items:center";
    const picture = document.createElement("img");
    picture.src = sampleUrl(this.run, sample, "jpg");
    picture.alt = caption(sample);
    picture.loading = "lazy";
    picture.style.cssText = `width:${SIDE}px;height:${SIDE}px;object-fit:contain;border-radius:3px;background:var(--comfy-input-bg)`;
    const label = document.createElement("span");
    label.textContent = sample.step ? String(sample.step) : t("base");
    button.append(picture, label);
    button.addEventListener("click", () => this.enlarge(sample));
    // Dropped on the canvas, the picture itself brings its graph back; the small one holds none
    button.draggable = true;
    button.addEventListener("dragstart", (event) => {
      const address = new URL(sampleUrl(this.run, sample, "png"), location.href).href;
      event.dataTransfer?.setData("text/uri-list", address);
      event.stopPropagation();
    });
    return button;
  }

  /** @param {Sample} sample */
  enlarge(sample) {
    const dialog = document.createElement("dialog");
    dialog.className = "kiln-sample";
    dialog.style.cssText =
      "border:1px solid var(--border-color);border-radius:6px;padding:8px;max-width:96vw;max-height:96vh;overflow:hidden;" +
      "background:var(--comfy-menu-bg);color:var(--input-text);font-size:14px;text-align:center";
    const picture = document.createElement("img");
    picture.style.cssText = "display:block;margin:auto;max-width:92vw;max-height:82vh;min-width:min(512px,80vw);object-fit:contain";
    const text = document.createElement("p");
    text.style.cssText = "margin:8px 0;max-width:92vw";
    text.setAttribute("aria-live", "polite");
    const close = document.createElement("button");
    close.type = "button";
    close.textContent = t("close");
    close.style.cssText = "padding:4px 16px;cursor:pointer";
    close.addEventListener("click", () => dialog.close());

    let shown = sample;
    const show = () => {
      const still = !shown.animated || matchMedia("(prefers-reduced-motion: reduce)").matches;
      picture.src = sampleUrl(this.run, shown, still ? "png" : "webp");
      picture.alt = caption(shown);
      text.textContent = caption(shown);
    };
    dialog.addEventListener("keydown", (event) => {
      event.stopPropagation(); // Delete and the like must not reach the graph behind
      if (!event.key.startsWith("Arrow")) return;
      event.preventDefault();
      shown = neighbour(this.samples, shown, /** @type {any} */ (event.key)) ?? shown;
      show();
    });
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close(); // beside the picture
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      this.focus(`${shown.step}-${shown.place}`);
    });
    show();
    dialog.append(picture, text, close);
    document.body.append(dialog);
    dialog.showModal();
    close.focus();
  }
}
