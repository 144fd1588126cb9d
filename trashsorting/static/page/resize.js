// Pillow's resize with antialiasing, as core/image.py and data/duplicates.py use it: 8-bit channels, first across, then down. Pillow 13 goes down
// first where a picture is tall; the results then differ by one step of 255 at most.
const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {  // Keys' cubic convolution with a = -0.5
    support: 2,
    weight: (x) => {
      x = Math.abs(x);
      return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
    },
  },
  lanczos: {
    support: 3,
    weight: (x) => x === 0 ? 1 : x < -3 || x >= 3 ? 0 : sine(x) * sine(x / 3),
  },
};
const sine = (x) => x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
const BITS = 22;  // Of a weight's fraction

// For each of `side` new pixels between two edges of an old side: where its old pixels begin, and their integer weights.
function weightsOf(length, from, to, side, { support, weight }) {
  const scale = (to - from) / side;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: side }, (_, index) => {
    const centre = from + (index + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - support * stretch + 0.5));
    const end = Math.min(length, Math.trunc(centre + support * stretch + 0.5));
    const exact = Array.from({ length: end - start }, (_, x) => weight((x + start - centre + 0.5) * (1 / stretch)));
    const sum = exact.reduce((total, value) => total + value, 0);
    return { start, weights: Int32Array.from(exact, (value) => Math.trunc(value / sum * 2 ** BITS + (value < 0 ? -0.5 : 0.5))) };
  });
}

const clip = (sum) => Math.min(Math.max(sum >> BITS, 0), 255);

// One line of pixels, `step` values apart, becomes another one.
function resample(source, offset, step, columns, target, at, stride) {
  for (const { start, weights } of columns) {
    for (let channel = 0; channel < 3; channel++) {
      let sum = 1 << (BITS - 1);
      let position = offset + start * step + channel;
      for (let i = 0; i < weights.length; i++, position += step) sum += source[position] * weights[i];
      target[at + channel] = clip(sum);
    }
    at += stride;
  }
}

// The part of a picture inside a box (left, upper, right, lower), as side x side pixels of red, green and blue.
// `rows(top, count)` gives the RGBA values of some rows, so that a large picture need not be in memory at once.
export function resize({ width, height, rows }, [left, upper, right, lower], side, interpolation) {
  const filter = FILTERS[interpolation];
  const across = weightsOf(width, left, right, side, filter);
  const down = weightsOf(height, upper, lower, side, filter);
  const narrow = new Uint8Array(height * side * 3);
  const count = Math.max(1, Math.floor(2 ** 20 / width));
  for (let top = 0; top < height; top += count) {
    const strip = rows(top, Math.min(count, height - top));
    for (let y = 0; y < Math.min(count, height - top); y++) resample(strip, y * width * 4, 4, across, narrow, (top + y) * side * 3, 3);
  }
  const result = new Uint8Array(side * side * 3);
  for (let x = 0; x < side; x++) resample(narrow, x * 3, side * 3, down, result, x * 3, side * 3);
  return result;
}

// The part of a photograph that the network sees, as `crop_box` in core/image.py.
export function cropBox(width, height, { crop_mode, crop_pct }) {
  const short = Math.min(width, height);
  const [wide, high] = (crop_mode === "center" ? [short, short] : [width, height]).map((side) => side * crop_pct);
  const [left, upper] = [(width - wide) / 2, (height - high) / 2];
  return [left, upper, left + wide, upper + high];
}

// The network's input from these pixels: scaled to 0..1, mean subtracted, divided by std, a plane for each channel.
export function normalize(pixels, { mean, std }) {
  const plane = pixels.length / 3;
  const input = new Float32Array(pixels.length);
  const { fround } = Math;
  for (let channel = 0; channel < 3; channel++) {
    const values = Float32Array.from({ length: 256 }, (_, value) =>
      fround(fround(fround(value / 255) - fround(mean[channel])) / fround(std[channel])));
    for (let i = 0; i < plane; i++) input[channel * plane + i] = values[pixels[3 * i + channel]];
  }
  return input;
}
