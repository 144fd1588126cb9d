// The model on this device: kept for visits without a network, refreshed when there is one, and run beside the page.
import { settings } from "./dom.js";
import { binFor } from "./rules.js";
import { Problem, request } from "./service.js";
import { forgetThing, keepThing, readThings } from "./things.js";

const CACHE = "on-device";
const CARD = "api/on-device/model.json";
const RULES = "api/on-device/rules.json";
const RUNTIME = "runtime/ort.wasm?version=" + settings.runtime;
const modelUrl = (card) => "api/on-device/model.onnx.gz?sha256=" + card.sha256;
const sampleUrl = (card) => "api/on-device/sample.json?sha256=" + card.sha256;
const filesOf = (card) => [RUNTIME, modelUrl(card), ...card.teachable ? [sampleUrl(card)] : []];

export let card = null;  // Of the model that is here: what to do before and after the network, and its `info`.
export let rules = [];  // Of every place.
export let state = "absent";  // Or loading, ready, failed.

// Files by address. Where the browser keeps none (without https, in a private window, on a full disk), they stay until the page is left.
const memory = new Map();

async function kept(url) {
  let found;
  try {
    found = await (await caches.open(CACHE)).match(url, { ignoreVary: true });
  } catch { /* See above. */ }
  return found ?? memory.get(url)?.clone();
}

async function keep(url, response) {
  try {
    await (await caches.open(CACHE)).put(url, response.clone());
  } catch {
    memory.set(url, response);
  }
}

async function forgetAllBut(urls) {
  try {
    const cache = await caches.open(CACHE);
    const current = urls.map((url) => new URL(url, location).href);
    for (const { url } of await cache.keys()) if (!current.includes(url)) await cache.delete(url, { ignoreVary: true });
  } catch { /* Then there is nothing. */ }
}

async function fetched(url) {
  const response = await request(url, { cache: "no-cache" });
  if (!response.ok) throw new Problem(response, await response.json().catch(() => null));
  return response;
}

// What an earlier visit left here, if it is whole.
export async function restore() {
  if (!settings.runtime || state === "ready") return;
  const [oldCard, oldRules] = await Promise.all([CARD, RULES].map(kept));
  if (!oldCard || !oldRules) return;
  const known = await oldCard.json();
  if ((await Promise.all(filesOf(known).map(kept))).includes(undefined)) return;
  [card, rules, state] = [known, await oldRules.json(), "ready"];
}

// What the service, or the host of this page, has now. The card is kept last: it says that the rest is here.
async function refresh() {
  const [newCard, newRules] = await Promise.all([CARD, RULES].map(fetched));
  const fresh = await newCard.clone().json();
  const large = filesOf(fresh);
  await Promise.all(large.map(async (url) => { if (!await kept(url)) await keep(url, await fetched(url)); }));
  await keep(RULES, newRules.clone());
  await keep(CARD, newCard);
  await forgetAllBut([CARD, RULES, ...large]);
  const changed = fresh.sha256 !== card?.sha256;
  [card, rules, state] = [fresh, await newRules.json(), "ready"];
  if (changed) {
    closeNetwork();
    unsureBelow = null;
  }
}

// Get ready to classify here: at once with what is kept, which is refreshed meanwhile. After a failure it can be tried again.
let preparing = null;
export function prepare(shown = () => {}) {
  return preparing ??= (async () => {
    if (!settings.runtime) return;
    await restore();
    if (state !== "ready") state = "loading";
    shown();
    const refreshing = refresh().catch(() => {
      preparing = null;
      if (state !== "ready") state = "failed";
    }).finally(shown);
    if (state !== "ready") await refreshing;
  })();
}

// The worker that runs the network, opened when it is needed first.
let network = null;

function closeNetwork() {
  network?.then(({ close }) => close());
  network = null;
}

async function openNetwork() {
  const responses = await Promise.all([modelUrl(card), RUNTIME].map(kept));
  const [model, wasm] = await Promise.all(responses.map((response) => response.arrayBuffer()));
  const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  const answers = new Map();
  let number = 0, closed = false;
  // A worker of a model that was replaced answers what it was asked before.
  const endIfIdle = () => { if (closed && !answers.size) worker.terminate(); };
  const close = () => { closed = true; endIfIdle(); };
  worker.addEventListener("message", ({ data }) => {
    const { done, failed } = answers.get(data.number);
    answers.delete(data.number);
    if (data.code) failed(new Problem({ status: 422 }, data));
    else done(data.result);
    endIfIdle();
  });
  worker.addEventListener("error", ({ message }) => {
    for (const { failed } of answers.values()) failed(new Problem({ status: 422 }, { code: "cannot-run", detail: message }));
  });
  const ask = (task, content, transfer = []) => new Promise((done, failed) => {
    answers.set(number, { done, failed });
    worker.postMessage({ number: number++, task, content }, transfer);
  });
  await ask("open", { model, wasm, card }, [model, wasm]);
  things ??= await readThings();
  if (card.teachable && things.length) await learnAll(ask);
  return { close, ask };
}

// What was taught, in the order in which it was; null: not read yet.
export let things = null;
export let unsureBelow = null;  // The threshold with them

export const knows = (name) => card.info.classes.some((label) => label.toLowerCase() === name.toLowerCase());

// Let the network know the things. A new model looks at their pictures again, and may have a class of the same name.
async function learnAll(ask) {
  const unknown = things.filter(({ name }) => !knows(name));
  for (const thing of unknown.filter(({ sha256 }) => sha256 !== card.sha256)) {
    for (const item of thing.pictures) Object.assign(item, await ask("study", { source: item.picture }));
    Object.assign(thing, { sha256: card.sha256, measured: undefined });
    await keepThing(thing);
  }
  const sample = await (await kept(sampleUrl(card))).json();
  const content = unknown.map(({ name, pictures, measured }) => ({
    name, measured, photographs: pictures.map(({ features, logits }) => ({ features, logits })),
  }));
  const learned = await ask("teach", { sample, things: content });
  unsureBelow = learned.unsureBelow;
  unknown.forEach((thing, i) => { thing.measured = learned.measured[i]; });
}

// The pictures of a thing, from `keepHere`.
export async function teachHere(name, pictures) {
  const thing = { name, added: Date.now(), sha256: card.sha256, pictures };
  await changeThings([...things, thing]);
  await keepThing(thing);
}

export async function forgetHere(name) {
  await forgetThing(name);
  await changeThings(things.filter((thing) => thing.name !== name));
}

async function changeThings(changed) {
  const before = things;
  things = changed;
  try {
    if (card.teachable) await learnAll(ask);
  } catch (error) {
    things = before;
    throw error;
  }
}

// A picture as it is kept, with its features and logits.
export const keepHere = (source) => ask("keep", { source });

export async function loadThings() {
  things ??= await readThings();
}

// Another tab may have taught or forgotten something since.
export async function reloadThings() {
  things = await readThings();
}

async function ask(task, content, transfer) {
  if (state !== "ready") await prepare();
  if (state !== "ready") throw new Problem({ status: 503 }, { code: "no-device-model" });
  network ??= openNetwork();
  const opened = network;
  opened.catch(() => { if (network === opened) network = null; });
  return (await opened).ask(task, content, transfer);
}

// The answer of the service's `/api/predict`, without the service. The source is a file, or a frame of a camera.
export async function predictHere(source, placeId) {
  const answer = await ask("predict", { source }, source instanceof ImageBitmap ? [source] : []);
  return { ...answer, ...binOf(answer, placeId) };
}

export const threshold = () => unsureBelow ?? card.unsure_below;

export function binOf(answer, placeId) {
  const place = rules.find(({ id }) => id === placeId);
  return place ? { bin: binFor(place, answer, threshold()) } : {};
}

export const explainHere = (source, label) => ask("explain", { source, label });
