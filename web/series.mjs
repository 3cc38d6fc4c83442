// @ts-check
// Arithmetic for the chart: what is visible, how it is thinned out, where the ticks lie. No drawing here.

/** @typedef {{from: number, to: number}} Range */

/**
 * The points of a rising series whose x lies in the range, with one neighbour on each side.
 * @param {number[]} xs rising
 * @param {Range} range
 * @returns {{start: number, end: number}} half-open indices
 */
export function visible(xs, range) {
  const start = Math.max(0, lowerBound(xs, range.from) - 1);
  const end = Math.min(xs.length, lowerBound(xs, range.to) + 1);
  return { start, end };
}

/**
 * First index whose value is not below `value`.
 * @param {number[]} xs rising
 * @param {number} value
 */
export function lowerBound(xs, value) {
  let low = 0;
  let high = xs.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * At most about `2 * columns` indices of [start, end) that keep every peak: the lowest and highest of each column.
 * @param {number[]} ys
 * @param {number} start
 * @param {number} end
 * @param {number} columns
 */
export function thin(ys, start, end, columns) {
  const count = end - start;
  if (count <= 2 * columns) return Array.from({ length: count }, (_, i) => start + i);
  const kept = [];
  for (let column = 0; column < columns; column++) {
    const from = start + Math.floor((column * count) / columns);
    const to = start + Math.floor(((column + 1) * count) / columns);
    let low = from;
    let high = from;
    for (let i = from + 1; i < to; i++) {
      if (ys[i] < ys[low]) low = i;
      if (ys[i] > ys[high]) high = i;
    }
    kept.push(Math.min(low, high));
    if (low !== high) kept.push(Math.max(low, high));
  }
  return kept;
}

/**
 * About `count` round numbers that enclose the range.
 * @param {number} low
 * @param {number} high
 * @param {number} count
 * @returns {number[]}
 */
export function ticks(low, high, count = 5) {
  if (!(high > low)) [low, high] = [low - Math.abs(low) / 2 - 1e-6, low + Math.abs(low) / 2 + 1e-6];
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 2.5, 5, 10].find((m) => m * power >= raw * 0.999) ?? 10);
  const first = Math.floor(low / step + 1e-9);
  const last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}

const SAMPLE = 2000; // values that the range of a rough curve is judged by

/**
 * The range that holds the bulk of the values of [start, end): rare peaks may leave the picture.
 * @param {number[]} values
 * @param {number} start
 * @param {number} end
 * @returns {[number, number]}
 */
export function bulk(values, start = 0, end = values.length) {
  const stride = Math.max(1, Math.floor((end - start) / SAMPLE)); // sorting all of a long run costs a frame
  /** @type {number[]} */ const sorted = [];
  for (let i = start; i < end; i += stride) if (Number.isFinite(values[i])) sorted.push(values[i]);
  if (!sorted.length) return [0, 1];
  sorted.sort((a, b) => a - b);
  const at = (/** @type {number} */ share) => sorted[Math.round(share * (sorted.length - 1))];
  return [at(0.01), at(0.98)];
}

/**
 * The lowest and highest of the values of [start, end) of several series.
 * @param {number[][]} series
 * @param {number} start
 * @param {number} end
 * @returns {[number, number]}
 */
export function extent(series, start = 0, end = Infinity) {
  let [low, high] = [Infinity, -Infinity];
  for (const values of series) {
    for (let i = start; i < Math.min(end, values.length); i++) {
      if (values[i] < low) low = values[i];
      if (values[i] > high) high = values[i];
    }
  }
  return low <= high ? [low, high] : [0, 1];
}

/** @param {number} seconds */
export function clock(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  const whole = Math.round(seconds);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (/** @type {number} */ n) => String(n).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}
