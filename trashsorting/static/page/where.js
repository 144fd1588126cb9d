// Where photographs are looked at: by the service, or on this device.
import { byId, recall, remember, settings } from "./dom.js";
import { explainHere, predictHere, prepare, restore, state } from "./device.js";
import { Problem, send } from "./service.js";
import { show, translate } from "./texts.js";

const onlyHere = !settings.service;
let here = onlyHere || (Boolean(settings.runtime) && recall("where") === "device");

export const isHere = () => here;

const NOTES = {
  absent: "where.loading",
  loading: "where.loading",
  ready: "where.ready",
  failed: "where.failed",
};

const listeners = [];
export const whenWhereChanges = (listener) => listeners.push(listener);

// The switch, and what it means right now.
export function showWhere() {
  byId("where").hidden = !settings.runtime;
  byId("where-choice").hidden = onlyHere;
  byId(here ? "where-device" : "where-service").checked = true;
  const failed = here && state === "failed";
  show(byId("where-note"), here ? translate("where.stays") + " " + translate(NOTES[state]) : translate("where.sent"));
  byId("where-again").hidden = !failed;
  for (const listener of listeners) listener();
}

// Get the model, also for a visit without a network; where the person saves data, only when it is asked for.
export function getReady() {
  return here || !navigator.connection?.saveData ? prepare(showWhere) : restore();
}

export function chooseWhere(value) {
  here = value === "device";
  remember("where", value);
  showWhere();
  getReady();
}

// The answer for a photograph. When the service cannot be reached, a model that is here answers instead.
export async function classify(file, placeId, signal) {
  if (here) return { ...await predictHere(file, placeId), where: "here" };
  try {
    const query = placeId ? "?place=" + encodeURIComponent(placeId) : "";
    return await send("api/predict" + query, { file }, signal);
  } catch (error) {
    if (!(error instanceof Problem && error.unreachable) || state !== "ready") throw error;
    return { ...await predictHere(file, placeId), where: "instead" };
  }
}

// The explanation of an answer, from where the answer came from.
export function explain(file, label, answer, signal) {
  if (answer.where) return explainHere(file, label);
  return send("api/explain?label=" + encodeURIComponent(label), { file }, signal);
}
