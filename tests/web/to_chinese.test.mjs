// @ts-check
// Sentences of the server in Chinese.
import assert from "node:assert/strict";
import { test } from "node:test";
import { CHINESE } from "../../web/server_texts.mjs";
import { toChinese } from "../../web/to_chinese.mjs";

test("what is filled in keeps its place", () => {
  assert.equal(
    toChinese("The folder 'cats' does not exist under /input; put your images in a folder there."),
    "/input 下没有文件夹 'cats'；请把图像放进那里的文件夹。",
  );
  assert.equal(toChinese("rank is 0; it must lie between 1 and 1024."), "rank 为 0；必须在 1 与 1024 之间。");
});

test("a sentence within a sentence, several in a line, several lines", () => {
  assert.equal(
    toChinese("The device has 8 GiB free, which does not hold the weights and the adapter; lower the rank or use an fp8 model."),
    "显存空闲 8 GiB，放不下权重和适配器；请降低秩，或使用 fp8 模型。",
  );
  assert.equal(
    toChinese("Diverging: 3 of 9 steps had no finite loss or gradient. Lower learning_rate (now 0.1)."),
    "发散：9 步中有 3 步的损失或梯度不是有限数。请降低 learning_rate（现为 0.1）。",
  );
  assert.equal(
    toChinese("step 4: a checkpoint is saved\ndone: 8 steps in 2 s, loss 0.900 -> 0.100; 2.1 % of the model's parameters, 0.5 MB"),
    "第 4 步：已保存检查点\n完成： 8 步，用时 2 秒，损失 0.900 → 0.100；占模型参数的 2.1 %，0.5 MB",
  );
});

test("what is not known, numbers and names stay", () => {
  for (const text of ["", "12.5", "Something nobody has said yet.", "output/loras/kiln/x.safetensors"]) assert.equal(toChinese(text), text);
});

test("every template fills in as much as its translation, and is found", () => {
  for (const [english, answer] of Object.entries(CHINESE)) {
    const count = english.split("{}").length - 1;
    const places = [...answer.matchAll(/\{(\d*)\}/g)].map((m) => m[1]);
    const numbers = places.every((p) => p !== "") ? places.map(Number).sort((a, b) => a - b) : places.map((_, i) => i);
    assert.deepEqual(numbers, Array.from({ length: count }, (_, i) => i), english);
    let place = 0;
    const filled = english.replaceAll("{}", () => String(10 + place++));
    assert.notEqual(toChinese(filled), filled, english);
  }
});
