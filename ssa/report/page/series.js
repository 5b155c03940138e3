"use strict";
/* Runs and variants (runs that differ in their seed alone), and their curves. */
const data = JSON.parse(document.getElementById("data")?.textContent ?? '{"runs": [], "variants": []}');
const runs = data.runs;
const $ = (id) => document.getElementById(id);

/* What can be drawn: first the runs, then each variant with several seeds as their mean. */
const entities = runs.map((run, number) => ({ name: run.id, color: run.color, members: [number] }));
const variantOf = new Map(); // by index of the run
data.variants.forEach((variant, number) => {
  const members = Object.values(variant.runs);
  for (const run of members) variantOf.set(run, number);
  if (members.length < 2) return;
  variant.entity = entities.length;
  entities.push({ name: `${variant.name}, mean of ${members.length} seeds`, color: variant.color, members });
});
const seedOf = (run) => Object.entries(data.variants[variantOf.get(run)].runs).find(([, at]) => at === run)[0];

/* The vanilla run at the same settings and seed, if any. */
function baseOf(run) {
  const base = data.variants[variantOf.get(run)]?.base;
  return base === undefined || base === null ? undefined : data.variants[base].runs[seedOf(run)];
}
/* Variants whose runs are exactly these, else the runs. */
function entitiesOf(found) {
  const variant = data.variants[variantOf.get(found[0])];
  const members = variant ? Object.values(variant.runs) : [];
  const same = members.length === found.length && found.every((run) => members.includes(run));
  return same && variant.entity !== undefined ? [variant.entity] : found;
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/* Mean over the members' seeds, lowest and highest, at each point; null where a value is not finite.
   With minus: less the vanilla run at the same seed. Members with other points than the first are left out. */
function curveOf(entity, metric, minus) {
  const curve = (run) => runs[run]?.curves[metric];
  const pairs = entities[entity].members.map((run) => [run, minus ? baseOf(run) : null]);
  const usable = pairs.filter(([run, base]) => curve(run) && (!minus || (curve(base) && curve(base)[0] === curve(run)[0])));
  if (!usable.length) return null;
  const [axis] = curve(usable[0][0]);
  const columns = usable.filter(([run]) => curve(run)[0] === axis).map(([run, base]) => curve(run)[1].map((value, at) => {
    const less = minus ? curve(base)[1][at] : 0;
    return value === null || less === null ? null : value - less;
  }));
  return data.axes[axis].map((tokens, at) => {
    const values = columns.map((column) => column[at]);
    if (values.includes(null)) return { tokens, value: null };
    return { tokens, value: mean(values), low: Math.min(...values), high: Math.max(...values), seeds: values.length };
  });
}
/* Mean over the members of a matrix such as entropy by layer and head; null if no member has one. */
function mapOf(entity, name) {
  const found = entities[entity].members.map((run) => runs[run].maps[name]).filter(Boolean);
  const cell = (values) => (values.every(Number.isFinite) ? mean(values) : null);
  return found.length ? found[0].map((row, y) => row.map((_, x) => cell(found.map((map) => map[y]?.[x])))) : null;
}

/* ---- elements and numbers ---- */
/* An element with attributes and children. Text is never parsed as markup. */
function make(name, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "circle", "g"].includes(name);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}
const number = (value) => (typeof value === "number" ? String(Number(value.toPrecision(5))) : value ?? "–");
const short = (value, digits) => {
  for (const [size, unit] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(value) >= size) return Number((value / size).toPrecision(digits)) + unit;
  return String(Number(value.toPrecision(digits)));
};
/* Axis labels with as many digits as needed. */
function labels(values) {
  for (let digits = 2; ; digits++) {
    const texts = values.map((value) => short(value, digits));
    if (digits === 9 || values.every((value, at) => Math.abs(value - Number(value.toPrecision(digits))) < 1e-9 * Math.abs(value)))
      return texts;
  }
}
/* Round numbers between low and high. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((times) => times * power >= rough * 0.9999) * power;
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at <= high / step + 1e-9; at++) found.push(Number((at * step).toPrecision(12)));
  return found;
}
function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const times of [1, 2, 5]) if (times * 10 ** power >= low && times * 10 ** power <= high) found.push(times * 10 ** power);
  return found.length > 1 ? found : ticks(low, high, 4);
}
