// Requests to the service: its errors in the language of the page, its key, and patience while it is busy.
import { announce, byId, settings, sleep } from "./dom.js";
import { language, sentence, show, translate } from "./texts.js";

const ATTEMPTS = 4;  // While the service says that it is busy and when to come back.

// The text for each code of an error. A code that is not here shows the service's own sentence, in English.
const ERRORS = {
  "empty-image": "error.empty",
  "damaged-image": "error.damaged",
  "not-an-image": "error.format",
  "too-many-bytes": "error.large",
  "too-many-pixels": "error.pixels",
  "slow-upload": "error.slow-upload",
  "no-model": "error.no-model",
  "too-many-connections": "error.busy",
  "queue-full": "error.busy",
  "queue-slow": "error.busy",
  "uploads-full": "error.busy",
  "too-slow": "error.too-slow",
  "not-readable-here": "error.not-readable-here",
  "no-device-model": "error.no-device-model",
  "cannot-run": "error.cannot-run",
  "draining": "error.stopping",
  "unexpected": "error.unexpected",
  "already-given": "error.already-given",
  "unknown-answer": "error.old-answer",
  "feedback-quota": "error.feedback-quota",
  "no-storage": "error.not-kept",
  "storage-full": "error.not-kept",
};

// What went wrong, and whether the same request may work later.
export class Problem extends Error {
  constructor(response, answer) {
    super(sentence(String(answer?.detail ?? "")));
    this.status = response?.status;
    this.unreachable = !response;
    this.temporary = !response || !answer || response.status >= 500;
    if (!response) this.key = "error.unreachable";
    else if (Object.hasOwn(ERRORS, answer?.code)) this.key = ERRORS[answer.code];
    else if (!answer?.detail) this.key = "error.status";
  }

  text() {
    return this.key ? translate(this.key, { ...settings.limits, status: this.status }) : this.message;
  }

  show(part) {
    show(part, this.text(), this.key ? language : "en");
  }
}

// The key, where the service wants one: asked for once, and kept until the tab is closed.
let key = "", asking = null, keyHint = "key.hint";
try { key = sessionStorage.getItem("key") || ""; } catch { /* Then it is kept until the page is left. */ }

export function showKeyHint() {
  const bad = keyHint !== "key.hint";
  byId("lock-hint").textContent = translate(keyHint);
  byId("lock-hint").classList.toggle("bad", bad);
  byId("key").setAttribute("aria-invalid", bad);
}

// Show the form for the key; the promise resolves when a key has been typed.
function askForKey(wrong) {
  if (asking) return asking.promise;
  keyHint = wrong ? "key.wrong" : "key.hint";
  showKeyHint();
  byId("lock").hidden = false;
  if (wrong) byId("key").focus();
  announce(sentence(translate("key.label")));
  asking = {};
  return asking.promise = new Promise((done) => { asking.done = done; });
}

export function takeKey(event) {
  event.preventDefault();
  const typed = byId("key").value.trim();
  if (!/^[\x20-\x7e]+$/.test(typed)) {
    keyHint = "key.odd";
    return showKeyHint();
  }
  key = typed;
  try { sessionStorage.setItem("key", key); } catch { /* See above. */ }
  byId("key").value = "";
  byId("lock").hidden = true;
  byId("file").focus();
  const { done } = asking;
  asking = null;
  done();
}

// `fetch` with the key; asks for the key until it is right.
export async function request(path, options = {}) {
  if (asking) await asking.promise;
  options.signal?.throwIfAborted();
  const used = key;
  const response = await fetch(path, { ...options, headers: used ? { Authorization: "Bearer " + used } : {} });
  if (response.status !== 401) return response;
  if (used === key) await askForKey(used !== "");
  return request(path, options);
}

// Send a form to the service, or delete something there: the answer, or a `Problem`.
export async function send(path, fields, signal, method = "POST", attempts = ATTEMPTS) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  let response, answer = null;
  try {
    response = await request(path, { method, body: method === "POST" ? form : null, signal });
    answer = response.status === 204 ? {} : await response.json();
  } catch (error) {
    if (signal.aborted) throw error;
    await fields.file?.slice(0, 1).arrayBuffer().catch(() => { throw new Problem({ status: 422 }, { code: "damaged-image" }); });
  }
  if (response?.ok && answer) return answer;
  const wait = Number(response?.headers.get("retry-after") || NaN);
  if (response?.status === 503 && wait <= 30 && attempts > 1) {
    await sleep(Math.max(wait, 0.5));
    signal.throwIfAborted();
    return send(path, fields, signal, method, attempts - 1);
  }
  throw new Problem(response, answer);
}
