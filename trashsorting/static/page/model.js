// What is known about the model, in the footer.
import { byId } from "./dom.js";
import { Problem, request } from "./service.js";
import { numbers, percent, translate } from "./texts.js";

export let model = null;  // What the service says about its model.
let modelProblem = null;  // Or why it has none.
const LEAST_OF_SOURCE = 20; // Photographs; a smaller source says too little for the mean, as in evaluation.oof

export function showModel() {
  byId("notice").hidden = !modelProblem;
  modelProblem?.show(byId("problem"));
  byId("kept").textContent = translate(model?.feedback ? "foot.kept-if-sent" : "foot.not-kept");
  byId("measured").hidden = !model;
  if (!model) return;
  const { accuracy, n } = model.metrics;
  const sources = Object.values(model.held_out_sources).filter((source) => source.n >= LEAST_OF_SOURCE);
  const mean = sources.reduce((sum, source) => sum + source.right / source.n, 0) / sources.length;
  const known = translate("foot.measured", { share: percent.format(accuracy), count: numbers.format(n) });
  const strange = sources.length ? translate("foot.sources", { share: percent.format(mean) }) + " " : "";
  byId("model").textContent = strange + known;
  byId("knows").textContent = translate("foot.model", { name: model.name, count: numbers.format(model.num_classes) });
  byId("evaluation-note").textContent = model.evaluation_note;
}

export async function loadModel() {
  try {
    const response = await request("api/model/info");
    const answer = await response.json();
    if (response.ok) model = answer;
    else modelProblem = new Problem(response, answer);
  } catch { /* The page works without; an upload will say what is wrong. */ }
}

export function setModel(info) {
  model = info;
}
