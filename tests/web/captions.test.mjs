// Captions as text and tags: what a change of many makes of them, what is counted, what a filter shows.
import assert from "node:assert/strict";
import test from "node:test";
import { changed, kindOf, passes, tagCounts, tagsOf } from "../../web/captions.mjs";

const item = (name, caption = "", more = {}) => ({ name, caption, fields: {}, version: "", bytes: 1, stamp: 1, clip: false, mask: false, aside: false, error: "", by_model: [], ...more });
const figures = (more = {}) => ({ width: 600, height: 600, frames: 1, seconds: 0, bucket: "", lost: 0, repeats: 1, masked: false, warnings: [], ...more });
const filter = (more = {}) => ({ words: "", tag: "", show: "all", below: 0, ...more });

test("tags are added once, in front or at the end", () => {
  assert.equal(changed("a cat, outdoors", "addFirst", "k1ln"), "k1ln, a cat, outdoors");
  assert.equal(changed("a cat, outdoors", "addLast", "sunny, Outdoors"), "a cat, outdoors, sunny");
  assert.equal(changed("K1LN, a cat", "addFirst", "k1ln"), "K1LN, a cat");
  assert.equal(changed("", "addFirst", "k1ln"), "k1ln");
  assert.equal(changed("a cat", "addLast", "  "), "a cat");
});

test("only whole tags are removed", () => {
  assert.equal(changed("cat, black cat, outdoors", "removeTag", "Cat, sky"), "black cat, outdoors");
  assert.equal(changed("no  change,here", "removeTag", "cat"), "no  change,here");
});

test("text is replaced as it is written", () => {
  assert.equal(changed("a (cat) on a mat", "replaceText", "(cat)", "$& dog"), "a $& dog on a mat");
  assert.equal(changed("abc", "replaceText", "", "x"), "abc");
});

test("a clip of one frame is a still once it is measured", () => {
  const clip = item("1.mp4", "", { clip: true });
  assert.equal(passes(clip, undefined, filter({ show: "clips" })), true);
  assert.equal(passes(clip, figures(), filter({ show: "clips" })), false);
  assert.equal(passes(clip, figures(), filter({ show: "stills" })), true);
  assert.equal(passes(item("1.gif"), figures({ frames: 9 }), filter({ show: "clips" })), true);
});

test("what a model wrote is shown alone", () => {
  assert.equal(passes(item("1", "a cat", { by_model: ["caption"] }), undefined, filter({ show: "model" })), true);
  assert.equal(passes(item("2", "mine"), undefined, filter({ show: "model" })), false);
});

test("only what has no caption is filled", () => {
  assert.equal(changed(" ", "fillMissing", "k1ln"), "k1ln");
  assert.equal(changed("mine", "fillMissing", "k1ln"), "mine");
});

test("tags are split at the commas of every keyboard", () => {
  assert.deepEqual(tagsOf("a\uff0c b,, c\u3001d "), ["a", "b", "c", "d"]);
});

test("tags are counted, or words where captions are sentences", () => {
  const tags = [item("1", "cat, outdoors"), item("2", "Cat, night, cat"), item("3")];
  assert.deepEqual(tagCounts(tags)[0], ["cat", 2]);
  const sentences = [item("1", "a cat on the mat"), item("2", "the cat sleeps")];
  assert.deepEqual(tagCounts(sentences)[0], ["cat", 2]);
  assert.ok(!tagCounts(sentences).some(([word]) => word === "the"));
});

test("warnings have one word for their kind", () => {
  assert.deepEqual(["like 3", "caption of 2", "caption length", "crop 30%", "empty mask"].map(kindOf), ["like", "same", "length", "crop", "empty"]);
});

test("a filter shows what it says", () => {
  const cat = item("cat.png", "a cat, outdoors", { fields: { lighting: "neon" } });
  assert.ok(passes(cat, undefined, filter({ words: "NEON cat" })));
  assert.ok(!passes(cat, undefined, filter({ words: "neon dog" })));
  assert.ok(passes(cat, undefined, filter({ tag: "outdoors" })) && !passes(cat, undefined, filter({ tag: "door" })));
  assert.ok(!passes(cat, undefined, filter({ show: "missing" })) && passes(item("x"), undefined, filter({ show: "missing" })));
  assert.ok(passes(cat, figures(), filter({ below: 1024 })) && !passes(cat, figures(), filter({ below: 512 })));
  const blurred = figures({ warnings: [{ kind: "blurred", text: "", severe: true }] });
  assert.ok(passes(cat, blurred, filter({ show: "kind:blurred" })) && !passes(cat, figures(), filter({ show: "kind:blurred" })));
  const aside = item("set_aside/x.png", "", { aside: true });
  assert.ok(passes(aside, undefined, filter({ show: "aside" })) && !passes(aside, undefined, filter()));
  assert.ok(!passes(cat, undefined, filter({ show: "aside" })));
});
