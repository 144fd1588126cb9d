// What takes time, beside the page: decoding, resizing and the network. One message, one answer with its number.
import { explain, openNetwork, predict } from "./network.js";
import { decode, pixelsOf } from "./photograph.js";

let network;  // A promise

async function withPicture(source, look) {
  const bitmap = source instanceof ImageBitmap ? source : await decode(source);
  try {
    return await look(await network, pixelsOf(bitmap));
  } finally {
    bitmap.close();
  }
}

const TASKS = {
  open: (files) => network = openNetwork(files),
  predict: ({ source }) => withPicture(source, predict),
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
