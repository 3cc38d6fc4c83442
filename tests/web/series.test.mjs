// @ts-check
// The chart's arithmetic. Run by node's own test runner: node --test tests/web/
import assert from "node:assert/strict";
import { test } from "node:test";
import { bulk, clock, extent, lowerBound, thin, ticks, visible } from "../../web/series.mjs";

const count = (/** @type {number} */ n) => Array.from({ length: n }, (_, i) => i + 1);

test("lowerBound finds the first value that is not below", () => {
  assert.equal(lowerBound([1, 3, 5], 3), 1);
  assert.equal(lowerBound([1, 3, 5], 4), 2);
  assert.equal(lowerBound([1, 3, 5], 9), 3);
  assert.equal(lowerBound([], 1), 0);
});

test("visible keeps one neighbour on each side", () => {
  assert.deepEqual(visible(count(10), { from: 4, to: 6 }), { start: 2, end: 6 });
  assert.deepEqual(visible(count(10), { from: -5, to: 50 }), { start: 0, end: 10 });
});

test("thin keeps every peak of 20,000 points in at most two points a column", () => {
  const ys = count(20_000).map((i) => Math.sin(i) / i);
  ys[7_777] = 50;
  ys[12_345] = -50;
  const kept = thin(ys, 0, ys.length, 300);
  assert.ok(kept.length <= 600);
  assert.ok(kept.includes(7_777) && kept.includes(12_345));
  assert.deepEqual(kept, [...kept].sort((a, b) => a - b));
  assert.deepEqual(thin([3, 1, 2], 1, 3, 10), [1, 2]);
});

test("ticks are round and enclose the range", () => {
  assert.deepEqual(
    ticks(0.13, 0.87).map((v) => Number(v.toFixed(6))),
    [0, 0.2, 0.4, 0.6, 0.8, 1],
  );
  for (const [low, high] of [[0, 0], [5, 5], [-1, 1e-9], [1e-8, 1e-7]]) {
    const marks = ticks(low, high);
    assert.ok(marks[0] <= low && marks[marks.length - 1] >= high && marks.length >= 2 && marks.length <= 12);
  }
});

test("bulk ignores rare peaks of a rough curve, extent none", () => {
  const raw = count(10_000).map(() => 0.5);
  raw[10] = 99;
  assert.deepEqual(bulk(raw), [0.5, 0.5]);
  assert.deepEqual(bulk([], 0, 0), [0, 1]);
  assert.deepEqual(extent([raw, [0.4, NaN]]), [0.4, 99]);
  assert.deepEqual(extent([raw], 20, 30), [0.5, 0.5]);
  assert.deepEqual(extent([]), [0, 1]);
});

test("clock", () => {
  assert.equal(clock(65), "1:05");
  assert.equal(clock(3661), "1:01:01");
  assert.equal(clock(Infinity), "–");
});
