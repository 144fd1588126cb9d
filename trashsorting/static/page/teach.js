// "Teach it a thing": pictures, a name, and what was taught before. Only where photographs are looked at on this device.
import { announce, byId, element } from "./dom.js";
import { takePictures } from "./camera.js";
import { askAgain } from "./cards.js";
import { card, forgetHere, keepHere, knows, loadThings, reloadThings, state, teachHere, things } from "./device.js";
import { isCopy } from "./hash.js";
import { Problem } from "./service.js";
import { keeps } from "./things.js";
import { materialName, numbers, photographs, show, translate } from "./texts.js";
import { isHere } from "./where.js";
import { zip } from "./zip.js";

const [LEAST, MOST, MOST_THINGS] = [5, 50, 10];
const pictures = [];  // Of the thing to be taught, from `keepHere`
let problem = null;  // A `Problem`, or the key of a text with its values
let busy = "";  // The key of what is going on
let next = Promise.resolve();  // One picture after the other

// As in export/teach.py: of pictures that are nearly the same, the first one counts.
function markCopies() {
  const kept = [];
  for (const item of pictures) if (!(item.copy = kept.some(({ hash }) => isCopy(item.hash, hash)))) kept.push(item);
}

function copiesText() {
  const count = pictures.filter(({ copy }) => copy).length;
  return count ? translate("teach.copies", { count: numbers.format(count), total: numbers.format(pictures.length) }) : "";
}

const countText = () => [photographs(pictures.length), copiesText()].filter(Boolean).join(" · ");
const problemText = () => problem instanceof Problem ? problem.text() : problem ? translate(...problem) : "";

// All of it, in the language of the page.
export function showTeach() {
  const open = isHere() && state === "ready" && things !== null;
  byId("teach").hidden = !open || !(card.teachable || things.length);
  byId("kept").hidden = Boolean(things?.length);  // Its pictures are kept.
  if (byId("teach").hidden) return;
  const full = things.length >= MOST_THINGS;
  byId("teach-form").hidden = !card.teachable || full;
  byId("teach-how").textContent = translate("teach.how", { least: numbers.format(LEAST), most: numbers.format(MOST) });
  show(byId("teach-lost"), keeps ? "" : translate("teach.not-kept"));
  byId("teach-count").textContent = busy ? translate(busy) : photographs(pictures.length);
  show(byId("teach-copies"), copiesText());
  byId("teach-learn").disabled = Boolean(busy);
  byId("teach-camera").hidden = !navigator.mediaDevices?.getUserMedia;
  show(byId("teach-problem"), problemText());
  byId("teach-pictures").replaceChildren(...pictures.map(thumbnail));
  byId("teach-known").hidden = !things.length;
  byId("teach-list").replaceChildren(...things.map(row));
}

function button(className, key, pressed) {
  const made = element("button", className, translate(key));
  made.type = "button";
  made.addEventListener("click", pressed);
  return made;
}

function thumbnail(item, index) {
  const name = translate("teach.picture", { number: numbers.format(index + 1) });
  const part = element("li", item.copy ? "copy" : "");
  const image = Object.assign(document.createElement("img"), { src: item.address ??= URL.createObjectURL(item.picture) });
  image.alt = item.copy ? translate("teach.copy", { name }) : name;
  const remove = button("remove", "teach.picture", () => {
    URL.revokeObjectURL(pictures.splice(index, 1)[0].address);
    markCopies();
    announce(translate("list.removed", { name }));
    showTeach();
    (byId("teach-pictures").querySelectorAll("button")[Math.min(index, pictures.length - 1)] ?? byId("teach-files")).focus();
  });
  remove.textContent = "×";
  remove.setAttribute("aria-label", translate("card.remove", { name }));
  part.append(image, remove);
  return part;
}

// A thing that was taught: how it does, and what can be done with it.
function row(thing) {
  const { name, measured } = thing;
  const part = document.createElement("li");
  const label = Object.assign(element("b", "", name), { dir: "auto" });
  const values = measured && Object.fromEntries(Object.entries(measured).map(([key, value]) => [key, numbers.format(value)]));
  const text = knows(name) ? translate("teach.name-known", { name }) : measured ? translate("teach.measured", values) : photographs(thing.pictures.length);
  const buttons = element("div", "row");
  buttons.append(
    button("button small", "teach.try", tryIt),
    button("button small", "teach.save", () => save(thing)),
    button("button small", "teach.forget", () => forget(thing)),
  );
  for (const made of buttons.children) made.setAttribute("aria-label", made.textContent + ": " + name);
  part.append(label, element("p", "hint", text), buttons);
  return part;
}

// The next photograph may be answered with the new name.
function tryIt() {
  const camera = byId("camera");
  (camera.parentElement.checkVisibility() ? camera : byId("file")).click();
}

// One file with the pictures in a folder of that name, as the command `trashsorting teach` reads it.
async function save({ name, pictures: taken }) {
  const file = await zip(taken.map(({ picture }, index) => [`${name}/${String(index + 1).padStart(2, "0")}.jpg`, picture]));
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: name + ".zip" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function forget({ name }) {
  problem = null;
  if (!await attempt("teach.learning", () => forgetHere(name))) return;
  askAgain(name);
  announce(translate("teach.forgotten", { name }));
  byId("teach").querySelector("summary").focus();
}

// Do something that takes time; what goes wrong is shown.
async function attempt(key, work) {
  busy = key;
  showTeach();
  try {
    await work();
    return true;
  } catch (error) {
    problem = Array.isArray(error) || error instanceof Problem ? error : new Problem({ status: 422 }, { code: "cannot-run" });
    announce(problemText());
    return false;
  } finally {
    busy = "";
    showTeach();
  }
}

export function addPictures(files) {
  problem = null;
  for (const file of files) next = next.then(() => attempt("card.busy", async () => {
    if (pictures.length >= MOST) throw ["teach.many", { most: numbers.format(MOST) }];
    pictures.push(await keepHere(file));
    markCopies();
  })).then((done) => { if (done) announce(countText()); });
  return next;
}

// As in export/teach.py: what cannot be a class has no such name. Throws the key of a text.
function checkName(typed) {
  const name = typed.normalize("NFC").trim();
  const same = (label) => label.toLowerCase() === name.toLowerCase();
  const known = [...card.info.classes, ...card.info.classes.map(materialName), "other", materialName("other"), ...things.map((thing) => thing.name)];
  if (known.some(same)) throw ["teach.name-known", { name }];
  if (!name || [...name].length > 100 || /^\.|[/\\\p{C}]|(?! )\p{Z}/u.test(name)) throw ["teach.name-odd"];
  return name;
}

async function learn(event) {
  event.preventDefault();
  await next;
  problem = null;
  let name;
  const done = await attempt("teach.learning", async () => {
    const different = pictures.filter(({ copy }) => !copy);
    if (different.length < LEAST) throw ["teach.few", { least: numbers.format(LEAST) }];
    await reloadThings();
    name = checkName(byId("teach-name").value);
    await teachHere(name, different.map(({ picture, features, logits }) => ({ picture, features, logits })));
  });
  byId("teach-name").setAttribute("aria-invalid", Boolean(problem) && !problem[0]?.endsWith("few"));
  if (!done) return byId("teach-name").focus();
  for (const { address } of pictures.splice(0)) URL.revokeObjectURL(address);
  byId("teach-name").value = "";
  showTeach();
  announce(translate("teach.learned", { name }));
  byId("teach-list").lastElementChild.querySelector("button").focus();
}

export async function startTeach() {
  byId("teach-form").addEventListener("submit", learn);
  byId("teach-files").addEventListener("change", (event) => {
    const files = [...event.target.files];
    event.target.value = "";
    addPictures(files);
  });
  byId("teach-camera").addEventListener("click", () => takePictures({ add: addPictures, text: countText }));
  await loadThings();
  showTeach();
}
