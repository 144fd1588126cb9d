// Near-copies among pictures: the perceptual hash of data/duplicates.py, with the same limits.
import { resize } from "./resize.js";

const [SIDE, WAVES, CHROMA_WAVES, CHROMA_BITS, CHROMA_STEP] = [32, 8, 6, 32, 32];
const [MOST_BITS, MOST_GREY_BITS] = [16, 6];
const COSINES = Array.from({ length: WAVES }, (_, wave) =>
  Float64Array.from({ length: SIDE }, (_, place) => Math.cos(Math.PI * (place + 0.5) * wave / SIDE)));
const ORIENTATIONS = [false, true].flatMap((transposed) => [[1, 1], [-1, 1], [1, -1], [-1, -1]].map((signs) => [transposed, ...signs]));

// Pillow's L, Cb and Cr in place of red, green and blue; the fourth value is not used.
const shares = [-0.16874, -0.33126, 0.5, -0.41869, -0.08131].map((factor) =>
  Int32Array.from({ length: 256 }, (_, value) => Math.trunc(factor * 64 * value + 0.5)));

function toChroma(pixels) {
  const [blueOfRed, blueOfGreen, half, redOfGreen, redOfBlue] = shares;
  const planes = new Uint8Array(pixels.length);
  for (let i = 0; i < pixels.length; i += 4) {
    const red = pixels[i], green = pixels[i + 1], blue = pixels[i + 2];
    planes[i] = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16;
    planes[i + 1] = ((blueOfRed[red] + blueOfGreen[green] + half[blue]) >> 6) + 128;
    planes[i + 2] = ((half[red] + redOfGreen[green] + redOfBlue[blue]) >> 6) + 128;
  }
  return planes;
}

// The lowest frequencies of a plane of 32 x 32 values: [down][across].
function lowFrequencies(pixels, plane) {
  const lines = Array.from({ length: SIDE }, (_, y) => COSINES.map((wave) =>
    wave.reduce((sum, value, x) => sum + value * pixels[3 * (y * SIDE + x) + plane], 0)));
  return COSINES.map((wave) => COSINES.map((_, across) => wave.reduce((sum, value, y) => sum + value * lines[y][across], 0)));
}

// One bit for each value: whether it is above the median of all.
function aboveMedian(values, count = values.length) {
  const sorted = Float64Array.from(values).sort();
  const middle = (sorted[values.length / 2 - 1] + sorted[values.length / 2]) / 2;
  return values.slice(0, count).map((value) => value > middle ? 1 : 0);
}

// 128 bits for each orientation of a picture from `pixelsOf`; the first are those of the picture as it is.
export function perceptualHash({ width, height, rows }) {
  const planes = { width, height, rows: (top, count) => toChroma(rows(top, count)) };
  const small = resize(planes, [0, 0, width, height], SIDE, "lanczos");
  const coefficients = [0, 1, 2].map((plane) => lowFrequencies(small, plane));
  return ORIENTATIONS.map(([transposed, across, down]) => {
    const turned = (table, size) => Array.from({ length: size * size }, (_, i) => {
      const [y, x] = [Math.floor(i / size), i % size];
      return (transposed ? table[x][y] : table[y][x]) * across ** x * down ** y;
    });
    const [grey, ...colours] = coefficients.map((table, plane) => turned(table, plane ? CHROMA_WAVES : WAVES));
    const rounded = colours.map((values) => values.map((value) => Math.round(value / CHROMA_STEP)));
    return Uint8Array.from([...aboveMedian(grey), ...rounded.flatMap((values) => aboveMedian(values, CHROMA_BITS))]);
  });
}

// Whether hashes belong to copies of one picture, in any orientation.
export function isCopy(hash, [other]) {
  return hash.some((bits) => {
    const differing = (from, to) => bits.subarray(from, to).reduce((sum, bit, i) => sum + (bit ^ other[from + i]), 0);
    const grey = differing(0, WAVES * WAVES);
    return grey <= MOST_GREY_BITS && grey + differing(WAVES * WAVES, bits.length) <= MOST_BITS;
  });
}
