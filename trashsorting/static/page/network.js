// The network on this device: ONNX Runtime Web on one thread, and what its logits say, as in inference/predictor.py.
import * as ort from "../runtime/ort.mjs";
import { learn, unpackSample, withRows } from "./learn.js";
import { cropBox, normalize, resize } from "./resize.js";

// Files may be sent or kept as gzip: a static host compresses no model by itself.
async function unpack(bytes) {
  const [first, second] = new Uint8Array(bytes, 0, 2);
  if (first !== 0x1f || second !== 0x8b) return bytes;
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

// The file has been optimised already; doing it again takes seconds.
export async function openNetwork({ model, wasm, card }) {
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = await unpack(wasm);
  ort.env.logLevel = "error";
  const options = { executionProviders: ["wasm"], graphOptimizationLevel: "disabled" };
  return { session: await ort.InferenceSession.create(new Uint8Array(await unpack(model)), options), card };
}

// The outputs of the network for a picture from `pixelsOf`.
async function run({ session, card }, picture, names) {
  const { preprocessing } = card;
  const side = preprocessing.input_size;
  const box = cropBox(picture.width, picture.height, preprocessing);
  const input = normalize(resize(picture, box, side, preprocessing.interpolation), preprocessing);
  const outputs = await session.run({ [session.inputNames[0]]: new ort.Tensor("float32", input, [1, 3, side, side]) }, names);
  return { outputs, box };
}

function softmax(logits, temperature) {
  const scaled = Array.from(logits, (value) => value / temperature);
  const largest = Math.max(...scaled);
  const exponentials = scaled.map((value) => Math.exp(value - largest));
  const sum = exponentials.reduce((total, value) => total + value, 0);
  return exponentials.map((value) => value / sum);
}

// The answer of the service's `/api/predict`, from probabilities in the order of the classes.
export function answerOf(classes, probabilities, unsureBelow) {
  const ranked = classes.map((label, index) => [label, probabilities[index]]).sort((a, b) => b[1] - a[1]);
  const [predicted_class, confidence] = ranked[0];
  const unsure = confidence < (unsureBelow ?? 0);
  return { predicted_class, confidence, all_probabilities: Object.fromEntries(ranked), unsure };
}

// With things that were taught, their logits stand behind those of the card's classes.
export async function predict(network, picture) {
  const { card, taught } = network;
  if (!taught?.names.length) {
    const { outputs } = await run(network, picture, ["logits"]);
    return answerOf(card.info.classes, softmax(outputs.logits.data, card.temperature), card.unsure_below);
  }
  const { logits } = withRows(await study(network, picture), taught.rows);
  return { ...answerOf([...card.info.classes, ...taught.names], softmax(logits, 1), taught.unsureBelow), taught: taught.names };
}

// What a class is learned from: the features of a picture, and its logits divided by the temperature.
export async function study(network, picture) {
  const { outputs } = await run(network, picture, ["features", "logits"]);
  return { features: Float64Array.from(outputs.features.data), logits: Array.from(outputs.logits.data, (value) => value / network.card.temperature) };
}

// Know these things besides the card's classes: { name, photographs, measured } each.
export function teach(network, { sample, things }) {
  const { card } = network;
  const { rows, measured, unsureBelow } = learn(things, unpackSample(sample, card.temperature), card.unsure_below);
  network.taught = { names: things.map(({ name }) => name), rows, unsureBelow };
  return { measured, unsureBelow };
}

// The answer of `/api/explain`: the class activation map of one class, and the part of the picture that it lies on.
export async function explain(network, picture, label) {
  const { outputs, box } = await run(network, picture, ["evidence"]);
  const [, classes, height, width] = outputs.evidence.dims;
  const cells = outputs.evidence.data;
  const support = (index, cell) => {
    let sum = 0;
    for (let other = 0; other < classes; other++) sum += cells[other * height * width + cell];
    return Math.max(0, cells[index * height * width + cell] - sum / classes);
  };
  let largest = 0;
  for (let i = 0; i < cells.length; i++) largest = Math.max(largest, support(Math.floor(i / (height * width)), i % (height * width)));
  const index = network.card.info.classes.indexOf(label);
  const activation_map = Array.from({ length: height }, (_, y) =>
    Array.from({ length: width }, (_, x) => support(index, y * width + x) / (largest || 1)));
  const sides = [picture.width, picture.height, picture.width, picture.height];
  return { label, activation_map, box: box.map((edge, i) => edge / sides[i]) };
}
