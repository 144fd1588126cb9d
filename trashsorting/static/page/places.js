// The places whose bins are known, and the one that was chosen.
import { byId, recall } from "./dom.js";
import { request } from "./service.js";
import { language, translate } from "./texts.js";

export let places = [];
export let place = null;  // The chosen one of them.

export const placeName = (id) => places.find((candidate) => candidate.id === id)?.name ?? id;

// The places by country, as the language writes and sorts them.
export function showPlaces() {
  const countries = new Intl.DisplayNames(language, { type: "region" });
  const compare = new Intl.Collator(language).compare;
  const names = [...new Set(places.map(({ country }) => country))].map((code) => [code, countries.of(code)]);
  const groups = names.sort((a, b) => compare(a[1], b[1])).map(([code, label]) => {
    const group = Object.assign(document.createElement("optgroup"), { label });
    const inside = places.filter(({ country }) => country === code).sort((a, b) => compare(a.name, b.name));
    group.append(...inside.map(({ id, name }) => new Option(name, id)));
    return group;
  });
  byId("place").replaceChildren(new Option(translate("choose.no-place"), ""), ...groups);
  byId("place").value = place?.id ?? "";
  byId("place-row").hidden = !places.length;
}

const listeners = [];
export const whenPlaceChanges = (listener) => listeners.push(listener);

export function choosePlace(id) {
  place = places.find((candidate) => candidate.id === id) ?? null;
  byId("place").value = place?.id ?? "";
  for (const listener of listeners) listener();
}

export function setPlaces(list) {
  places = list;
  showPlaces();
  if (places.length && recall("place")) choosePlace(recall("place"));
}

export async function loadPlaces() {
  try {
    const response = await request("api/places");
    if (response.ok) setPlaces(await response.json());
  } catch { /* The page works without places: it names the material. */ }
}
