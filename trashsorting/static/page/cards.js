// The list of pictures, each from its choice to its answer.
import { announce, byId, element } from "./dom.js";
import { CONDITIONS, NO_RULE, binName, describe, pictogram, spoken } from "./bins.js";
import { drawMap, whereItIsBright } from "./map.js";
import { model } from "./model.js";
import { place, placeName, whenPlaceChanges } from "./places.js";
import { Problem, send } from "./service.js";
import { dates, language, materialName, percent, photographs, show, translate, translateParts } from "./texts.js";
import { classify, explain } from "./where.js";

const PARALLEL = 2;  // Photographs that are looked at, at the same time.
export const cards = [];
const waiting = [];
let running = 0;

function bar([label, probability]) {
  const row = document.createElement("li");
  const track = element("div", "track");
  const filled = element("div", "fill");
  track.setAttribute("aria-hidden", "true");
  filled.style.width = 100 * probability + "%";
  track.append(filled);
  row.append(element("span", "name", materialName(label)), element("span", "probability", percent.format(probability)), track);
  return row;
}

const option = (label) => new Option(materialName(label), label);

// One picture in the list, from its choice to its answer.
class Card {
  constructor(file) {
    this.file = file;
    this.stop = new AbortController();
    this.explanations = new Map();  // By class: each is requested once.
    this.state = "waiting";  // Or busy, failed, answered.
    this.root = byId("card").content.firstElementChild.cloneNode(true);
    this.part = (selector) => this.root.querySelector(selector);
    this.part(".remove").addEventListener("click", () => remove(this));
    this.part(".again button").addEventListener("click", () => { this.root.focus(); this.wait(); });
    this.part(".toggle").addEventListener("click", () => this.explain(this.part(".toggle").getAttribute("aria-pressed") === "false"));
    this.part(".label").addEventListener("change", () => this.explain(true));
    this.part(".right").addEventListener("click", () => this.sendFeedback(this.answer.predicted_class));
    this.part(".wrong").addEventListener("click", () => this.toggleCorrection());
    this.part(".feedback form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.sendFeedback(this.part(".correction").value);
    });
    this.part(".undo").addEventListener("click", () => this.undoFeedback());
    this.part("img").addEventListener("error", () => {
      this.part(".frame").hidden = true;
      this.part(".none").hidden = false;
      this.showToggle();
    });
    this.part("img").src = URL.createObjectURL(file);
    this.render();
  }

  get name() {
    return this.file.name || translate("card.name");
  }

  // Show all of it in the language of the page.
  render() {
    const { state, name } = this;
    translateParts(this.root);
    this.root.setAttribute("aria-label", name);
    this.root.setAttribute("aria-busy", state === "waiting" || state === "busy");
    this.part(".name-of-file").textContent = name;
    this.part(".remove").setAttribute("aria-label", translate("card.remove", { name }));
    this.part("img").alt = translate("card.picture", { name });
    this.part(".busy").classList.toggle("waiting", state === "waiting");
    show(this.part(".busy"), state === "waiting" ? translate("card.waiting") : state === "busy" ? translate("card.busy") : "");
    this.part(".failed").hidden = state !== "failed";
    this.part(".again").hidden = state !== "failed" || !this.problem.temporary;
    if (state === "failed") this.problem.show(this.part(".problem"));
    for (const selector of [".result", ".bars"]) this.part(selector).hidden = state !== "answered";
    if (state === "answered") this.renderAnswer();
    else for (const selector of [".candidates", ".advice", ".conditions", ".material", ".source", ".instead"]) this.part(selector).hidden = true;
    this.renderMap();
    this.showToggle();
    this.renderFeedback();
  }

  renderAnswer() {
    const { bin, candidates = [], ...texts } = describe(this.answer);
    this.root.classList.toggle("doubtful", texts.doubtful === true);
    show(this.part(".eyebrow"), texts.eyebrow);
    show(this.part(".verdict"), texts.verdict, bin?.language);
    show(this.part(".confidence"), texts.confidence);
    show(this.part(".advice span"), texts.advice, bin?.language);
    show(this.part(".material"), texts.material);
    this.part(".advice").hidden = !texts.advice;
    this.part(".verdict").classList.toggle("of-bin", Boolean(bin));
    this.part(".pictogram")?.remove();
    if (bin) this.part(".bin").prepend(pictogram(bin, this.answer.predicted_class));
    this.renderCandidates(candidates);
    show(this.part(".instead"), this.answer.where === "instead" ? translate("where.instead") : "");
    this.renderConditions(bin);
    this.renderSource(bin);
    this.renderLabels();
  }

  renderCandidates(bins) {
    this.part(".candidates").hidden = !bins.length;
    this.part(".candidates ul").replaceChildren(...bins.map((bin) => {
      const row = document.createElement("li");
      const name = element("span", "", binName(bin));
      if (bin.id !== NO_RULE) name.lang = this.answer.bin.language;
      row.append(pictogram(bin), name);
      return row;
    }));
  }

  renderConditions(bin) {
    const known = (bin?.conditions ?? []).filter(({ condition }) => Object.hasOwn(CONDITIONS, condition));
    this.part(".conditions").hidden = !known.length;
    this.part(".conditions").replaceChildren(...known.map(({ condition, name, advice }) => {
      const row = element("li", "", translate(CONDITIONS[condition]) + " ");
      const rule = element("span", "", name + ". " + advice);
      [rule.lang, rule.dir] = [bin.language, "auto"];
      row.append(rule);
      return row;
    }));
  }

  // Where the rule stands, and when it was read there.
  renderSource(bin) {
    this.part(".source").hidden = !/^https?:/.test(bin?.source);
    if (this.part(".source").hidden) return;
    const date = dates.format(new Date(bin.read));
    const link = this.part(".source a");
    this.part(".source span").textContent = translate("bin.source", { place: placeName(bin.place), date });
    link.textContent = bin.source.split("/")[2];
    link.href = bin.source;
  }

  renderLabels() {
    const ranked = Object.entries(this.answer.all_probabilities).sort((a, b) => b[1] - a[1]);
    const labels = ranked.map(([label]) => label);
    const mapped = labels.filter((label) => !this.answer.withoutMap?.includes(label));
    const chosen = this.part(".label").value;
    this.part(".bars").replaceChildren(...ranked.map(bar));
    this.part(".label").replaceChildren(...mapped.map(option));
    if (mapped.includes(chosen)) this.part(".label").value = chosen;
    else this.pressed(false);
    const correction = this.part(".correction").value;
    const others = labels.filter((label) => this.answer.unsure || label !== this.answer.predicted_class);
    this.part(".correction").replaceChildren(...[...others, "other"].map(option));
    if (others.includes(correction)) this.part(".correction").value = correction;
  }

  // Ask again: the first time, after an error, for another place, or when a class was forgotten.
  wait() {
    this.state = "waiting";
    this.explanations.clear();
    this.feedback = null;
    this.render();
    waiting.push(this);
    next();
  }

  async classify() {
    this.state = "busy";
    this.render();
    const asked = place;
    try {
      this.answer = await classify(this.file, asked?.id, this.stop.signal);
      this.state = "answered";
    } catch (error) {
      this.problem = error instanceof Problem ? error : new Problem({ status: 422 }, { code: "cannot-run" });
      this.state = "failed";
    }
    if (this.stop.signal.aborted) return;
    if (asked !== place) return this.wait();
    this.render();
    announce(this.name + ": " + (this.state === "failed"
      ? translate("card.failed") + ". " + this.problem.text()
      : spoken(describe(this.answer))));
  }

  // The button that explains needs an answer and a visible picture.
  showToggle() {
    this.part(".why").hidden = !model?.has_activation_map || this.state !== "answered" || this.part(".frame").hidden;
  }

  pressed(wanted) {
    this.part(".toggle").setAttribute("aria-pressed", wanted);
    this.part("canvas").hidden = this.part(".legend").hidden = !wanted;
  }

  // The class activation map in words, for people who cannot see it.
  renderMap() {
    if (!this.map) return "";
    const text = translate("explain.map", { material: materialName(this.map.label), where: translate(this.map.where) });
    this.part("canvas").setAttribute("aria-label", text);
    return text;
  }

  async explain(wanted) {
    const canvas = this.part("canvas");
    const label = this.part(".label").value;
    const stale = () => canvas.hidden || label !== this.part(".label").value;
    this.pressed(wanted);
    this.part(".reason").hidden = true;
    if (!wanted) return;
    canvas.style.opacity = 0;
    try {
      if (!this.explanations.has(label)) {
        this.explanations.set(label, explain(this.file, label, this.answer, this.stop.signal));
      }
      const { activation_map: map, box } = await this.explanations.get(label);
      if (stale()) return;
      drawMap(canvas, map, box);
      canvas.style.opacity = 1;
      this.map = { label, where: whereItIsBright(map) };
      announce(this.name + ": " + this.renderMap() + ".");
    } catch (error) {
      this.explanations.delete(label);
      if (this.stop.signal.aborted || stale()) return;
      this.pressed(false);
      error.show(this.part(".reason"));
      announce(error.text());
    }
  }

  // Feedback is null (nothing said yet), busy, a receipt, undone, or a `Problem`.
  renderFeedback() {
    const { feedback } = this;
    const unsure = this.answer?.unsure === true;
    const open = !feedback || feedback === "busy" || feedback instanceof Problem;
    this.part(".feedback").hidden = !model?.feedback || this.state !== "answered" || !this.answer.id;
    this.part(".question").textContent = translate(unsure ? "feedback.question-unsure" : "feedback.question");
    this.part(".wrong").textContent = translate(unsure ? "feedback.say" : "feedback.wrong");
    for (const part of this.root.querySelectorAll(".ask")) part.hidden = !open;
    for (const button of this.root.querySelectorAll(".ask button")) button.disabled = feedback === "busy";
    this.part(".right").hidden = unsure;
    this.part(".feedback form").hidden = !open || this.part(".wrong").getAttribute("aria-expanded") === "false";
    this.part(".thanks").hidden = open;
    this.part(".undo").hidden = !feedback?.token;
    const thanks = feedback === "undone" ? "feedback.undone" : feedback?.stored ? "feedback.thanks-stored" : "feedback.thanks";
    this.part(".thanks span").textContent = translate(thanks);
    this.part(".refused").hidden = true;
    if (feedback instanceof Problem) feedback.show(this.part(".refused"));
  }

  setFeedback(feedback) {
    this.feedback = feedback;
    this.renderFeedback();
    if (feedback !== "busy") announce(this.part(feedback instanceof Problem ? ".refused" : ".thanks span").textContent);
  }

  toggleCorrection() {
    const open = this.part(".wrong").getAttribute("aria-expanded") === "false";
    this.part(".wrong").setAttribute("aria-expanded", open);
    this.renderFeedback();
    if (open) this.part(".correction").focus();
  }

  // Say what it is. The photograph goes along only if its box is ticked.
  async sendFeedback(label) {
    const { answer } = this;
    const fields = { answer_id: answer.id, correct: label === answer.predicted_class, label };
    if (this.part(".consent input").checked) Object.assign(fields, { consent: true, file: this.file });
    this.setFeedback("busy");
    try {
      const receipt = await send("api/feedback", fields, this.stop.signal);
      if (answer !== this.answer) return;
      this.setFeedback(receipt);
      this.part(".undo").focus();
    } catch (error) {
      if (!this.stop.signal.aborted && answer === this.answer) this.setFeedback(error);
    }
  }

  async undoFeedback() {
    const { token } = this.feedback;
    if (this.undoing === token) return;
    this.undoing = token;
    try {
      await send("api/feedback/" + encodeURIComponent(token), {}, this.stop.signal, "DELETE");
      this.setFeedback("undone");
      this.root.focus();
    } catch (error) {
      this.undoing = null;
      if (!this.stop.signal.aborted) error.show(this.part(".refused"));
    }
  }
}

function next() {
  while (running < PARALLEL && waiting.length) {
    running += 1;
    waiting.shift().classify().finally(() => { running -= 1; next(); });
  }
}

export function count() {
  byId("main").classList.toggle("used", cards.length > 0);
  byId("list").hidden = !cards.length;
  byId("clear").hidden = cards.length < 2;
  byId("count").textContent = photographs(cards.length);
}

// The newest come first, those of one choice in their order.
export function add(files) {
  const added = [...files].map((file) => new Card(file));
  if (!added.length) return;
  cards.unshift(...added);
  byId("results").prepend(...added.map((card) => card.root));
  count();
  announce(translate("list.looking", { name: added.length === 1 ? added[0].name : photographs(added.length) }));
  for (const card of added) card.wait();
  byId("list").scrollIntoView({ block: "nearest" });
}

function discard(card) {
  card.stop.abort();
  if (waiting.includes(card)) waiting.splice(waiting.indexOf(card), 1);
  URL.revokeObjectURL(card.part("img").src);
  card.root.remove();
}

function remove(card) {
  const index = cards.indexOf(card);
  cards.splice(index, 1);
  discard(card);
  count();
  announce(translate("list.removed", { name: card.name }));
  (cards[Math.min(index, cards.length - 1)]?.part(".remove") ?? byId("file")).focus();
}

// Another place has other bins, so what has an answer is asked again.
whenPlaceChanges(() => {
  for (const card of cards) if (card.state === "answered") card.wait();
});

// A class that was forgotten is no answer any more.
export function askAgain(label) {
  for (const card of cards) if (card.state === "answered" && Object.hasOwn(card.answer.all_probabilities, label)) card.wait();
}

export function clear() {
  cards.splice(0).forEach(discard);
  count();
  announce(translate("list.cleared"));
  byId("file").focus();
}
