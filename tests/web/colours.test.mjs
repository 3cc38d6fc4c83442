// @ts-check
// Curves can be told apart: by contrast with the ground, by colour for colour-blind people, and by line style alone.
import assert from "node:assert/strict";
import { test } from "node:test";
import * as chart from "../../web/chart.mjs";
import * as overlay from "../../web/overlay.mjs";

const GROUNDS = { dark: ["#202020", "#353535"], light: ["#ffffff", "#f0f0f0"] }; // of the host's palettes
// How a colour looks to people who lack one kind of cone: Viénot, Brettel and Mollon 1999 (linear RGB), and for the
// third kind Brettel's half plane as in jsColorblindSimulator
const BLINDNESS = {
  protanopia: [0.1124, 0.8876, 0, 0.1124, 0.8876, 0, 0.004, -0.004, 1],
  deuteranopia: [0.2928, 0.7072, 0, 0.2928, 0.7072, 0, -0.0223, 0.0223, 1],
  tritanopia: [1.0128, 0.1353, -0.148, -0.0132, 0.8683, 0.1448, 0.0759, 0.8054, 0.1187],
};

const linear = (/** @type {string} */ hex) =>
  [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
const luminance = (/** @type {string} */ hex) => {
  const [r, g, b] = linear(hex);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (/** @type {string} */ a, /** @type {string} */ b) => {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
};

/** CIE Lab of linear RGB. @param {number[]} rgb */
function lab([r, g, b]) {
  const xyz = [
    (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505,
    0.2126 * r + 0.7152 * g + 0.0722 * b,
    (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089,
  ];
  const [x, y, z] = xyz.map((v) => (v > 0.008856 ? Math.cbrt(Math.max(v, 0)) : 7.787 * v + 16 / 116));
  return [116 * y - 16, 500 * (x - y), 200 * (y - z)];
}

/** @param {number[]} rgb @param {number[]} m */
const seen = ([r, g, b], m) => [0, 3, 6].map((i) => m[i] * r + m[i + 1] * g + m[i + 2] * b);

/** @param {string} a @param {string} b @param {number[]} m */
const distance = (a, b, m) => Math.hypot(...lab(seen(linear(a), m)).map((v, i) => v - lab(seen(linear(b), m))[i]));

for (const [name, palettes] of Object.entries({ chart, overlay })) {
  for (const [ground, colours] of Object.entries({ dark: palettes.ON_DARK, light: palettes.ON_LIGHT })) {
    test(`${name}, ${ground}: three to one against the ground (WCAG 2.2, 1.4.11)`, () => {
      for (const colour of Object.values(colours))
        for (const behind of GROUNDS[/** @type {"dark"|"light"} */ (ground)])
          assert.ok(contrast(colour, behind) >= 3, `${colour} on ${behind}: ${contrast(colour, behind).toFixed(2)}`);
    });
  }
}

test("the curves of one run differ for colour-blind people too", () => {
  for (const colours of [chart.ON_DARK, chart.ON_LIGHT]) {
    const { smooth, rate, validation } = colours;
    for (const matrix of Object.values(BLINDNESS))
      for (const [a, b] of [[smooth, rate], [rate, validation], [smooth, validation]])
        assert.ok(distance(a, b, matrix) > 15, `${a} and ${b}: ${distance(a, b, matrix).toFixed(1)}`);
  }
});

test("no two of fifty compared runs are drawn alike, and the first seven differ in their dashes alone", () => {
  const plot = Object.create(overlay.Overlay.prototype, { dark: { value: true } });
  const styles = Array.from({ length: 49 }, (_, place) => plot.style(place));
  assert.equal(new Set(styles.map((s) => JSON.stringify(s))).size, 49);
  assert.equal(new Set(styles.slice(0, 7).map((s) => JSON.stringify(s.dash))).size, 7);
});
