// The page: everything together.
import { announce, byId, recall, remember, settings } from "./dom.js";
import { startCamera } from "./camera.js";
import { add, cards, clear, count } from "./cards.js";
import { card, rules } from "./device.js";
import { loadModel, model, setModel, showModel } from "./model.js";
import { choosePlace, loadPlaces, places, setPlaces, showPlaces } from "./places.js";
import { showKeyHint, takeKey } from "./service.js";
import { showTeach, startTeach } from "./teach.js";
import { language, setLanguage, translate, translateParts } from "./texts.js";
import { chooseWhere, getReady, showWhere, whenWhereChanges } from "./where.js";

let wanted = null;  // The language that was chosen last; another one may arrive after it.

// Everything again, in the language of the page.
function render() {
  translateParts(document);
  document.querySelector("meta[name=description]").content = translate("subtitle");
  byId("language").value = language;
  showKeyHint();
  showModel();
  showPlaces();
  showWhere();
  count();
  for (const card of cards) card.render();
}

async function loadLanguage(code) {
  wanted = code;
  try {
    const response = await fetch("languages/" + code + ".json", { cache: "no-cache" });
    if (!response.ok) throw response;
    const loaded = await response.json();
    if (wanted === code) setLanguage(code, loaded);
  } catch {
    announce(translate("error.unreachable"));
  }
  render();
}

// The language that was chosen on an earlier visit, or the one that the service took from the browser. A copy of the
// page without a service takes it from the browser itself.
function preferredLanguage() {
  const chosen = recall("language");
  if (Object.hasOwn(settings.languages, chosen)) return chosen;
  const accepted = settings.service ? [] : navigator.languages.map((tag) => tag.split("-")[0]);
  return accepted.find((code) => Object.hasOwn(settings.languages, code)) ?? settings.language;
}

// What the service says, and where it says nothing, what is kept here.
async function loadFacts() {
  await Promise.all(settings.service ? [loadModel(), loadPlaces()] : []);
  render();
  await getReady();
  if (!model && card) setModel(card.info);
  if (!places.length && rules.length) setPlaces(rules);
  render();
}

async function start() {
  byId("language").append(...Object.entries(settings.languages).map(([code, name]) => {
    return Object.assign(new Option(name, code), { lang: code });
  }));
  setLanguage(settings.language, settings.strings);
  if (preferredLanguage() !== language) await loadLanguage(preferredLanguage());
  else render();
  loadFacts();
  navigator.serviceWorker?.register("sw.js").catch(() => { /* Then the page needs a network at each visit. */ });
}

for (const id of ["file", "camera"]) byId(id).addEventListener("change", (event) => {
  const files = [...event.target.files];
  event.target.value = "";  // So that the same file can be chosen again.
  add(files);
});
byId("drop").addEventListener("click", (event) => {
  if (!event.target.closest("label, input")) byId("file").click();
});
byId("lock").addEventListener("submit", takeKey);
byId("clear").addEventListener("click", clear);
byId("language").addEventListener("change", (event) => {
  remember("language", event.target.value);
  loadLanguage(event.target.value);
});
byId("place").addEventListener("change", (event) => {
  remember("place", event.target.value);
  choosePlace(event.target.value);
});
for (const choice of ["where-service", "where-device"]) byId(choice).addEventListener("change", (event) => chooseWhere(event.target.value));
byId("where-again").addEventListener("click", loadFacts);
document.addEventListener("paste", (event) => add(event.clipboardData.files));
for (const kind of ["dragover", "dragleave", "drop"]) document.addEventListener(kind, (event) => {
  event.preventDefault();
  byId("drop").classList.toggle("over", kind === "dragover");
  if (kind === "drop") add(event.dataTransfer.files);
});
startCamera();
whenWhereChanges(showTeach);
startTeach();
start();
