// What a card says about an answer: a bin in its colour, or a material.
import { materialName, percent, sentence, translate, usualAdvice } from "./texts.js";
import { placeName } from "./places.js";

// What is drawn on a bin for each class, around its middle; a class without a line here has a bin with nothing on it.
const SIGNS = {
  cardboard: "M-7-3.5L0-7l7 3.5v7L0 7l-7-3.5zM-7-3.5L0 0l7-3.5M0 0v7",
  glass: "M-1.5-8h3v4.5q3 1.5 3 4.5v7h-9v-7q0-3 3-4.5zM-4.5 2h9",
  metal: "M-5-6q5-2.5 10 0v12q-5 2.5-10 0zM-5-6q5 2.5 10 0",
  paper: "M-5-7.5h6.5L5-4V7.5H-5zM1.5-7.5V-4H5M-2 0h4M-2 3.5h4",
  plastic: "M-2-8h4M-1.5-8v2q-3.5 1-3.5 4v9.5H5V-2q0-3-3.5-4v-2M-5 0H5M-5 4H5",
  trash: "M-3-7.5q3 1.5 6 0L1.5-4Q6-2 6 3q0 5-6 5t-6-5q0-5 4.5-7z",
};

// Black or white, whichever is easier to see on a colour; the weights are those of WCAG's luminance.
function readableOn(rgb) {
  const [red, green, blue] = [1, 3, 5].map((start) => (parseInt(rgb.slice(start, start + 2), 16) / 255) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 ? "#000000" : "#ffffff";
}

// A bin in its colour, if it has one, with the sign of a class on it. Its name stands beside it.
export function pictogram({ colour }, label) {
  const path = (data, attributes) => {
    const drawn = document.createElementNS("http://www.w3.org/2000/svg", "path");
    for (const [name, value] of Object.entries({ d: data, ...attributes })) drawn.setAttribute(name, value);
    return drawn;
  };
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [name, value] of Object.entries({
    class: "pictogram", viewBox: "0 0 36 42", "aria-hidden": "true", fill: colour || "none", stroke: "currentColor",
    "stroke-width": 1.75, "stroke-linecap": "round", "stroke-linejoin": "round",
  })) svg.setAttribute(name, value);
  svg.append(path("M5 10h26l-2.5 30h-21zM2.5 10q0-4 4-4h23q4 0 4 4zM13 6V2.5h10V6"));
  const sign = Object.hasOwn(SIGNS, label) ? SIGNS[label] : "";
  svg.append(path(sign, { transform: "translate(18 25)", fill: "none", stroke: colour ? readableOn(colour) : "currentColor" }));
  return svg;
}

export const NO_RULE = "none";  // The id of a bin where the place has no rule for a class.
export const binName = (bin) => bin.id === NO_RULE ? translate("bin.no-bin") : bin.name;

// When another bin is the right one, which a photograph does not show.
export const CONDITIONS = {
  "greasy": "condition.greasy",
  "broken": "condition.broken",
  "with-content": "condition.with-content",
  "deposit-bottle": "condition.deposit-bottle",
};

// What a card says about an answer. With a place it is the bin, and otherwise the material.
export function describe(answer) {
  const { bin, predicted_class: label } = answer;
  const unsure = answer.unsure === true;
  const values = { material: materialName(label), share: percent.format(answer.confidence) };
  const candidates = bin?.candidates?.length > 1 ? bin.candidates : [];
  if (bin && bin.id !== NO_RULE && !candidates.length) return {
    bin,
    eyebrow: translate("bin.into"),
    verdict: bin.name,
    confidence: translate("answer.sure", { share: percent.format(bin.confidence) }),
    advice: bin.advice,
    material: unsure ? translate("answer.most-likely", values) + ". " + translate("bin.same") : translate("answer.material", values),
  };
  if (unsure || candidates.length) return {
    doubtful: true,
    candidates,
    eyebrow: translate("answer.cannot-tell"),
    verdict: translate("answer.unsure"),
    confidence: translate("answer.most-likely", values),
    advice: translate("answer.look-twice"),
  };
  return {
    eyebrow: translate("answer.looks"),
    verdict: values.material,
    confidence: translate("answer.sure", values),
    advice: usualAdvice(label),
    material: bin ? translate("bin.no-rule", { place: placeName(bin.place) }) : "",
  };
}

// The same as on the card, for people who cannot see it.
export function spoken({ eyebrow, verdict, confidence, candidates = [], advice, material }) {
  const bins = candidates.map(binName).join(", ");
  return [eyebrow + ": " + verdict + ", " + confidence, bins && translate("bin.one-of") + ": " + bins, advice, material]
    .filter(Boolean).map(sentence).join(" ");
}
