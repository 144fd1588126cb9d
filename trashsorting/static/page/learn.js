// A class from a few photographs: the method of export/teach.py, a row more in the classifier, on frozen and whitened features.
const PENALTY = 1e-3;  // Of half the squared length of the row, for whitened features of mean length 1
const SHRINKAGE = 0.9;  // 0: the covariance of the known photographs, 1: the same variance in all directions
const MOST_STEPS = 50;
const SURE = -5;  // A known photograph with such odds, or lower, is not lost by a classifier without it either.

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

const sigmoid = (x) => 1 / (1 + Math.exp(-Math.min(Math.max(x, -500), 500)));
const logSumExp = (values) => {
  const largest = Math.max(...values);
  return largest + Math.log(values.reduce((sum, value) => sum + Math.exp(value - largest), 0));
};

// A photograph is { features, logits }; the logits are divided by the card's temperature.
const offsetOf = ({ logits }) => -logSumExp(logits);
const confidenceOf = ({ logits }) => Math.exp(Math.max(...logits) - logSumExp(logits));
const logitOf = ({ weights, bias }, { features }) => dot(weights, features) + bias;

// A regression with an offset, in the dual form. Both sides have the same weight.
function problemOf(kernel, offsets, signs) {
  const share = (sign) => 0.5 / Math.max(1, signs.filter((other) => other === sign).length);
  return { kernel, offsets, signs, weights: signs.map(share) };
}

const marginsOf = ({ kernel, offsets }, dual, bias) => kernel.map((row, i) => dot(row, dual) + bias + offsets[i]);

function objective(problem, dual, bias) {
  const { offsets, signs, weights } = problem;
  return marginsOf(problem, dual, bias).reduce((sum, margin, i) => {
    const signed = signs[i] * margin;
    const loss = Math.max(0, -signed) + Math.log1p(Math.exp(-Math.abs(signed)));
    return sum + weights[i] * loss + PENALTY / 2 * dual[i] * (margin - bias - offsets[i]);
  }, 0);
}

// The solutions of a symmetric, positive definite system, by Cholesky's decomposition.
function solve(matrix, sides) {
  const n = matrix.length;
  const lower = matrix.map((row) => Float64Array.from(row));
  for (let i = 0; i < n; i++) for (let j = 0; j <= i; j++) {
    const row = lower[i], other = lower[j];
    let sum = row[j];
    for (let k = 0; k < j; k++) sum -= row[k] * other[k];
    row[j] = i === j ? Math.sqrt(Math.max(sum, 1e-300)) : sum / other[j];
  }
  return sides.map((side) => {
    const x = Float64Array.from(side);
    for (let i = 0; i < n; i++) {
      const row = lower[i];
      let sum = x[i];
      for (let k = 0; k < i; k++) sum -= row[k] * x[k];
      x[i] = sum / row[i];
    }
    for (let i = n - 1; i >= 0; i--) {
      const row = lower[i], value = x[i] /= row[i];
      for (let k = 0; k < i; k++) x[k] -= row[k] * value;
    }
    return x;
  });
}

function newtonStep(problem, dual, bias) {
  const { kernel, signs, weights } = problem;
  const probabilities = marginsOf(problem, dual, bias).map(sigmoid);
  const curvature = probabilities.map((p, i) => Math.max(weights[i] * p * (1 - p), 1e-8));
  const gradient = probabilities.map((p, i) => weights[i] * (p - (signs[i] > 0 ? 1 : 0)) + PENALTY * dual[i]);
  const matrix = kernel.map((row, i) => {
    const copy = Float64Array.from(row);
    copy[i] += PENALTY / curvature[i];
    return copy;
  });
  const [step, ones] = solve(matrix, [gradient.map((value, i) => -value / curvature[i]), signs.map(() => 1)]);
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const biasChange = (sum(step) + sum(dual)) / sum(ones);
  return [step.map((value, i) => value - biasChange * ones[i]), biasChange];
}

// The minimum, by Newton's method; a step that does not descend is halved.
function minimize(problem, dual = new Float64Array(problem.signs.length), bias = 0) {
  let value = objective(problem, dual, bias);
  for (let count = 0; count < MOST_STEPS; count++) {
    const [change, biasChange] = newtonStep(problem, dual, bias);
    let lower = value;
    for (let step = 1; step > 2 ** -20; step /= 2) {
      const tried = dual.map((old, i) => old + step * change[i]);
      const its = objective(problem, tried, bias + step * biasChange);
      if (!(its < value)) continue;
      [dual, bias, lower] = [tried, bias + step * biasChange, its];
      break;
    }
    if (value - lower < 1e-10) break;
    value = lower;
  }
  return { dual, bias };
}

// Photographs of a new class and of known ones, with the products of their features around the mean of the known ones.
function pose(fresh, known) {
  const size = fresh[0].features.length;
  const centre = Float64Array.from({ length: size }, (_, j) => known.reduce((sum, { features }) => sum + features[j], 0) / known.length);
  const rows = [...fresh, ...known].map(({ features }) => Float64Array.from(features, (value, j) => value - centre[j]));
  const classes = [...fresh.map(() => -1), ...known.map(({ logits }) => logits.indexOf(Math.max(...logits)))];
  const offsets = [...fresh, ...known].map(offsetOf);
  return { products: symmetric(rows.length, (i, j) => dot(rows[i], rows[j])), offsets, classes, size, rows, centre };
}

function symmetric(n, value) {
  const matrix = Array.from({ length: n }, () => new Float64Array(n));
  for (let i = 0; i < n; i++) for (let j = 0; j <= i; j++) matrix[i][j] = matrix[j][i] = value(i, j);
  return matrix;
}

// Values around the means of their classes.
function around(values, classes) {
  const n = Math.max(...classes) + 1, moved = Float64Array.from(values);
  const sums = new Float64Array(n), counts = new Float64Array(n);
  for (let i = 0; i < moved.length; i++) {
    sums[classes[i]] += moved[i];
    counts[classes[i]]++;
  }
  for (let i = 0; i < moved.length; i++) moved[i] -= sums[classes[i]] / counts[classes[i]];
  return moved;
}

// The columns of a matrix: products times it are those of whitened features, scaled to the mean length 1. By Woodbury's
// identity, with the covariance of the known photographs around the means of their classes.
function mixingOf({ products, classes, size }) {
  const known = classes.flatMap((label, i) => label < 0 ? [] : [i]);
  const pick = (values) => known.map((i) => values[i]);
  const labels = pick(classes);
  const moved = products.map((row) => around(pick(row), labels));
  const spread = labels.map((_, i) => around(known.map((j) => moved[j][i]), labels));
  const ridge = SHRINKAGE / (1 - SHRINKAGE) * spread.reduce((sum, row, i) => sum + row[i], 0) / size || 1;
  spread.forEach((row, i) => row[i] += ridge);
  const mixing = solve(spread, moved).map((solved, j) => {
    const column = new Float64Array(classes.length);
    column[j] = 1;
    solved.forEach((value, i) => column[known[i]] -= value);
    return column;
  });
  const lengths = mixing.map((column, i) => Math.sqrt(Math.max(0, dot(products[i], column))));
  const scale = lengths.reduce((sum, length) => sum + length, 0) / lengths.length || 1;
  return mixing.map((column) => column.map((value) => value / scale ** 2));
}

// The regression for a new class. `shares` are what its row is made of.
function fit(posed, start, startBias) {
  const { products, offsets, classes } = posed;
  const mixing = mixingOf(posed);
  const kernel = symmetric(classes.length, (i, j) => dot(products[i], mixing[j]));
  const { dual, bias } = minimize(problemOf(kernel, offsets, classes.map((label) => label < 0 ? 1 : -1)), start, startBias);
  const shares = mixing.reduce((sum, column, j) => sum.map((value, i) => value + dual[j] * column[i]), new Float64Array(classes.length));
  return { shares, dual, bias };
}

// The row of a new class: its logit is weights . features + bias.
function rowOf({ rows, centre }, { shares, bias }) {
  const weights = centre.map((_, j) => rows.reduce((sum, row, i) => sum + row[j] * shares[i], 0));
  return { weights, bias: bias - dot(centre, weights) };
}

// Leave one out: how probable the new class is for each photograph, by a classifier of the others.
function leftOutOdds(posed, { shares, dual, bias }) {
  const { products, offsets, classes } = posed;
  return products.map((row, left) => {
    const odds = dot(row, shares) + bias + offsets[left];
    if (classes[left] >= 0 && odds < SURE) return odds;
    const pick = (values) => values.filter((_, i) => i !== left);
    const part = { ...posed, products: pick(products).map(pick), offsets: pick(offsets), classes: pick(classes) };
    const found = fit(part, pick(dual), bias);
    return dot(pick(row), found.shares) + found.bias + offsets[left];
  });
}

// The largest threshold that answers as many known photographs as before.
function recalibrate(unsureBelow, known, row) {
  const answered = unsureBelow == null ? 0 : known.filter((photograph) => confidenceOf(photograph) >= unsureBelow).length;
  if (!answered) return unsureBelow;
  const after = known.map((photograph) => confidenceOf(photograph) * (1 - sigmoid(logitOf(row, photograph) + offsetOf(photograph))));
  return Math.min(unsureBelow, after.sort((a, b) => b - a)[answered - 1]);
}

// How many of the new photographs are recognized, and of the known ones lost, when each is left out.
function measure(fresh, known, odds) {
  const isNew = [...fresh, ...known].map(({ logits }, i) => odds[i] + logSumExp(logits) > Math.max(...logits));
  const count = (values) => values.filter(Boolean).length;
  return { n: fresh.length, recognized: count(isNew.slice(0, fresh.length)), known: known.length, lost: count(isNew.slice(fresh.length)) };
}

// Learn one thing after another, as `teach` on the file that it wrote: the photographs of the first are known to the second.
// A thing is { photographs, measured }; one that was measured already is not measured again.
export function learn(things, known, unsureBelow) {
  const rows = [], measured = [];
  for (const thing of things) {
    const fresh = thing.photographs.map((photograph) => withRows(photograph, rows));
    const posed = pose(fresh, known);
    const solved = fit(posed);
    const row = rowOf(posed, solved);
    measured.push(thing.measured ?? measure(fresh, known, leftOutOdds(posed, solved)));
    unsureBelow = recalibrate(unsureBelow, known, row);
    known = [...fresh, ...known].map((photograph) => withRows(photograph, [row]));
    rows.push(row);
  }
  return { rows, measured, unsureBelow };
}

// A photograph with the logits of taught things behind the others.
export function withRows({ features, logits }, rows) {
  return { features, logits: rows.reduce((sofar, row) => [...sofar, logitOf(row, { features })], Array.from(logits)) };
}

// A card's sample, as `unpack_features` of inference/features.py reads it.
export function unpackSample({ n, low, high, features, logits }, temperature) {
  const bytes = (text) => Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  const levels = bytes(features);
  const values = new Float32Array(bytes(logits).buffer);
  const [size, classes] = [levels.length / n, values.length / n];
  return Array.from({ length: n }, (_, i) => ({
    features: Float64Array.from(levels.subarray(i * size, (i + 1) * size), (level) => low + level / 255 * (high - low)),
    logits: Array.from(values.subarray(i * classes, (i + 1) * classes), (value) => value / temperature),
  }));
}
