// @ts-check
// Curves over steps on a <canvas>: axes, zoom, pan, log scale, values under the pointer or under the arrow keys.
// Our own, because neither frontend generation exposes a chart library to extensions. Redrawn at most once a frame,
// with at most two points per pixel column, however many points a curve has. chart.mjs and overlay.mjs say what is drawn.
import { bulk, extent, lowerBound, ticks, thin, visible } from "./series.mjs";

const MARGIN = { left: 46, right: 8, top: 20, bottom: 18 };
const LEGEND = 8; // its middle, from the top
const CLICK = 3; // pixels that a press may move without being a drag

/**
 * @typedef {Object} Curve
 * @property {number[]} xs steps, rising
 * @property {number[]} ys
 * @property {string} colour
 * @property {string} [name] in the legend
 * @property {number} [width]
 * @property {number} [opacity]
 * @property {number[]} [dash] line style: colour is never the only difference between two curves
 * @property {boolean} [marks] few points: each gets a ring
 * @property {boolean} [rough] rare peaks may leave the picture; all other curves stay in it whole
 * @property {number} [peak] a scale of its own, from 0 at the bottom to this at the top
 *
 * @typedef {(step: number, value: number) => [x: number, y: number]} Place
 */

/** @type {Set<WeakRef<Plot>>} */
const plots = new Set();

/** A theme is a class of the page and variables in its style: whatever of those changes, every plot is drawn again. */
export function followTheme() {
  const observer = new MutationObserver(() => {
    for (const held of plots) {
      const plot = held.deref();
      if (plot) plot.redraw();
      else plots.delete(held);
    }
  });
  for (const target of [document.documentElement, document.body]) {
    observer.observe(target, { attributes: true, attributeFilter: ["class", "style"] });
  }
}

export class Plot {
  /** @param {HTMLCanvasElement} canvas focusable; it becomes a slider over the steps for the keyboard */
  constructor(canvas) {
    this.canvas = canvas;
    this.log = false;
    /** @type {import("./series.mjs").Range | null} */ this.zoom = null;
    /** @type {number | null} */ this.hover = null; // the step whose values are shown
    this.view = { from: 0, to: 1 }; // of the frame that is being drawn
    this.pending = false;
    this.drawn = 0; // frames so far, for measurements
    plots.add(new WeakRef(this));
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "slider");
    this.describe(0, { from: 0, to: 1 }, canvas.dataset.empty ?? "");
    canvas.style.touchAction = "none";
    this.listen();
  }

  /** @returns {Curve[]} what to draw, the first one at the back */
  curves() {
    return [];
  }

  /** @returns {number[]} the steps that can be pointed at, rising */
  stops() {
    return this.curves()[0]?.xs ?? [];
  }

  /**
   * @param {number} step
   * @returns {{text: string, colour?: string}[]} the values there, a line each
   */
  values(step) {
    return [{ text: String(step) }];
  }

  redraw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this.draw();
    });
  }

  /** The steps of the whole picture, whatever the zoom. @returns {import("./series.mjs").Range} */
  whole() {
    const ends = this.curves().flatMap(({ xs }) => (xs.length ? [xs[0], xs[xs.length - 1]] : []));
    const [from, to] = extent([ends]);
    return { from, to: Math.max(to, from + 1) };
  }

  /** @returns {import("./series.mjs").Range} */
  range() {
    return this.zoom ?? this.whole();
  }

  /** @returns {boolean} whether the palette is dark: text is light then */
  get dark() {
    const [red, green, blue] = (this.ink.match(/[\d.]+/g) ?? ["0", "0", "0"]).map(Number);
    return 0.3 * red + 0.6 * green + 0.1 * blue > 128;
  }

  get ink() {
    return getComputedStyle(this.canvas).color;
  }

  // ---- input ----

  listen() {
    const { canvas } = this;
    // Offsets come in CSS pixels of the untransformed element; the canvas mode of the host scales it by CSS, so the
    // pointer's share of the bounding box is what holds at every zoom.
    const column = (/** @type {MouseEvent} */ event) => {
      const box = canvas.getBoundingClientRect();
      return ((event.clientX - box.left) / box.width) * canvas.clientWidth;
    };
    /** @type {{column: number, range: import("./series.mjs").Range} | null} */
    let held = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      held = { column: column(event), range: this.range() };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointerup", () => (held = null));
    canvas.addEventListener("pointercancel", () => (held = null));
    canvas.addEventListener("pointermove", (event) => {
      const moved = held ? column(event) - held.column : 0;
      if (held && this.zoom && Math.abs(moved) > CLICK) {
        this.show(held.range, (-moved / this.width) * (held.range.to - held.range.from));
      }
      this.point(this.stepAt(column(event)));
    });
    canvas.addEventListener("pointerleave", () => this.point(null));
    canvas.addEventListener(
      "wheel",
      (event) => {
        if (!event.ctrlKey && !event.shiftKey) return; // plain wheel keeps zooming the graph
        event.preventDefault();
        event.stopPropagation();
        this.zoomAt(column(event), (event.deltaY || event.deltaX) < 0 ? 0.8 : 1.25);
      },
      { passive: false },
    );
    canvas.addEventListener("dblclick", (event) => {
      event.stopPropagation();
      this.zoom = null;
      this.redraw();
    });
    canvas.addEventListener("keydown", (event) => {
      if (!this.key(event)) return;
      event.preventDefault();
      event.stopPropagation();
    });
    canvas.addEventListener("blur", () => this.point(null));
  }

  /** @param {KeyboardEvent} event @returns {boolean} whether it meant us */
  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return false;
    const middle = MARGIN.left + this.width / 2;
    const steps = this.stops();
    const place = this.hover === null ? steps.length - 1 : lowerBound(steps, this.hover);
    const stride = event.shiftKey ? Math.max(1, Math.round(steps.length / 20)) : 1;
    if (event.key === "+") this.zoomAt(middle, 0.8);
    else if (event.key === "-") this.zoomAt(middle, 1.25);
    else if (event.key === "0") this.zoomAt(middle, 1e9);
    else if (event.key === "ArrowLeft") this.readAt(place - stride);
    else if (event.key === "ArrowRight") this.readAt(this.hover === null ? place : place + stride);
    else if (event.key === "Home") this.readAt(0);
    else if (event.key === "End") this.readAt(steps.length - 1);
    else return false;
    return true;
  }

  /** Show the values of one of the steps and bring it into the picture. @param {number} index */
  readAt(index) {
    const steps = this.stops();
    if (!steps.length) return;
    const step = steps[Math.min(Math.max(index, 0), steps.length - 1)];
    const range = this.range();
    if (step < range.from) this.show(range, step - range.from);
    if (step > range.to) this.show(range, step - range.to);
    this.point(step);
  }

  /** @param {number | null} step whose values are shown */
  point(step) {
    this.hover = step;
    if (step !== null) this.announce(step);
    this.redraw();
  }

  /** Tell the keyboard's user where the slider stands. @param {number | null} step null before anything was read */
  announce(step) {
    if (!this.stops().length) {
      this.describe(0, { from: 0, to: 1 }, this.canvas.dataset.empty ?? "");
      return;
    }
    const now = step ?? this.hover ?? this.stops().at(-1) ?? 0;
    this.describe(now, this.whole(), this.values(now).map((line) => line.text).join(", "));
  }

  /** @param {number} now @param {import("./series.mjs").Range} range @param {string} text */
  describe(now, { from, to }, text) {
    for (const [name, value] of Object.entries({ valuemin: from, valuemax: to, valuenow: now, valuetext: text })) {
      this.canvas.setAttribute(`aria-${name}`, String(value));
    }
  }

  /** @param {number} column @returns {number | null} the step at a pixel column */
  stepAt(column) {
    const share = (column - MARGIN.left) / this.width;
    const steps = this.stops();
    if (share < 0 || share > 1 || !steps.length) return null;
    const range = this.range();
    return steps[Math.min(steps.length - 1, lowerBound(steps, range.from + share * (range.to - range.from)))];
  }

  get width() {
    return Math.max(1, this.canvas.clientWidth - MARGIN.left - MARGIN.right);
  }

  /**
   * @param {number} column
   * @param {number} factor below 1 zooms in
   */
  zoomAt(column, factor) {
    const range = this.range();
    const share = Math.min(1, Math.max(0, (column - MARGIN.left) / this.width));
    const span = Math.max(4, (range.to - range.from) * factor);
    const from = range.from + share * (range.to - range.from) - share * span;
    this.show({ from, to: from + span }, 0);
  }

  /** Show a range, moved by some steps but never out of the curves. @param {import("./series.mjs").Range} range @param {number} by */
  show(range, by) {
    const whole = this.whole();
    const span = range.to - range.from;
    const from = Math.max(whole.from, Math.min(range.from + by, whole.to - span));
    const to = Math.min(whole.to, from + span);
    this.zoom = from <= whole.from && to >= whole.to ? null : { from, to };
    this.redraw();
  }

  // ---- output ----

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return; // collapsed or off screen
    this.drawn++;
    this.view = this.range();
    const density = Math.min(window.devicePixelRatio || 1, 2) * 1.5; // stays sharp at the usual canvas zooms
    if (this.canvas.width !== Math.round(width * density)) this.canvas.width = Math.round(width * density);
    if (this.canvas.height !== Math.round(height * density)) this.canvas.height = Math.round(height * density);
    const context = this.canvas.getContext("2d");
    if (!context) return;
    context.setTransform(density, 0, 0, density, 0, 0);
    context.clearRect(0, 0, width, height);
    const ink = this.ink;
    const faint = getComputedStyle(this.canvas).getPropertyValue("--border-color").trim() || "#888";
    context.font = "10px sans-serif";
    const curves = this.curves().filter((curve) => curve.xs.length);
    if (!curves.length) {
      context.fillStyle = ink;
      context.textAlign = "center";
      context.fillText(this.canvas.dataset.empty ?? "", width / 2, height / 2);
      return;
    }
    const place = this.axes(context, curves, ink, faint);
    context.save();
    context.beginPath();
    context.rect(MARGIN.left, 0, width - MARGIN.left, height);
    context.clip();
    for (const curve of curves) this.line(context, curve, curve.peak ? this.ownScale(curve.peak) : place);
    context.restore();
    this.legend(context, curves, ink);
    if (this.hover !== null) this.readout(context, this.hover, ink, faint);
  }

  /**
   * Above the curves: how each that has a name is drawn.
   * @param {CanvasRenderingContext2D} context
   * @param {Curve[]} curves
   * @param {string} ink
   */
  legend(context, curves, ink) {
    context.textAlign = "left";
    context.textBaseline = "middle";
    let x = MARGIN.left;
    for (const { name, colour, width, dash, marks } of curves) {
      if (!name) continue;
      context.strokeStyle = colour;
      context.lineWidth = width ?? 1;
      context.setLineDash(dash ?? []);
      context.beginPath();
      context.moveTo(x, LEGEND);
      context.lineTo(x + 14, LEGEND);
      context.stroke();
      context.setLineDash([]);
      if (marks) {
        context.beginPath();
        context.arc(x + 7, LEGEND, 2.5, 0, 2 * Math.PI);
        context.stroke();
      }
      context.fillStyle = ink;
      context.fillText(name, x + 17, LEGEND);
      x += 17 + context.measureText(name).width + 8;
    }
  }

  /** @param {number} step @returns {number} pixel column */
  x(step) {
    return MARGIN.left + (this.width * (step - this.view.from)) / Math.max(this.view.to - this.view.from, 1);
  }

  /**
   * Grid and labels.
   * @param {CanvasRenderingContext2D} context
   * @param {Curve[]} curves
   * @param {string} ink
   * @param {string} faint
   * @returns {Place}
   */
  axes(context, curves, ink, faint) {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const range = this.view;
    const scale = this.log ? (/** @type {number} */ v) => Math.log10(Math.max(v, 1e-12)) : (/** @type {number} */ v) => v;
    const bounds = curves.filter((curve) => !curve.peak).map((curve) => {
      const { start, end } = visible(curve.xs, range);
      return curve.rough ? bulk(curve.ys, start, end) : extent([curve.ys], start, end);
    });
    const [low, high] = extent(bounds).map(scale);
    const marks = ticks(low, high, 4);
    const [bottom, top] = [marks[0], marks[marks.length - 1]];
    const y = (/** @type {number} */ value) => {
      const clamped = Math.min(Math.max(scale(value), bottom), top);
      return height - MARGIN.bottom - ((height - MARGIN.top - MARGIN.bottom) * (clamped - bottom)) / (top - bottom);
    };
    context.strokeStyle = faint;
    context.fillStyle = ink;
    context.lineWidth = 0.5;
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const mark of marks) {
      const line = y(this.log ? 10 ** mark : mark);
      context.beginPath();
      context.moveTo(MARGIN.left, line);
      context.lineTo(width - MARGIN.right, line);
      context.stroke();
      context.fillText((this.log ? 10 ** mark : mark).toPrecision(2), MARGIN.left - 4, line);
    }
    context.textBaseline = "top";
    context.textAlign = "center";
    for (let i = 0; i <= 4; i++) {
      const step = Math.round(range.from + ((range.to - range.from) * i) / 4);
      context.fillText(String(step), Math.min(Math.max(this.x(step), MARGIN.left + 8), width - 16), height - MARGIN.bottom + 4);
    }
    return (step, value) => [this.x(step), y(value)];
  }

  /** @param {number} peak @returns {Place} from zero to the peak */
  ownScale(peak) {
    const height = this.canvas.clientHeight;
    return (step, value) => [this.x(step), height - MARGIN.bottom - ((height - MARGIN.top - MARGIN.bottom) * value) / peak];
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {Curve} curve
   * @param {Place} place
   */
  line(context, curve, place) {
    const { start, end } = visible(curve.xs, this.view);
    const kept = thin(curve.ys, start, end, Math.ceil(this.width));
    context.globalAlpha = curve.opacity ?? 1;
    context.strokeStyle = curve.colour;
    context.lineWidth = curve.width ?? 1;
    context.setLineDash(curve.dash ?? []);
    context.beginPath();
    for (const i of kept) context.lineTo(...place(curve.xs[i], curve.ys[i]));
    context.stroke();
    context.setLineDash([]);
    if (curve.marks) {
      context.beginPath();
      for (const i of kept) {
        const [x, y] = place(curve.xs[i], curve.ys[i]);
        context.moveTo(x + 2.5, y);
        context.arc(x, y, 2.5, 0, 2 * Math.PI);
      }
      context.stroke();
    }
    context.globalAlpha = 1;
  }

  /**
   * The values at a step, on a ground of their own so that the curves do not run through the figures.
   * @param {CanvasRenderingContext2D} context
   * @param {number} step
   * @param {string} ink
   * @param {string} faint
   */
  readout(context, step, ink, faint) {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const x = this.x(step);
    context.strokeStyle = faint;
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(x, MARGIN.top);
    context.lineTo(x, height - MARGIN.bottom);
    context.stroke();
    const lines = this.values(step);
    const wide = Math.max(...lines.map((line) => context.measureText(line.text).width)) + 20;
    const left = Math.max(MARGIN.left, Math.min(width - wide - 2, x > width / 2 ? x - wide - 4 : x + 4));
    context.fillStyle = this.dark ? "rgba(20,20,20,0.85)" : "rgba(255,255,255,0.9)";
    context.fillRect(left, MARGIN.top, wide, 13 * lines.length + 4);
    context.textBaseline = "top";
    context.textAlign = "left";
    lines.forEach((line, i) => {
      if (line.colour) {
        context.fillStyle = line.colour;
        context.fillRect(left + 4, MARGIN.top + 6 + 13 * i, 8, 3);
      }
      context.fillStyle = ink;
      context.fillText(line.text, left + 16, MARGIN.top + 3 + 13 * i);
    });
  }
}
