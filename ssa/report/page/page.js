/* Table of runs, what is drawn, differences; and for all pages, folded parts and wide tables. */
const COLUMNS = ["experiment", "status", "model", "size", "variant", "seed", "loss", "perplexity", "entropy"];
const NUMBERS = new Set(["seed", "loss", "perplexity", "entropy"]);
const PAGE = 50, MOST = 24; // rows per page, lines drawn at once
// With the width of the stroke, dashes distinguish lines of one color and in grayscale.
const DASHES = ["", "7 3", "2 3", "10 3 2 3", "14 4", "6 2 2 2 2 2", "1 5"];

/* ---- folded parts open when something links to them; wide tables say that they scroll ---- */
function reveal(hash) {
  const target = hash.length > 1 && $(decodeURIComponent(hash.slice(1)));
  for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
  if (target) target.scrollIntoView();
}
document.addEventListener("click", (event) => {
  const link = event.target.closest?.('a[href^="#"]');
  if (link) reveal(link.hash);
});
addEventListener("hashchange", () => reveal(location.hash));
const sizes = new ResizeObserver((changed) => {
  for (const { target } of changed) {
    const box = target.closest(".scroll");
    box?.classList.toggle("wide", box.scrollWidth > box.clientWidth + 1);
  }
});
function watch(root) {
  for (const box of root.querySelectorAll(".scroll")) for (const part of [box, ...box.children]) sizes.observe(part);
}
watch(document);

function start() {
  const byId = new Map(runs.map((run, at) => [run.id, at]));

  /* ---- what is drawn: entity -> index of its style ---- */
  const picked = new Map();
  const view = { minus: false, logTokens: false, logValues: false };
  function pick(found, only = false) {
    if (only) picked.clear();
    for (const entity of found) {
      if (picked.has(entity) || picked.size >= MOST) continue;
      const taken = new Set(picked.values());
      let place = 0;
      while (taken.has(place)) place++;
      picked.set(entity, place);
    }
    changed();
  }
  function toggle(entity) {
    if (picked.delete(entity)) changed();
    else pick([entity]);
  }
  function changed() {
    drawTable();
    drawCharts();
    const [first, second] = [...picked.keys()].slice(-2).map((entity) => entities[entity].members[0]);
    if (second !== undefined) compare(first, second);
  }
  const look = (entity) => {
    const place = picked.get(entity), repeat = Math.floor(place / DASHES.length);
    return { stroke: entities[entity].color, "stroke-width": 1.8 + repeat,
      "stroke-dasharray": DASHES[place % DASHES.length] || null };
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
      make("th", { scope: "row", title: folder }, box, ` ${damage ? "⚠ " : ""}${id}`), ...cells,
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
    $("run-table").tHead.rows[0].replaceChildren(...heads, make("th", { scope: "col" }, "damage or error"));
  }

  /* ---- curves ---- */
  function drawCharts() {
    const drawn = [...picked.keys()];
    $("legend").replaceChildren(...drawn.map((entity) => make("li", {},
      make("svg", { width: 34, height: 10, "aria-hidden": "true" },
        make("line", { x1: 0, x2: 34, y1: 5, y2: 5, ...look(entity) })), entities[entity].name)));
    const charts = data.curves.map((title, metric) => chart(title, metric, drawn, wide, look, view)).filter(Boolean);
    const without = drawn.filter((entity) => entities[entity].members.every((run) => !Object.keys(runs[run].curves).length));
    if (without.length) charts.push(make("p", {}, `No curves on this machine: ${without.map((entity) => entities[entity].name).join(", ")}`));
    const none = !drawn.length ? "No run is drawn: click one below." : "No vanilla run at the same settings and seed.";
    $("charts").replaceChildren(...(charts.length ? charts : [make("p", {}, none)]));
    $("maps").replaceChildren(...maps(drawn));
    watch($("maps"));
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
  for (const cell of document.querySelectorAll(':is(.of-runs, #seeds) [title^="runs: "]')) {
    const known = cell.title.slice(6).split(", ").filter((id) => byId.has(id)).map((id) => byId.get(id));
    if (!known.length) continue;
    const link = make("a", { href: "#curves", title: cell.title, onclick: () => pick(entitiesOf(known), true) });
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
  for (const [id, name] of [["minus", "minus"], ["log-tokens", "logTokens"], ["log-values", "logValues"]])
    $(id).addEventListener("change", () => { view[name] = $(id).checked; drawCharts(); });
  new ResizeObserver(() => { if (wide !== measure()) { wide = measure(); drawCharts(); } }).observe($("charts"));

  /* At first a variant beside its vanilla, else two runs of different rules. */
  drawHead();
  wide = measure();
  compare(0, Math.min(1, runs.length - 1));
  const paired = data.variants.find((one) => one.entity !== undefined && data.variants[one.base]?.entity !== undefined);
  const drawable = runs.flatMap((run, at) => (Object.keys(run.curves).length ? [at] : []));
  const other = drawable.find((run) => runs[run].color !== runs[drawable[0]].color) ?? drawable[1];
  pick(paired ? [data.variants[paired.base].entity, paired.entity] : [drawable[0], other].filter((run) => run !== undefined));
}
if (runs.length) start();
if (location.hash) reveal(location.hash);
