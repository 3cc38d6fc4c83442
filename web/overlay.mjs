// @ts-check
// The smoothed losses of several runs over each other, for comparing them.
import { Plot } from "./plot.mjs";
import { lowerBound } from "./series.mjs";

// Colours as in chart.mjs; the eighth run differs from the first in its dashes, so no two look alike
export const ON_DARK = ["#56b4e9", "#e69f00", "#2fcf9f", "#f0e442", "#cc79a7", "#ff7a3d", "#dddddd"];
export const ON_LIGHT = ["#0072b2", "#b87400", "#00795a", "#857a00", "#a8518a", "#c24a00", "#333333"];
const DASHES = [[], [6, 3], [2, 2], [8, 2, 2, 2], [12, 3], [4, 4], [1, 3]];

/**
 * @typedef {Object} Compared
 * @property {string} name its id
 * @property {string} label the name that the user gave it, or ""
 * @property {number[]} xs
 * @property {number[]} ys
 */

export class Overlay extends Plot {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    super(canvas);
    /** @type {Compared[]} */ this.runs = [];
  }

  /** @param {string} name @param {import("./api.mjs").Point[]} points @param {string} label */
  add(name, points, label = "") {
    if (this.runs.some((run) => run.name === name)) return;
    this.runs.push({ name, label, xs: points.map((p) => p[0]), ys: points.map((p) => p[2]) });
    this.redraw();
  }

  /** @param {string} name */
  remove(name) {
    this.runs = this.runs.filter((run) => run.name !== name);
    this.zoom = null;
    this.redraw();
  }

  /** @param {number} place @returns {{colour: string, dash: number[]}} how the run at that place is drawn */
  style(place) {
    const colours = this.dark ? ON_DARK : ON_LIGHT;
    const dash = DASHES[(place + Math.floor(place / colours.length)) % DASHES.length];
    return { colour: colours[place % colours.length], dash };
  }

  /** @override */
  curves() {
    return this.runs.map(({ xs, ys }, place) => ({ xs, ys, width: 1.8, ...this.style(place) }));
  }

  /** @override */
  stops() {
    const longest = this.runs.reduce((a, b) => ((b.xs.at(-1) ?? 0) > (a.xs.at(-1) ?? 0) ? b : a), { name: "", label: "", xs: [], ys: [] });
    return longest.xs;
  }

  /** @override @param {number} step */
  values(step) {
    const lines = this.runs.map(({ name, label, xs, ys }, place) => {
      const i = lowerBound(xs, step);
      const text = `${label.slice(0, 20) || name.slice(-8)}  ${i < ys.length ? ys[i].toPrecision(4) : "–"}`;
      return { text, colour: this.style(place).colour };
    });
    return [{ text: String(step) }, ...lines];
  }
}
