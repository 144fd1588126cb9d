// The class activation map: drawn over a picture, and in words.

// The colours of the lowest, a middle and the highest value: red, green, blue, opacity.
const COLOURS = [[14, 18, 44, 190], [150, 40, 86, 120], [255, 186, 60, 70]];

function heat(value) {
  const place = Math.min(Math.max(value, 0), 1) * (COLOURS.length - 1);
  const first = Math.min(Math.floor(place), COLOURS.length - 2);
  return COLOURS[first].map((from, i) => from + (COLOURS[first + 1][i] - from) * (place - first));
}

// Catmull-Rom weights of four neighbours, for a position between the second and the third.
function weights(t) {
  return [((2 - t) * t - 1) * t / 2, ((3 * t - 5) * t * t + 2) / 2, ((4 - 3 * t) * t + 1) * t / 2, (t - 1) * t * t / 2];
}

// Interpolate between the centres of the cells; beyond the outer centres the value stays the same.
function interpolate(map, y, x) {
  const [top, left] = [Math.floor(y), Math.floor(x)];
  const across = weights(x - left);
  const clamp = (place, length) => Math.min(Math.max(place, 0), length - 1);
  return weights(y - top).reduce((sum, weight, i) => {
    const row = map[clamp(top - 1 + i, map.length)];
    return sum + weight * across.reduce((value, factor, j) => value + factor * row[clamp(left - 1 + j, row.length)], 0);
  }, 0);
}

export function drawMap(canvas, map, [left, upper, right, lower]) {
  const scale = Math.ceil(160 / Math.max(map.length, map[0].length));
  canvas.height = map.length * scale;
  canvas.width = map[0].length * scale;
  const pen = canvas.getContext("2d");
  const pixels = pen.createImageData(canvas.width, canvas.height);
  for (let y = 0; y < canvas.height; y++) for (let x = 0; x < canvas.width; x++) {
    const value = interpolate(map, (y + 0.5) / scale - 0.5, (x + 0.5) / scale - 0.5);
    pixels.data.set(heat(value), 4 * (y * canvas.width + x));
  }
  pen.putImageData(pixels, 0, 0);
  Object.assign(canvas.style, {
    left: 100 * left + "%", top: 100 * upper + "%", width: 100 * (right - left) + "%", height: 100 * (lower - upper) + "%",
  });
}

// In which part of the picture most of a class activation map is, as the key of a text.
export function whereItIsBright(map) {
  let total = 0, down = 0, right = 0;
  map.forEach((row, y) => row.forEach((value, x) => {
    total += value;
    down += value * (y + 0.5) / map.length;
    right += value * (x + 0.5) / row.length;
  }));
  if (Math.max(...map.flat()) < 0.15) return "map.nothing";
  const third = (position) => position < 0.42 ? 0 : position > 0.58 ? 2 : 1;
  return [
    ["map.top-left", "map.top", "map.top-right"],
    ["map.left", "map.middle", "map.right"],
    ["map.bottom-left", "map.bottom", "map.bottom-right"],
  ][third(down / total)][third(right / total)];
}
