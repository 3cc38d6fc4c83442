// @ts-check
// The loss chart on a <canvas>: raw and smoothed loss, learning rate, hover, zoom, log scale.
// Our own, because neither frontend generation exposes a chart library to extensions. Redrawn at most once a frame,
// with at most two points per pixel column, however many points a run has.
import { bulk, lowerBound, thin, ticks, visible } from "./series.mjs";

// Distinguishable for colour-blind people (Okabe and Ito 2008) and by width, on dark and light palettes
const COLOURS = { raw: "#56b4e9", smooth: "#0072b2", rate: "#e69f00", validation: "#009e73" };
const MARGIN = { left: 46, right: 8, top: 8, bottom: 18 };

export class Chart {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    /** @type {number[]} */ this.steps = [];
    /** @type {number[]} */ this.raw = [];
    /** @type {number[]} */ this.smooth = [];
    /** @type {number[]} */ this.rates = [];
    /** @type {[step: number, loss: number][]} */ this.validation = [];
    this.log = false;
    /** @type {import("./series.mjs").Range | null} */ this.zoom = null;
    /** @type {number | null} */ this.hover = null; // pixel column, in the canvas's own units
    this.pending = false;
    this.listen();
  }

  clear() {
    for (const series of [this.steps, this.raw, this.smooth, this.rates]) series.length = 0;
    this.validation = [];
    this.zoom = null;
    this.redraw();
  }

  /** @param {import("./api.mjs").Point[]} points in rising order; those already there are left out */
  add(points) {
    const last = this.steps.at(-1) ?? 0;
    for (const [step, loss, smoothed, rate] of points) {
      if (step <= last) continue;
      this.steps.push(step);
      this.raw.push(loss);
      this.smooth.push(smoothed);
      this.rates.push(rate);
    }
    this.redraw();
  }

  redraw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this.draw();
    });
  }

  listen() {
    // Offsets come in CSS pixels of the untransformed element; the canvas mode of the host scales it by CSS, so the
    // pointer's share of the bounding box is what holds at every zoom.
    const column = (/** @type {MouseEvent} */ event) => {
      const box = this.canvas.getBoundingClientRect();
      return ((event.clientX - box.left) / box.width) * this.canvas.clientWidth;
    };
    this.canvas.addEventListener("pointermove", (event) => {
      this.hover = column(event);
      this.redraw();
    });
    this.canvas.addEventListener("pointerleave", () => {
      this.hover = null;
      this.redraw();
    });
    this.canvas.addEventListener(
      "wheel",
      (event) => {
        if (!event.ctrlKey && !event.shiftKey) return; // plain wheel keeps zooming the graph
        event.preventDefault();
        event.stopPropagation();
        this.zoomAt(column(event), (event.deltaY || event.deltaX) < 0 ? 0.8 : 1.25);
      },
      { passive: false },
    );
    this.canvas.addEventListener("dblclick", (event) => {
      event.stopPropagation();
      this.zoom = null;
      this.redraw();
    });
  }

  /**
   * @param {number} column
   * @param {number} factor below 1 zooms in
   */
  zoomAt(column, factor) {
    const range = this.range();
    const width = this.canvas.clientWidth - MARGIN.left - MARGIN.right;
    const share = Math.min(1, Math.max(0, (column - MARGIN.left) / width));
    const centre = range.from + share * (range.to - range.from);
    const span = Math.max(4, (range.to - range.from) * factor);
    const from = Math.max(1, centre - share * span);
    const to = Math.min(this.steps.at(-1) ?? 1, from + span);
    this.zoom = from <= 1 && to >= (this.steps.at(-1) ?? 1) ? null : { from, to };
    this.redraw();
  }

  /** @returns {import("./series.mjs").Range} */
  range() {
    return this.zoom ?? { from: this.steps[0] ?? 1, to: Math.max(2, this.steps.at(-1) ?? 2) };
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return; // collapsed or off screen
    const density = Math.min(window.devicePixelRatio || 1, 2) * 1.5; // stays sharp at the usual canvas zooms
    if (this.canvas.width !== Math.round(width * density)) this.canvas.width = Math.round(width * density);
    if (this.canvas.height !== Math.round(height * density)) this.canvas.height = Math.round(height * density);
    const context = this.canvas.getContext("2d");
    if (!context) return;
    context.setTransform(density, 0, 0, density, 0, 0);
    context.clearRect(0, 0, width, height);
    const style = getComputedStyle(this.canvas);
    const ink = style.getPropertyValue("--input-text").trim() || style.color;
    const faint = style.getPropertyValue("--border-color").trim() || "#888";
    context.font = "10px sans-serif";
    if (!this.steps.length) {
      context.fillStyle = ink;
      context.textAlign = "center";
      context.fillText(this.canvas.dataset.empty ?? "", width / 2, height / 2);
      return;
    }
    const place = this.axes(context, width, height, ink, faint);
    this.line(context, this.raw, place, COLOURS.raw, 1, 0.55);
    this.line(context, this.smooth, place, COLOURS.smooth, 2, 1);
    this.measurements(context, place);
    this.rateLine(context, width, height);
    if (this.hover !== null) this.readout(context, place, width, height, ink, faint);
  }

  /**
   * Grid and labels.
   * @param {CanvasRenderingContext2D} context
   * @param {number} width
   * @param {number} height
   * @param {string} ink
   * @param {string} faint
   * @returns {(step: number, value: number) => [number, number]}
   */
  axes(context, width, height, ink, faint) {
    const range = this.range();
    const { start, end } = visible(this.steps, range);
    const scale = this.log ? (/** @type {number} */ v) => Math.log10(Math.max(v, 1e-12)) : (/** @type {number} */ v) => v;
    const firm = [...this.smooth.slice(start, end), ...this.validation.map(([, loss]) => loss)];
    const [low, high] = bulk(this.raw.slice(start, end), firm).map(scale);
    const marks = ticks(low, high, 4);
    const [bottom, top] = [marks[0], marks[marks.length - 1]];
    const x = (/** @type {number} */ step) =>
      MARGIN.left + ((width - MARGIN.left - MARGIN.right) * (step - range.from)) / Math.max(range.to - range.from, 1);
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
      context.fillText(String(step), Math.min(Math.max(x(step), MARGIN.left + 8), width - 16), height - MARGIN.bottom + 4);
    }
    return (step, value) => [x(step), y(value)];
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {number[]} values
   * @param {(step: number, value: number) => [number, number]} place
   * @param {string} colour
   * @param {number} thickness
   * @param {number} opacity
   */
  line(context, values, place, colour, thickness, opacity) {
    const { start, end } = visible(this.steps, this.range());
    context.save();
    context.beginPath();
    context.rect(MARGIN.left, 0, this.canvas.clientWidth - MARGIN.left, this.canvas.clientHeight);
    context.clip();
    context.beginPath();
    for (const i of thin(values, start, end, this.canvas.clientWidth)) {
      context.lineTo(...place(this.steps[i], values[i]));
    }
    context.globalAlpha = opacity;
    context.strokeStyle = colour;
    context.lineWidth = thickness;
    context.stroke();
    context.restore();
  }

  /**
   * The validation loss: few points, so each gets a mark.
   * @param {CanvasRenderingContext2D} context
   * @param {(step: number, value: number) => [number, number]} place
   */
  measurements(context, place) {
    const range = this.range();
    context.strokeStyle = context.fillStyle = COLOURS.validation;
    context.lineWidth = 1.5;
    context.beginPath();
    for (const [step, loss] of this.validation) {
      if (step < range.from - 1 || step > range.to) continue;
      const [x, y] = place(step, loss);
      context.lineTo(x, y);
      context.moveTo(x + 2.5, y);
      context.arc(x, y, 2.5, 0, 2 * Math.PI);
      context.moveTo(x, y);
    }
    context.stroke();
  }

  /**
   * The learning rate on a scale of its own, from zero to its peak.
   * @param {CanvasRenderingContext2D} context
   * @param {number} width
   * @param {number} height
   */
  rateLine(context, width, height) {
    const peak = this.rates.reduce((a, b) => Math.max(a, b), 0) || 1;
    const range = this.range();
    const span = height - MARGIN.top - MARGIN.bottom;
    /** @type {(step: number, value: number) => [number, number]} */
    const place = (step, rate) => [
      MARGIN.left + ((width - MARGIN.left - MARGIN.right) * (step - range.from)) / Math.max(range.to - range.from, 1),
      height - MARGIN.bottom - (span * rate) / peak,
    ];
    context.setLineDash([4, 3]);
    this.line(context, this.rates, place, COLOURS.rate, 1, 0.9);
    context.setLineDash([]);
  }

  /**
   * The values under the pointer.
   * @param {CanvasRenderingContext2D} context
   * @param {(step: number, value: number) => [number, number]} place
   * @param {number} width
   * @param {number} height
   * @param {string} ink
   * @param {string} faint
   */
  readout(context, place, width, height, ink, faint) {
    const range = this.range();
    const share = ((this.hover ?? 0) - MARGIN.left) / (width - MARGIN.left - MARGIN.right);
    const index = Math.min(this.steps.length - 1, lowerBound(this.steps, range.from + share * (range.to - range.from)));
    if (share < 0 || share > 1 || index < 0) return;
    const [x] = place(this.steps[index], this.raw[index]);
    context.strokeStyle = faint;
    context.beginPath();
    context.moveTo(x, MARGIN.top);
    context.lineTo(x, height - MARGIN.bottom);
    context.stroke();
    const text =
      `${this.steps[index]}: ${this.raw[index].toPrecision(4)}  ~${this.smooth[index].toPrecision(4)}` +
      `  lr ${this.rates[index].toExponential(2)}`;
    context.fillStyle = ink;
    context.textBaseline = "top";
    context.textAlign = x > width / 2 ? "right" : "left";
    context.fillText(text, x + (x > width / 2 ? -6 : 6), MARGIN.top);
  }
}
