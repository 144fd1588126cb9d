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
  const answer = answerOf([...card.info.classes, ...taught.names], softmax(logits, 1), taught.unsureBelow);
  return { ...answer, withoutMap: hasCells(network) ? [] : taught.names };
}

// Whether the file tells the features of each cell. One that was kept by an earlier page may not.
const hasCells = ({ session }) => session.outputNames.includes("cells");

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

// The logit of a taught thing in each cell, as `evidence` has those of the card's classes: not divided by the temperature.
function evidenceOf({ weights, bias }, cells, size, temperature) {
  return Float64Array.from({ length: size }, (_, cell) =>
    temperature * weights.reduce((sum, weight, feature) => sum + weight * cells[feature * size + cell], bias));
}

// The answer of `/api/explain`: the class activation map of one class, and the part of the picture that it lies on.
export async function explain(network, picture, label) {
  const { card, taught } = network;
  const { names, rows } = taught && hasCells(network) ? taught : { names: [], rows: [] };
  const labels = [...card.info.classes, ...names];
  const { outputs, box } = await run(network, picture, names.length ? ["evidence", "cells"] : ["evidence"]);
  const [, classes, height, width] = outputs.evidence.dims;
  const size = height * width;
  const maps = Array.from({ length: classes }, (_, index) => outputs.evidence.data.subarray(index * size, (index + 1) * size));
  maps.push(...rows.map((row) => evidenceOf(row, outputs.cells.data, size, card.temperature)));
  const means = Array.from({ length: size }, (_, cell) => maps.reduce((sum, map) => sum + map[cell], 0) / maps.length);
  const supports = maps.map((map) => means.map((mean, cell) => Math.max(0, map[cell] - mean)));
  const largest = Math.max(...supports.flat()) || 1;
  const support = supports[labels.indexOf(label)].map((value) => value / largest);
  const activation_map = Array.from({ length: height }, (_, y) => support.slice(y * width, (y + 1) * width));
  const sides = [picture.width, picture.height, picture.width, picture.height];
  return { label, activation_map, box: box.map((edge, i) => edge / sides[i]) };
}
