// The language: its strings by key, and how it writes numbers and dates.
export let language, strings, numbers, percent, plural, dates;

export function setLanguage(code, loaded) {
  [language, strings] = [code, loaded];
  numbers = new Intl.NumberFormat(code);
  percent = new Intl.NumberFormat(code, { style: "percent", maximumFractionDigits: 1 });
  plural = new Intl.PluralRules(code);
  dates = new Intl.DateTimeFormat(code, { dateStyle: "long", timeZone: "UTC" });
  document.documentElement.lang = code;
  document.documentElement.dir = translate("language.direction");
}

export function translate(key, values = {}) {
  return fill(strings[key], values);
}

// Values in a text from right to left stand in marks that keep a name or a number in its own direction.
export function fill(text, values) {
  const [before, after] = document.documentElement.dir === "rtl" ? ["\u2068", "\u2069"] : ["", ""];
  return text.replace(/\{(\w+)\}/g, (_, name) => before + values[name] + after);
}

// How many photographs there are, in the form that the language has for this number.
export function photographs(count) {
  const forms = strings["list.count"];
  return fill(forms[plural.select(count)] ?? forms.other, { count: numbers.format(count) });
}

// A class has a name in each language, and advice about where it usually goes; one that is not known keeps its own.
export const materialName = (label) => strings["class." + label] ?? label;
export const usualAdvice = (label) => strings["advice." + label] ?? "";

// The texts that never change while a language is shown.
export function translateParts(root) {
  for (const part of root.querySelectorAll("[data-text]")) part.textContent = translate(part.dataset.text);
  for (const part of root.querySelectorAll("[data-label]")) part.setAttribute("aria-label", translate(part.dataset.label));
}

// Show a part with a text, or hide it; the text may be in another language than the page.
export function show(part, text, itsLanguage = language) {
  part.textContent = text;
  part.lang = itsLanguage;
  part.hidden = !text;
}

export function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}
