// @ts-check
// A grid of many tiles of one size, of which only those in view exist. To a screen reader it is a list box: the box has
// the focus and says which option is active (https://www.w3.org/WAI/ARIA/apg/patterns/listbox/).
import { make } from "./dom.mjs";

const AHEAD = 2; // rows beyond the edge that exist already
const PATIENCE = 60; // milliseconds without scrolling, after which pictures are asked for

/**
 * @typedef {Object} Tile
 * @property {HTMLElement} element
 * @property {(index: number) => void} fill shows another item
 * @property {() => void} load asks for its picture
 */

export class Grid {
  /**
   * @param {Object} options
   * @param {string} options.label for screen readers
   * @param {number} options.width of a tile, pixels
   * @param {number} options.height
   * @param {() => Tile} options.tile makes an empty one
   * @param {(index: number) => boolean} options.isSelected
   * @param {(index: number, how: "only"|"toggle"|"range"|"move") => void} options.choose
   * @param {() => void} options.chooseAll
   * @param {() => void} options.open the active item by the Enter key
   */
  constructor(options) {
    this.options = options;
    this.count = 0;
    this.active = 0;
    this.columns = 1;
    /** @type {Map<number, Tile>} */ this.tiles = new Map();
    /** @type {Tile[]} */ this.spare = [];
    /** @type {ReturnType<typeof setTimeout> | undefined} */ this.timer = undefined;
    this.pending = false;
    this.space = make("div", { role: "presentation", class: "kiln-grid-space" });
    this.root = make(
      "div",
      {
        class: "kiln-grid",
        role: "listbox",
        tabindex: 0,
        "aria-label": options.label,
        "aria-multiselectable": "true",
        onscroll: () => this.soon(),
        onkeydown: (/** @type {KeyboardEvent} */ event) => this.key(event),
        onclick: (/** @type {MouseEvent} */ event) => this.click(event),
      },
      this.space,
    );
    new ResizeObserver(() => this.layOut()).observe(this.root);
  }

  /** @param {number} count of items @param {number} active */
  setCount(count, active) {
    this.count = count;
    this.active = Math.max(0, Math.min(active, count - 1));
    this.layOut();
  }

  layOut() {
    this.columns = Math.max(1, Math.floor((this.root.clientWidth - 4) / this.options.width));
    this.space.style.height = `${Math.ceil(this.count / this.columns) * this.options.height}px`;
    this.render(true);
  }

  /** In the next frame: scrolling sends more events than there are frames. */
  soon() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this.render(false);
    });
  }

  /** @param {boolean} anew those that exist already are filled again */
  render(anew) {
    const { height } = this.options;
    const top = Math.max(0, Math.floor(this.root.scrollTop / height) - AHEAD);
    const bottom = Math.ceil((this.root.scrollTop + this.root.clientHeight) / height) + AHEAD;
    const first = top * this.columns;
    const last = Math.min(this.count, bottom * this.columns);
    for (const [index, tile] of this.tiles) {
      if (index >= first && index < last) continue;
      this.tiles.delete(index);
      this.spare.push(tile);
    }
    for (let index = first; index < last; index++) {
      const there = this.tiles.get(index);
      if (there && !anew) continue;
      this.place(index, there ?? this.spare.pop() ?? this.made());
    }
    for (const tile of this.spare.splice(0)) tile.element.remove();
    this.root.toggleAttribute("data-empty", !this.count);
    const active = this.tiles.get(this.active);
    if (active) this.root.setAttribute("aria-activedescendant", active.element.id);
    else this.root.removeAttribute("aria-activedescendant");
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.load(), anew ? 0 : PATIENCE);
  }

  made() {
    const tile = this.options.tile();
    tile.element.setAttribute("role", "option");
    this.space.append(tile.element);
    return tile;
  }

  /** @param {number} index @param {Tile} tile */
  place(index, tile) {
    const { width, height } = this.options;
    this.tiles.set(index, tile);
    const { element } = tile;
    element.id = `kiln-tile-${index}`;
    element.dataset.index = String(index);
    element.style.transform = `translate(${(index % this.columns) * width}px, ${Math.floor(index / this.columns) * height}px)`;
    element.setAttribute("aria-posinset", String(index + 1));
    element.setAttribute("aria-setsize", String(this.count));
    element.setAttribute("aria-selected", String(this.options.isSelected(index)));
    element.classList.toggle("kiln-active", index === this.active);
    tile.fill(index);
  }

  load() {
    for (const tile of this.tiles.values()) tile.load();
  }

  /** Bring an item into view and make it the active one. @param {number} index */
  goTo(index) {
    this.active = Math.max(0, Math.min(index, this.count - 1));
    const { height } = this.options;
    const row = Math.floor(this.active / this.columns) * height;
    if (row < this.root.scrollTop) this.root.scrollTop = row;
    else if (row + height > this.root.scrollTop + this.root.clientHeight) this.root.scrollTop = row + height - this.root.clientHeight;
    this.render(true);
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const page = this.columns * Math.max(1, Math.floor(this.root.clientHeight / this.options.height));
    /** @type {Record<string, number>} */
    const places = {
      ArrowLeft: this.active - 1,
      ArrowRight: this.active + 1,
      ArrowUp: this.active - this.columns,
      ArrowDown: this.active + this.columns,
      PageUp: this.active - page,
      PageDown: this.active + page,
      Home: 0,
      End: this.count - 1,
    };
    const control = event.ctrlKey || event.metaKey;
    if (event.key in places) {
      const wanted = places[event.key];
      const beyond = event.key.startsWith("Arrow") && (wanted < 0 || wanted >= this.count);
      if (!beyond) this.move(Math.max(0, Math.min(wanted, this.count - 1)), event.shiftKey ? "range" : control ? "move" : "only");
    } else if (event.key === " ") this.options.choose(this.active, "toggle");
    else if (event.key === "Enter") this.options.open();
    else if (control && event.key.toLowerCase() === "a") this.options.chooseAll();
    else return;
    event.preventDefault();
  }

  /** @param {number} index @param {"only"|"toggle"|"range"|"move"} how */
  move(index, how) {
    this.goTo(index);
    this.options.choose(index, how);
  }

  /** @param {MouseEvent} event */
  click(event) {
    const target = /** @type {HTMLElement} */ (event.target);
    const tile = /** @type {HTMLElement | null} */ (target.closest("[data-index]"));
    if (!tile) return;
    const tick = target.closest(".kiln-tick") !== null;
    this.move(Number(tile.dataset.index), event.shiftKey ? "range" : tick || event.ctrlKey || event.metaKey ? "toggle" : "only");
  }
}
