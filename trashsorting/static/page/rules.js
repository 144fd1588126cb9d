// Which bin a prediction goes into in one place: `bin_for` of core/places.py, on the same rules.
const COVERAGE = 0.9;
const MOST_CANDIDATES = 3;

// The most probable class of each bin, and the bin's probability, the most probable first.
function sumBins(place, probabilities) {
  const bins = new Map();
  for (const [label, probability] of Object.entries(probabilities).sort((a, b) => b[1] - a[1])) {
    const id = Object.hasOwn(place.rules, label) ? place.rules[label].bin : "none: " + label;
    const [first, sum] = bins.get(id) ?? [label, 0];
    bins.set(id, [first, sum + probability]);
  }
  return [...bins.values()].map(([label, sum]) => [label, Math.min(1, sum)]).sort((a, b) => b[1] - a[1]);
}

// The bin of a class.
function candidate(place, [label, confidence]) {
  if (!Object.hasOwn(place.rules, label)) {
    return { id: "none", name: "no rule", advice: `the sources of this place say nothing about ${label}: ask there`, confidence };
  }
  const { bin: id, advice } = place.rules[label];
  const { name, colour } = place.bins.find((bin) => bin.id === id);
  return { id, name, ...(colour && { colour }), advice, confidence };
}

// The fewest bins that hold 90 % of the probability, at most three.
function likely(ranked) {
  let total = 0;
  const enough = ranked.slice(0, MOST_CANDIDATES).findIndex(([, probability]) => (total += probability) >= COVERAGE);
  return ranked.slice(0, enough < 0 ? MOST_CANDIDATES : enough + 1);
}

// The bin for a prediction; the candidates, too, if no bin is probable enough.
export function binFor(place, { all_probabilities }, unsureBelow) {
  const ranked = sumBins(place, all_probabilities);
  const [label, confidence] = ranked[0];
  const rule = Object.hasOwn(place.rules, label) ? place.rules[label] : null;
  const unsure = unsureBelow != null && confidence < unsureBelow;
  const conditions = (place.conditions ?? []).filter(({ classes }) => classes.includes(label)).map(({ condition, bin: id, advice }) =>
    ({ condition, id, name: place.bins.find((bin) => bin.id === id).name, advice }));
  return {
    ...candidate(place, ranked[0]),
    place: place.id,
    language: rule ? place.language : "en",
    source: rule?.source ?? place.source,
    read: place.read,
    ...(unsure && { candidates: likely(ranked).map((item) => candidate(place, item)) }),
    ...(conditions.length && { conditions }),
  };
}
