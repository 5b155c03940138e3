"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const COLUMNS = ["experiment", "status", "model", "size", "temperature", "seed", "loss", "perplexity", "entropy"];
  const NUMBERS = new Set(["seed", "loss", "perplexity", "entropy"]);
  const PAGE = 50, MOST = 24, FEW = 15; // rows per page, runs drawn at once, points drawn as circles
  // Dashes distinguish curves in grayscale; each color has a contrast of at least 3 on white.
  const COLORS = ["#0b57a4", "#b3440f", "#117a53", "#8a3ab9", "#6b6400", "#b5145b", "#00708a", "#3d3d3d"];
  const DASHES = ["", "7 3", "2 3", "10 3 2 3", "14 4", "6 2 2 2 2 2", "1 5"];
  const $ = (id) => document.getElementById(id);
  const runs = data.runs;
  const byId = new Map(runs.map((run, number) => [run.id, number]));

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

  /* ---- runs drawn: index of the run -> index of its style ---- */
  const picked = new Map();
  function pick(numbers, only = false) {
    if (only) picked.clear();
    for (const run of numbers) {
      if (picked.has(run) || picked.size >= MOST) continue;
      const taken = new Set(picked.values());
      let place = 0;
      while (taken.has(place)) place++;
      picked.set(run, place);
    }
    changed();
  }
  function toggle(run) {
    if (picked.delete(run)) changed();
    else pick([run]);
  }
  function changed() {
    drawTable();
    drawCharts();
    const [first, second] = [...picked.keys()].slice(-2);
    if (second !== undefined) compare(first, second);
  }
  const style = (run) => {
    const place = picked.get(run);
    return { stroke: COLORS[place % COLORS.length], "stroke-dasharray": DASHES[place % DASHES.length] || null };
  };

  /* ---- the table ---- */
  const order = { column: null, down: false };
  let page = 0;
  const texts = runs.map((run) => [run.id, ...run.shown, run.damage && "damaged", run.damage, run.error].join(" ").toLowerCase());
  function matching() {
    const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = [];
    texts.forEach((text, run) => { if (words.every((word) => text.includes(word))) found.push(run); });
    if (order.column === null) return found;
    const value = (run) => (order.column < 0 ? runs[run].id : runs[run].shown[order.column]);
    const sign = order.down ? -1 : 1;
    return found.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === y) return a - b;
      if (x === null || y === null) return x === null ? 1 : -1; // missing values last, in either order
      return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x) < String(y) ? -1 : 1);
    });
  }
  function drawTable() {
    const found = matching(), pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(page, pages - 1);
    const rows = found.slice(page * PAGE, (page + 1) * PAGE);
    $("matches").textContent = `${found.length} of ${runs.length} runs` +
      (picked.size ? `, ${picked.size} drawn` : "") + (picked.size >= MOST ? ` (at most ${MOST})` : "");
    const focused = document.activeElement?.dataset?.run;
    const body = $("run-table").tBodies[0];
    body.replaceChildren(...rows.map(row));
    if (focused !== undefined) body.querySelector(`input[data-run="${focused}"]`)?.focus();
    const from = page * PAGE;
    const move = (by) => () => { page += by; drawTable(); };
    $("pager").replaceChildren(...(pages === 1 ? [] : [
      make("button", { type: "button", onclick: move(-1), ...(page ? {} : { disabled: "" }) }, "Previous"),
      make("span", {}, `${from + 1}–${from + rows.length} of ${found.length}`),
      make("button", { type: "button", onclick: move(1), ...(page < pages - 1 ? {} : { disabled: "" }) }, "Next"),
    ]));
  }
  function row(run) {
    const { id, shown, damage, unsealed, error, folder } = runs[run];
    const box = make("input", { type: "checkbox", "aria-label": `draw ${id}`, "data-run": run });
    box.checked = picked.has(run);
    const why = [damage && `damaged: ${damage}`, error].filter(Boolean).join("; "), note = unsealed ? "no checksums" : "–";
    const cells = shown.map((value, column) => {
      const bad = COLUMNS[column] === "status" && value !== "finished";
      return make("td", { class: NUMBERS.has(COLUMNS[column]) ? "number" : bad ? "bad" : null }, String(number(value)));
    });
    return make("tr", { class: picked.has(run) ? "picked" : null, onclick: () => { if (!String(getSelection())) toggle(run); } },
      make("td", {}, box), make("td", { title: folder }, (damage ? "⚠ " : "") + id), ...cells,
      make("td", { class: why ? "bad why" : null }, why || note));
  }
  function drawHead() {
    const names = ["run", ...COLUMNS];
    const heads = names.map((name, at) => make("th", { scope: "col", class: NUMBERS.has(name) ? "number" : null },
      make("button", { type: "button", onclick: () => {
        order.down = order.column === at - 1 && !order.down;
        order.column = at - 1;
        heads.forEach((head, other) => {
          if (other === at) head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
          else head.removeAttribute("aria-sort");
        });
        page = 0;
        drawTable();
      } }, name)));
    $("run-table").tHead.rows[0].replaceChildren(
      make("th", { scope: "col" }, "draw"), ...heads, make("th", { scope: "col" }, "damage or error"));
  }

  /* ---- curves ---- */
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
  function drawCharts() {
    const drawn = [...picked.keys()];
    $("legend").replaceChildren(...drawn.map((run) => make("li", {},
      make("svg", { width: 34, height: 10, "aria-hidden": "true" },
        make("line", { x1: 0, x2: 34, y1: 5, y2: 5, "stroke-width": 2.4, ...style(run) })), runs[run].id)));
    const last = Math.max(...drawn.flatMap((run) => Object.values(runs[run].curves).map(([axis]) => data.axes[axis].at(-1))));
    const charts = data.curves.map((title, metric) => chart(title, metric, drawn, last)).filter(Boolean);
    const without = drawn.filter((run) => !Object.keys(runs[run].curves).length).map((run) => runs[run].id);
    if (without.length) charts.push(make("p", {}, `No curves on this machine: ${without.join(", ")}`));
    $("charts").replaceChildren(...(charts.length ? charts : [make("p", {}, "No run is drawn: click one above.")]));
  }
  function chart(title, metric, drawn, last) {
    const lines = drawn.filter((run) => runs[run].curves[metric]).map((run) => {
      const [axis, values] = runs[run].curves[metric];
      return { run, points: values.map((value, at) => ({ tokens: data.axes[axis][at], value })) };
    });
    const all = lines.flatMap((line) => line.points.filter((point) => point.value !== null));
    if (!all.length) return null;
    const log = title.includes("erplexity") && all.every((point) => point.value > 0);
    const f = log ? Math.log : (value) => value;
    const span = (values) => [Math.min(...values), Math.max(...values)];
    let [low, high] = span(all.map((point) => point.value));
    const from = 0, to = last || 1;
    if (low === high) [low, high] = log ? [low / 1.1, high * 1.1] : [low - Math.abs(low || 1) * 0.1, high + Math.abs(high || 1) * 0.1];
    const width = Math.max(260, Math.min(680, wide)), height = Math.round(Math.min(280, width * 0.62));
    const left = 48, right = 12, top = 10, bottom = 34;
    const x = (tokens) => left + ((tokens - from) / (to - from)) * (width - left - right);
    const y = (value) => top + ((f(high) - f(value)) / (f(high) - f(low))) * (height - top - bottom);
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    const levels = (log ? logTicks : ticks)(low, high, 4), names = labels(levels);
    levels.forEach((value, at) => svg.append(
      make("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      make("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, names[at])));
    const times = ticks(from, to, width / 110), stamps = labels(times);
    times.forEach((tokens, at) => svg.append(
      make("text", { x: x(tokens), y: height - 17, "text-anchor": "middle" }, stamps[at])));
    svg.append(make("text", { x: width - right, y: height - 3, "text-anchor": "end" }, "tokens"));
    for (const line of lines) {
      let path = "", pen = "M";
      for (const { tokens, value } of line.points) {
        if (value === null) { pen = "M"; continue; } // not finite: a gap
        path += `${pen}${x(tokens).toFixed(1)} ${y(value).toFixed(1)}`;
        pen = "L";
      }
      line.points = line.points.filter((point) => point.value !== null);
      line.path = make("path", { d: path, ...style(line.run) });
      svg.append(line.path);
      if (line.points.length <= FEW) for (const { tokens, value } of line.points)
        svg.append(make("circle", { cx: x(tokens), cy: y(value), r: 2.5, fill: style(line.run).stroke }));
    }
    const dot = make("circle", { r: 5, fill: "#fff", "stroke-width": 2.5, visibility: "hidden" });
    svg.append(dot);
    const reading = make("p", { class: "reading", role: "status" });
    let at = null; // [line, point]
    const read = (line, point) => {
      at = [line, point];
      const { tokens, value } = line.points[point];
      for (const other of lines) other.path.classList.toggle("near", other === line);
      for (const [key, to] of Object.entries({ cx: x(tokens), cy: y(value), stroke: style(line.run).stroke, visibility: "visible" }))
        dot.setAttribute(key, to);
      reading.textContent = `${number(value)} at ${tokens.toLocaleString("en")} tokens: ${runs[line.run].id}`;
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
      const usable = lines.filter((line) => line.points.length);
      const [line, point] = at ?? [usable[0], event.key === "ArrowLeft" ? usable[0].points.length : -1];
      const end = line.points.length - 1, row = usable.indexOf(line);
      const other = usable[(row + (event.key === "ArrowDown" ? 1 : -1) + usable.length) % usable.length];
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
    const ends = lines.filter((line) => line.points.length).map((line) => `${runs[line.run].id} ends at ${number(line.points.at(-1).value)}`);
    return make("div", { class: "chart" }, make("h4", {}, title + (log ? ", logarithmic scale" : "")), make("div", { tabindex: 0, role: "group",
      "aria-label": `${title}, against tokens. ${ends.join("; ")}. Arrow keys move between points.`,
      onpointermove: nearest, onpointerdown: nearest, onpointerleave: (event) => { if (event.pointerType === "mouse") leave(); },
      onkeydown: keys, onblur: leave }, svg), reading);
  }
  let wide = 0;
  function measure() {
    const box = $("charts"), columns = Math.max(1, Math.floor((box.clientWidth + 32) / (26 * 16 + 32)));
    return Math.floor((box.clientWidth - 32 * (columns - 1)) / columns);
  }

  /* ---- differences between two runs ---- */
  const value = (run, key) => (key in runs[run].config ? runs[run].config[key] : data.common[key]);
  const breakable = (key) => key.split(".").flatMap((part, at) => (at ? [".", make("wbr"), part] : [part]));
  function compare(first, second) {
    $("first").value = first;
    $("second").value = second;
    const rows = data.keys.flatMap((name, key) => {
      const [one, two] = [value(first, key), value(second, key)];
      return one === two ? [] : [make("tr", {}, make("th", { scope: "row" }, ...breakable(name)),
        ...[one, two].map((text) => make("td", {}, text === null ? "null" : text || "(empty)")))];
    });
    $("difference-count").textContent = `${rows.length} of ${data.keys.length} keys differ`;
    $("difference-table").tBodies[0].replaceChildren(...rows);
  }

  /* ---- table cells that list their runs ---- */
  for (const cell of document.querySelectorAll('#tables [title^="runs: "]')) {
    const known = cell.title.slice(6).split(", ").filter((id) => byId.has(id)).map((id) => byId.get(id));
    if (!known.length) continue;
    const link = make("a", { href: "#runs", title: cell.title, onclick: () => pick(known, true) });
    link.append(...cell.childNodes);
    cell.append(link);
  }

  for (const id of ["first", "second"]) {
    $(id).append(...runs.map((run, at) => make("option", { value: at }, run.id)));
    $(id).addEventListener("change", () => compare(Number($("first").value), Number($("second").value)));
  }
  $("filter").addEventListener("input", () => { page = 0; drawTable(); });
  $("draw-all").addEventListener("click", () => pick(matching(), true));
  $("clear").addEventListener("click", () => pick([], true));
  new ResizeObserver(() => { if (wide !== measure()) { wide = measure(); drawCharts(); } }).observe($("charts"));

  drawHead();
  wide = measure();
  const drawable = runs.flatMap((run, at) => (Object.keys(run.curves).length ? [at] : []));
  compare(0, Math.min(1, runs.length - 1));
  const kind = (run) => runs[run].shown[COLUMNS.indexOf("temperature")];
  const other = drawable.find((run) => kind(run) !== kind(drawable[0])) ?? drawable[1];
  pick([drawable[0], other].filter((run) => run !== undefined));
})();
