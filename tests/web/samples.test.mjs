import assert from "node:assert/strict";
import { test } from "node:test";

import { layOut, neighbour } from "../../web/samples.mjs";

const sample = (step, place) => ({ step, place, prompt: `prompt ${place}`, animated: false });
const samples = [sample(10, 0), sample(0, 0), sample(0, 1), sample(20, 1), sample(20, 0)];

test("a row per prompt, a column per step, holes where nothing was drawn", () => {
  const { steps, rows } = layOut(samples);
  assert.deepEqual(steps, [0, 10, 20]);
  assert.deepEqual(rows.map((row) => row.prompt), ["prompt 0", "prompt 1"]);
  assert.deepEqual(rows.map((row) => row.cells.map((cell) => cell?.step ?? null)), [[0, 10, 20], [0, null, 20]]);
  assert.deepEqual(layOut([]), { steps: [], rows: [] });
});

test("arrow keys go to the nearest picture and stop at the edges", () => {
  assert.deepEqual(neighbour(samples, sample(0, 1), "ArrowRight"), sample(20, 1));
  assert.deepEqual(neighbour(samples, sample(20, 0), "ArrowLeft"), sample(10, 0));
  assert.deepEqual(neighbour(samples, sample(20, 0), "ArrowDown"), sample(20, 1));
  assert.equal(neighbour(samples, sample(10, 0), "ArrowDown"), null);
  assert.equal(neighbour(samples, sample(0, 0), "ArrowLeft"), null);
  assert.equal(neighbour(samples, sample(0, 0), "ArrowUp"), null);
});
