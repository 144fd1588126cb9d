// What takes time, beside the page: decoding, resizing and the network. One message, one answer with its number.
import { explain, openNetwork, predict, study, teach } from "./network.js";
import { perceptualHash } from "./hash.js";
import { decode, pixelsOf, shrink } from "./photograph.js";

let network;  // A promise

async function withPicture(source, look) {
  const bitmap = source instanceof ImageBitmap ? source : await decode(source);
  try {
    return await look(await network, pixelsOf(bitmap));
  } finally {
    bitmap.close();
  }
}

// A picture as it is kept, with what the network says about that, and its perceptual hash.
async function keep(source) {
  const bitmap = await decode(source);
  const picture = await shrink(bitmap);
  bitmap.close();
  return withPicture(picture, async (opened, pixels) => ({ picture, hash: perceptualHash(pixels), ...await study(opened, pixels) }));
}

const TASKS = {
  open: (files) => network = openNetwork(files),
  predict: ({ source }) => withPicture(source, predict),
  keep: ({ source }) => keep(source),
  study: ({ source }) => withPicture(source, study),
  teach: async (content) => teach(await network, content),
  explain: ({ source, label }) => withPicture(source, (opened, picture) => explain(opened, picture, label)),
};

self.addEventListener("message", async ({ data: { number, task, content } }) => {
  try {
    const result = await TASKS[task](content);
    postMessage({ number, result: task === "open" ? null : result });
  } catch (error) {
    postMessage({ number, code: typeof error === "string" ? error : "cannot-run", detail: String(error) });
  }
});
