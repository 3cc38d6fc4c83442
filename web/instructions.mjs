// @ts-check
// Choosing a ready instruction on Caption Dataset fills the visible widgets; changing one of those shows "own".
import { fillWidgets } from "./presets.mjs";

// Those of trainer/dataset/instructions.py; a test compares the two.
export const INSTRUCTIONS = {
  subject: {
    write: "caption",
    instruction:
      "Describe this picture in one or two plain sentences, as a caption for training an image model on its main subject. Say what changes from picture to picture: pose, action, expression, clothes, framing, background, light. Leave out what always belongs to the subject, such as face, hair and build. Answer with the caption only.",
  },
  style: {
    write: "caption",
    instruction:
      "Describe what this picture shows in one or two plain sentences, as a caption for training an image model on its style. Say who and what is seen, doing what, where, and how it is arranged. Leave out everything about the style itself: medium, technique, brushwork, palette, artist. Answer with the caption only.",
  },
  "video motion": {
    write: "caption",
    instruction:
      "These are frames of one clip, in order. Describe in two or three plain sentences who or what is seen and how it moves from the first frame to the last, then how the camera moves, or that it stands still. Use the present tense. Answer with the caption only.",
  },
  tags: {
    write: "tags",
    instruction:
      "List what is seen in this picture as short lower-case tags with commas between, as image boards use them: first how many people (1girl, 2boys, no humans), then hair, eyes, clothes, pose, expression, view, objects, background, light. At most 30 tags. Answer with the tags only.",
  },
  fields: {
    write: "fields",
    instruction: "Look at this picture and say of each name below what is seen, in two to six words, as they would stand in a caption.",
  },
};

/** @param {any} node a KilnCaptionDataset @param {any} app the host's app, to redraw */
export function fillFromInstruction(node, app) {
  fillWidgets(node, app, "ready", INSTRUCTIONS, "own");
}
