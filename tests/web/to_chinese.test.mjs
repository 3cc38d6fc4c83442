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
    "第 4 步：已保存检查点\n完成：8 步，用时 2 秒，损失 0.900 → 0.100；占模型参数的 2.1 %，0.5 MB",
  );
});

test("parts that a sentence is put together of, and reasons in a row", () => {
  assert.equal(
    toChinese(
      "needs about 7.00 GiB (weights 3.00, adapter 1.00, gradients 1.00, optimizer 1.00, activations 1.00) at memory level stream blocks with block inputs in CPU memory, attention and MLP recomputed apart, and 1.00 GiB of pinned CPU memory, chosen for the 22.00 GiB that are free (resident needs 30.00 GiB)",
    ),
    "约需 7.00 GiB（权重 3.00，适配器 1.00，梯度 1.00，优化器 1.00，激活值 1.00），显存级别 stream blocks，块输入放在内存中，注意力与 MLP 分开重算，另需 1.00 GiB 锁页内存，因为空闲 22.00 GiB（resident 需要 30.00 GiB）",
  );
  assert.equal(
    toChinese("A new run that goes on from step 5 of the run 20260101-a (seed is 1 and is 7 now; its dataset is another one)."),
    "新的训练，从训练记录 20260101-a 的第 5 步继续（seed 原为 1，现在是 7；它用的是另一个数据集）。",
  );
  assert.equal(toChinese("A new run that goes on from step 5 of the run 20260101-a."), "新的训练，从训练记录 20260101-a 的第 5 步继续。");
  assert.equal(
    toChinese("stopped after 9 steps in 12 s, loss 1.000 -> 1.000; 1.0 % of the model's parameters, 0.0 MB; validation best 1.0000 at step 3; Resume it with latest: r1"),
    "停止于 9 步，用时 12 秒，损失 1.000 → 1.000；占模型参数的 1.0 %，0.0 MB；验证损失最低 1.0000，步数 3；可用 latest 恢复：r1",
  );
  assert.equal(
    toChinese("3 of 9 tensors changed; 2 layers fit nothing: a.b, c.d; nothing is changed: the update is zero, or too small for the file's precision"),
    "9 个张量中改动了 3 个；有 2 层在模型中没有对应：a.b, c.d；没有任何改动：更新为零，或小于该文件精度所能表示的程度",
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

test("a folder of bad files is said in Chinese throughout", () => {
  const text =
    "The folder /in/all bad cannot be used: none of its 3 images can be read. The image /in/all bad/x.png cannot be read (it is no image, or of a kind that is not known here); replace or remove it. Further files that cannot be used (2): y.jpg, z.jpg.";
  assert.match(toChinese(text), /^\u6587\u4ef6\u5939 \/in\/all bad /);
  assert.doesNotMatch(toChinese(text).replaceAll("/in/all bad", ""), /image|cannot|replace|remove|Further|none/);
});
