// A live picture of the camera: what it shows right now, where the model is on this device, and a button that keeps a picture.
import { add } from "./cards.js";
import { announce, byId, sleep } from "./dom.js";
import { binOf, predictHere, state, threshold } from "./device.js";
import { place } from "./places.js";
import { binName, describe, pictogram } from "./bins.js";
import { show, translate } from "./texts.js";
import { isHere } from "./where.js";

const FRAMES = 5;  // The answer is the mean of the last ones.
const STEADY = 3;  // So many of them at the end agree.
let stream = null;
let taker = null;  // Who gets the pictures one after the other, instead of the list: { add, text }

const track = () => stream?.getVideoTracks()[0];

// The mean of several answers, or null while they differ.
export function steadyAnswer(answers, unsureBelow) {
  const last = answers.slice(-STEADY);
  if (last.length < STEADY || new Set(last.map((answer) => answer.predicted_class)).size > 1) return null;
  const mean = (label) => answers.reduce((sum, answer) => sum + answer.all_probabilities[label], 0) / answers.length;
  const ranked = Object.keys(answers[0].all_probabilities).map((label) => [label, mean(label)]).sort((a, b) => b[1] - a[1]);
  const [predicted_class, confidence] = ranked[0];
  return { predicted_class, confidence, all_probabilities: Object.fromEntries(ranked), unsure: confidence < (unsureBelow ?? 0) };
}

function showLive(answer) {
  const text = byId("live-text");
  byId("live").querySelector(".pictogram")?.remove();
  if (!answer) return show(text, translate(isHere() ? "camera.steady" : "camera.press"));
  const { bin, verdict, confidence } = describe({ ...answer, ...binOf(answer, place?.id) });
  if (bin) text.before(pictogram(bin, answer.predicted_class));
  show(text, (bin ? binName(bin) : verdict) + " · " + confidence);
}

// Look at frame after frame until the camera is closed. Nothing is sent anywhere.
async function look(video) {
  const shown = stream;
  let answers = [];
  showLive(null);
  while (stream === shown) {
    if (taker) {
      if (byId("live-text").textContent !== taker.text()) show(byId("live-text"), taker.text());
    } else if (isHere() && state !== "failed" && video.readyState >= 2) {
      try {
        answers = [...answers, await predictHere(await createImageBitmap(video))].slice(-FRAMES);
        if (stream === shown) showLive(steadyAnswer(answers, threshold()));
      } catch { /* The next frame may do. */ }
    }
    await sleep(0.15);
  }
}

// Several pictures for a taker; the camera stays open.
export function takePictures(wanted) {
  taker = wanted;
  open();
}

async function open() {
  const dialog = byId("viewfinder");
  const video = byId("video");
  byId("camera-problem").hidden = true;
  dialog.showModal();
  let opened;
  try {
    opened = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
  } catch {
    show(byId("camera-problem"), translate("camera.refused"));
    return;
  }
  if (!dialog.open || stream) return end(opened);  // It was closed, and perhaps opened again, before the camera was ready.
  stream = opened;
  video.srcObject = stream;
  byId("torch").hidden = !track().getCapabilities?.().torch;
  byId("torch").setAttribute("aria-pressed", false);
  await video.play().catch(() => { /* It was closed at once. */ });
  byId("shoot").disabled = false;
  look(video);
}

const end = (ended) => ended?.getTracks().forEach((part) => part.stop());

function stop() {
  end(stream);
  stream = null;
  byId("shoot").disabled = true;
}

// Keep the picture of this moment, and look at it as at any other photograph.
async function shoot() {
  const video = byId("video");
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
  const time = new Date().toTimeString().slice(0, 8).replaceAll(":", "-");
  (taker?.add ?? add)([new File([blob], `photo-${time}.jpg`, { type: "image/jpeg" })]);
  if (!taker) byId("viewfinder").close();
}

async function toggleTorch() {
  const wanted = byId("torch").getAttribute("aria-pressed") === "false";
  try {
    await track().applyConstraints({ advanced: [{ torch: wanted }] });
    byId("torch").setAttribute("aria-pressed", wanted);
  } catch {
    announce(translate("camera.no-torch"));
  }
}

export function startCamera() {
  byId("live-camera").hidden = !navigator.mediaDevices?.getUserMedia;
  byId("live-camera").addEventListener("click", () => { taker = null; open(); });
  byId("viewfinder").addEventListener("close", stop);
  byId("close-camera").addEventListener("click", () => byId("viewfinder").close());
  byId("shoot").addEventListener("click", shoot);
  byId("torch").addEventListener("click", toggleTorch);
}
