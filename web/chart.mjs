// @ts-check
// The loss chart of one run: loss of each step, its smoothed mean, validation loss, learning rate.
import { Plot } from "./plot.mjs";
import { lowerBound, thin } from "./series.mjs";

// Colours after Okabe and Ito (2008), which colour-blind people tell apart; the lines differ in width and dashes too
export const ON_DARK = { raw: "#8fb8d0", smooth: "#56b4e9", rate: "#e69f00", validation: "#dddddd" };
export const ON_LIGHT = { raw: "#4a8ab8", smooth: "#0072b2", rate: "#b87400", validation: "#333333" };
const KEPT = 8000; // points; beyond it the curve is thinned out to half, peaks kept

export class Chart extends Plot {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {{raw: string, smooth: string, rate: string, validation: string}} names of the curves
   */
  constructor(canvas, names) {
    super(canvas);
    this.names = names;
    /** @type {number[]} */ this.steps = [];
    /** @type {number[]} */ this.raw = [];
    /** @type {number[]} */ this.smooth = [];
    /** @type {number[]} */ this.rates = [];
    this.peak = 0;
    /** @type {[step: number, loss: number][]} */ this.validation = [];
  }

  clear() {
    this.steps = [];
    this.raw = [];
    this.smooth = [];
    this.rates = [];
    this.peak = 0;
    this.validation = [];
    this.zoom = this.hover = null;
    this.announce(null);
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
      this.peak = Math.max(this.peak, rate);
    }
    if (this.steps.length > KEPT) this.thinOut();
    this.announce(null);
    this.redraw();
  }

  thinOut() {
    const kept = thin(this.raw, 0, this.raw.length, KEPT / 4);
    const of = (/** @type {number[]} */ values) => kept.map((i) => values[i]);
    [this.steps, this.raw, this.smooth, this.rates] = [of(this.steps), of(this.raw), of(this.smooth), of(this.rates)];
  }

  /** @override */
  stops() {
    return this.steps;
  }

  /** @override @returns {import("./plot.mjs").Curve[]} */
  curves() {
    const { steps: xs, validation } = this;
    const colour = this.dark ? ON_DARK : ON_LIGHT;
    return [
      { xs, ys: this.raw, colour: colour.raw, opacity: 0.6, rough: true, name: this.names.raw },
      { xs, ys: this.rates, colour: colour.rate, dash: [4, 3], peak: this.peak || 1, name: this.names.rate },
      { xs, ys: this.smooth, colour: colour.smooth, width: 2, name: this.names.smooth },
      {
        xs: validation.map(([step]) => step),
        ys: validation.map(([, loss]) => loss),
        colour: colour.validation,
        width: 1.5,
        dash: [1, 2],
        marks: true,
        name: this.names.validation,
      },
    ];
  }

  /** @override @param {number} step */
  values(step) {
    const i = lowerBound(this.steps, step);
    if (i >= this.steps.length) return [{ text: String(step) }];
    const colour = this.dark ? ON_DARK : ON_LIGHT;
    const measured = this.validation.filter(([at]) => at <= step).at(-1);
    return [
      { text: `${this.steps[i]}: ${this.raw[i].toPrecision(4)}`, colour: colour.raw },
      { text: `~ ${this.smooth[i].toPrecision(4)}`, colour: colour.smooth },
      ...(measured ? [{ text: `val ${measured[1].toPrecision(4)} (${measured[0]})`, colour: colour.validation }] : []),
      { text: `lr ${this.rates[i].toExponential(2)}`, colour: colour.rate },
    ];
  }
}
