/* Charts of drawn runs and variants. `look(entity)` gives a line's style, `view` the choices of the reader. */
const FEW = 15; // points that are drawn as circles too

/* An axis: a function to pixels, ticks and their labels. */
function axis(low, high, log, from, to, count) {
  const f = log ? Math.log : (value) => value;
  const at = (value) => from + ((f(value) - f(low)) / (f(high) - f(low))) * (to - from);
  const levels = (log ? logTicks : ticks)(low, high, count);
  return { at, levels, names: labels(levels) };
}
function span(values, log) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  if (low !== high) return [low, high];
  return log ? [low / 1.1, high * 1.1] : [low - Math.abs(low || 1) * 0.1, high + Math.abs(high || 1) * 0.1];
}

/* A chart of one metric; null if no drawn entity has it. */
function chart(title, metric, drawn, wide, look, view) {
  const lines = drawn.map((entity) => ({ entity, points: curveOf(entity, metric, view.minus) })).filter((line) => line.points);
  for (const line of lines) if (view.logTokens) line.points = line.points.filter((point) => point.tokens > 0);
  const all = lines.flatMap((line) => line.points.filter((point) => point.value !== null));
  if (!all.length) return null;
  const log = !view.minus && (view.logValues || title.includes("erplexity")) && all.every((point) => point.low > 0);
  const width = Math.max(260, Math.min(680, wide)), height = Math.round(Math.min(280, width * 0.62));
  const left = 52, right = 12, top = 10, bottom = 34;
  const values = all.flatMap((point) => [point.low, point.high]).concat(view.minus ? [0] : []);
  const [low, high] = span(values, log);
  const y = axis(low, high, log, height - bottom, top, 4);
  const times = all.map((point) => point.tokens);
  const x = axis(...(view.logTokens ? span(times, true) : [0, Math.max(...times) || 1]), view.logTokens, left, width - right, width / 110);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  y.levels.forEach((value, at) => svg.append(
    make("line", { class: view.minus && value === 0 ? "zero" : "grid", x1: left, x2: width - right, y1: y.at(value), y2: y.at(value) }),
    make("text", { x: left - 6, y: y.at(value) + 4, "text-anchor": "end" }, y.names[at])));
  x.levels.forEach((tokens, at) => svg.append(
    make("text", { x: x.at(tokens), y: height - 17, "text-anchor": "middle" }, x.names[at])));
  svg.append(make("text", { x: width - right, y: height - 3, "text-anchor": "end" }, "training tokens"));
  const place = (point, key) => `${x.at(point.tokens).toFixed(1)} ${y.at(point[key]).toFixed(1)}`;
  for (const line of lines) {
    let path = "", pen = "M";
    for (const point of line.points) {
      if (point.value !== null) path += pen + place(point, "value");
      pen = point.value === null ? "M" : "L"; // not finite: a gap
    }
    line.points = line.points.filter((point) => point.value !== null);
    if (entities[line.entity].members.length > 1) {
      const edge = [...line.points.map((point) => place(point, "low")), ...line.points.map((point) => place(point, "high")).reverse()];
      svg.append(make("path", { class: "band", d: `M${edge.join("L")}Z`, style: `fill:${look(line.entity).stroke}` }));
    }
    line.path = make("path", { d: path, ...look(line.entity) });
    svg.append(line.path);
    if (line.points.length <= FEW) for (const point of line.points)
      svg.append(make("circle", { cx: x.at(point.tokens), cy: y.at(point.value), r: 2.5, fill: look(line.entity).stroke }));
  }
  const usable = lines.filter((line) => line.points.length);
  const few = (line) => line.points[0].seeds < entities[line.entity].members.length ? `, here of ${line.points[0].seeds}` : "";
  const name = (line) => entities[line.entity].name + few(line), end = (line) => number(line.points.at(-1).value);
  const heading = `${title}${view.minus ? ", difference to vanilla" : ""}${log ? ", logarithmic" : ""}`;
  const reading = make("p", { class: "reading", role: "status" });
  const handlers = reader(svg, usable, reading, x.at, y.at, width, look);
  return make("div", { class: "chart" }, make("h4", {}, heading), make("div", { tabindex: 0, role: "group",
    "aria-label": `${heading}, against tokens. ${usable.map((line) => `${name(line)} ends at ${end(line)}`).join("; ")}. Arrow keys move between points.`,
    ...handlers }, svg), reading);
}

/* Event handlers that read points off a chart, by pointer, touch and arrow keys. */
function reader(svg, lines, reading, x, y, width, look) {
  const dot = make("circle", { class: "near", r: 5, "stroke-width": 2.5, visibility: "hidden" });
  svg.append(dot);
  let at = null; // [line, point]
  const read = (line, point) => {
    at = [line, point];
    const { tokens, value, low, high } = line.points[point];
    for (const other of lines) other.path.classList.toggle("near", other === line);
    for (const [key, to] of Object.entries({ cx: x(tokens), cy: y(value), stroke: look(line.entity).stroke, visibility: "visible" }))
      dot.setAttribute(key, to);
    const band = low === high ? "" : ` (${number(low)} to ${number(high)})`;
    reading.textContent = `${number(value)}${band} at ${tokens.toLocaleString("en")} tokens: ${entities[line.entity].name}`;
  };
  const leave = () => {
    at = null;
    reading.textContent = "";
    dot.setAttribute("visibility", "hidden");
    for (const line of lines) line.path.classList.remove("near");
  };
  const nearest = (event) => {
    const box = svg.getBoundingClientRect(), scale = width / box.width;
    const [px, py] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    let best = [Infinity];
    for (const line of lines) line.points.forEach(({ tokens, value }, point) => {
      const distance = (x(tokens) - px) ** 2 + (y(value) - py) ** 2;
      if (distance < best[0]) best = [distance, line, point];
    });
    read(best[1], best[2]);
  };
  const keys = (event) => {
    const [line, point] = at ?? [lines[0], event.key === "ArrowLeft" ? lines[0].points.length : -1];
    const end = line.points.length - 1, row = lines.indexOf(line);
    const other = lines[(row + (event.key === "ArrowDown" ? 1 : -1) + lines.length) % lines.length];
    const clamp = (value, most) => Math.max(0, Math.min(most, value));
    if (event.key === "ArrowRight") read(line, clamp(point + 1, end));
    else if (event.key === "ArrowLeft") read(line, clamp(point - 1, end));
    else if (event.key === "Home") read(line, 0);
    else if (event.key === "End") read(line, end);
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") read(other, clamp(point, other.points.length - 1));
    else if (event.key === "Escape") leave();
    else return;
    event.preventDefault();
  };
  return { onpointermove: nearest, onpointerdown: nearest, onkeydown: keys, onblur: leave,
    onpointerleave: (event) => { if (event.pointerType === "mouse") leave(); } };
}

/* Entropy and query temperature by layer and head, and all temperatures by layer, of the best weights: shaded tables. */
function maps(drawn) {
  const heads = (n) => [...Array(n).keys()].map((head) => `head ${head}`);
  const kinds = [["entropy", "Attention entropy, nats, by layer and head", heads],
    ["query", "Query temperature, mean over tokens, by layer and head", heads],
    ["temperature", "Temperature, mean over tokens and heads, by layer", (n) => data.projections.slice(0, n)]];
  return kinds.flatMap(([kind, title, columns]) => {
    const found = drawn.map((entity) => [entity, mapOf(entity, kind)]).filter(([, map]) => map);
    const values = found.flatMap(([, map]) => map.flat()).filter((value) => Number.isFinite(value));
    if (!values.length) return [];
    const center = kind === "entropy" ? Math.min(...values) : 1; // a temperature of 1 is neutral
    const reach = Math.max(...values.map((value) => Math.abs(value - center))) || 1;
    const cell = (value) => {
      if (!Number.isFinite(value)) return make("td", {}, "–");
      const share = Math.round(55 * Math.abs(value - center) / reach), hue = value < center ? "--below" : "--above";
      return make("td", { class: "number", style: `background:color-mix(in srgb, var(${hue}) ${share}%, transparent)` }, value.toFixed(3));
    };
    const table = ([entity, map]) => make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `${title}: ${entities[entity].name}` },
      make("table", { class: "map" }, make("caption", {}, entities[entity].name),
        make("thead", {}, make("tr", {}, make("td", {}), ...columns(map[0].length).map((name) => make("th", { scope: "col", class: "number" }, name)))),
        make("tbody", {}, ...map.map((row, layer) => make("tr", {}, make("th", { scope: "row" }, `layer ${layer}`), ...row.map(cell))))));
    return [make("h4", {}, title), make("div", { class: "maps" }, ...found.map(table))];
  });
}
