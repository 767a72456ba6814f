"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
// Okabe and Ito's colours, which colour-blind readers tell apart, then others of equal weight.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#7b3fa0", "#8c564b", "#6b7280", "#e377c2"];
const AXES = {
  round: ["round", "count"], seconds: ["seconds of training", "seconds"],
  virtual_seconds: ["virtual time", "seconds"], bytes: ["bytes sent", "bytes"],
};
const LABELS = { test_accuracy: "test accuracy", test_loss: "test loss", train_loss: "training loss",
  seconds: "time a round", peak_memory_bytes: "peak memory", update_norm: "norm of the mean update" };
const hidden = new Set();
const label = (metric) => LABELS[metric] || metric.replaceAll("_", " ");
const kind = (metric) => metric.includes("accuracy") ? "share" : metric.includes("bytes") ? "bytes"
  : metric.endsWith("seconds") ? "seconds" : "count";

function written(value, kind) {
  if (value === null || value === undefined || !isFinite(value)) return "–";
  const short = (number) => String(Number(number.toPrecision(3)));
  if (kind === "share") return (100 * value).toFixed(1) + " %";
  if (kind === "bytes") {
    const power = value >= 1 ? Math.min(Math.floor(Math.log(value) / Math.log(1024)), 4) : 0;
    return short(value / 1024 ** power) + " " + ["B", "KiB", "MiB", "GiB", "TiB"][power];
  }
  if (kind === "seconds") {
    if (value >= 3600) return short(value / 3600) + " h";
    return value >= 60 ? short(value / 60) + " min" : value >= 1 || value === 0 ? short(value) + " s" : short(1000 * value) + " ms";
  }
  return Number.isInteger(value) ? value.toLocaleString("en") : short(value);
}

function spread(values) {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return { mean, std: values.length > 1 ? Math.sqrt(squares / (values.length - 1)) : 0, n: values.length };
}

function groups() {
  const chosen = [...at("keys").querySelectorAll("input:checked")].map((box) => data.keys.indexOf(box.value));
  const found = new Map();
  for (const run of data.runs) {
    const given = chosen.filter((i) => run.settings[i] !== null);  // fedavg has no proximal_weight
    const parts = given.map((i) => data.keys[i].split(".").pop() + " " + run.settings[i]);
    const name = parts.join(", ") || (data.runs.length > 1 ? "all runs" : run.name);
    if (!found.has(name)) found.set(name, { name, runs: [], colour: COLOURS[found.size % COLOURS.length] });
    found.get(name).runs.push(run);
  }
  return [...found.values()];
}

// Mean and spread of a metric over a group's runs. Rounds are compared where they are; on other axes, where no two runs
// have the same points, every run is read off at 100 places that all of them reach.
function series(group, metric, axis) {
  const curves = group.runs.map((run) => run.curves[metric]).filter((c) => c && c.x[axis] && c.y.length);
  const points = new Map();
  const add = (x, y) => { if (!points.has(x)) points.set(x, []); points.get(x).push(y); };
  if (axis === "round" || curves.length === 1) {
    for (const curve of curves) curve.y.forEach((y, i) => add(curve.x[axis][i], y));
  } else if (curves.length) {
    const from = Math.max(...curves.map((c) => c.x[axis][0]));
    const to = Math.min(...curves.map((c) => c.x[axis][c.y.length - 1]));
    for (let i = 0; from <= to && i < 100; i++) {
      const x = from + (to - from) * i / 99;
      for (const curve of curves) add(x, read(curve.x[axis], curve.y, x));
    }
  }
  const drawn = [...points].sort((a, b) => a[0] - b[0]).map(([x, ys]) => {
    const { mean, std, n } = spread(ys);
    return { x, y: mean, low: mean - std, high: mean + std, n };
  });
  return { name: group.name, colour: group.colour, points: drawn };
}

function read(xs, ys, x) {
  let i = 1;
  while (i < xs.length - 1 && xs[i] < x) i++;
  if (xs.length < 2 || xs[i] === xs[i - 1]) return ys[Math.min(i, ys.length - 1)];
  const share = Math.min(1, Math.max(0, (x - xs[i - 1]) / (xs[i] - xs[i - 1])));
  return ys[i - 1] + share * (ys[i] - ys[i - 1]);
}

function ticks(low, high, most, kind) {
  const base = kind === "bytes" ? 2 : 10;
  const raw = (high - low) / most || 1;
  const power = base ** Math.floor(Math.log(raw) / Math.log(base));
  const step = (base === 2 ? [1, 2] : kind === "share" ? [1, 2, 2.5, 5, 10] : [1, 2, 5, 10]).map((m) => m * power).find((s) => s >= raw) || raw;
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function node(name, attributes, parent, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function chart(box, all, { xKind, yKind, xLabel, aim, cut }) {
  box.replaceChildren();
  const lines = all.filter((line) => line.points.length && !hidden.has(line.name));
  if (!lines.length) {
    const empty = document.createElement("p");
    empty.className = "empty";
    empty.textContent = "Nothing was recorded.";
    box.append(empty);
    return;
  }
  const width = box.clientWidth, height = box.clientHeight, left = 58, right = 12, top = 8, bottom = 40;
  const every = lines.flatMap((line) => line.points);
  const bounds = (low, high) => low === high ? [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1] : [low, high];
  const [x0, x1] = bounds(Math.min(...every.map((p) => p.x)), Math.max(...every.map((p) => p.x)));
  let [y0, y1] = bounds(Math.min(...every.map((p) => p.low)), Math.max(...every.map((p) => p.high)));
  if (cut) {  // a machine that was busy for one round must not flatten all the others
    const usual = every.map((p) => p.y).sort((a, b) => a - b)[Math.floor(0.9 * (every.length - 1))];
    y1 = Math.min(y1, 3 * usual || y1);
  }
  const margin = 0.04 * (y1 - y0);
  [y0, y1] = yKind === "share" ? [Math.max(0, y0 - margin), Math.min(1, y1 + margin)] : [y0 - margin, y1 + margin];
  if (yKind !== "share" && y0 < 0 && every.every((p) => p.y >= 0)) y0 = 0;
  const px = (x) => left + (x - x0) / (x1 - x0) * (width - left - right);
  const py = (y) => height - bottom - (Math.min(y1, Math.max(y0, y)) - y0) / (y1 - y0) * (height - top - bottom);
  const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" }, box);
  for (const y of ticks(y0, y1, 5, yKind)) {
    node("line", { class: "grid", x1: left, x2: width - right, y1: py(y), y2: py(y) }, svg);
    node("text", { x: left - 8, y: py(y) + 4, "text-anchor": "end" }, svg, yKind === "share" ? Number((100 * y).toPrecision(4)) + " %" : written(y, yKind));
  }
  for (const x of ticks(x0, x1, Math.max(3, Math.floor((width - left) / 75)), xKind)) {
    const text = xKind === "share" ? Number((100 * x).toPrecision(4)) + " %" : written(x, xKind);
    node("text", { x: Math.min(px(x), width - right - 4 * text.length), y: height - bottom + 18, "text-anchor": "middle" }, svg, text);
  }
  node("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, svg, xLabel);
  if (aim !== null && aim !== undefined && aim >= y0 && aim <= y1) {
    node("line", { class: "aim", x1: left, x2: width - right, y1: py(aim), y2: py(aim) }, svg);
    node("text", { x: width - right, y: py(aim) - 5, "text-anchor": "end" }, svg, "target " + written(aim, yKind));
  }
  for (const line of lines) {
    if (line.points.some((p) => p.high > p.low)) {
      const upper = line.points.map((p) => `${px(p.x).toFixed(1)},${py(p.high).toFixed(1)}`);
      const lower = line.points.map((p) => `${px(p.x).toFixed(1)},${py(p.low).toFixed(1)}`).reverse();
      node("polygon", { class: "band", fill: line.colour, points: [...upper, ...lower].join(" ") }, svg);
    }
  }
  for (const line of lines) {
    const points = line.points.map((p) => `${px(p.x).toFixed(1)},${py(p.y).toFixed(1)}`);
    node("polyline", { class: "curve", stroke: line.colour, points: points.join(" ") }, svg);
    if (points.length === 1) node("circle", { r: 3.5, fill: line.colour, cx: points[0].split(",")[0], cy: points[0].split(",")[1] }, svg);
  }
  hover(box, svg, lines, { px, left, width, top, height, bottom, xKind, yKind, xLabel });
}

function hover(box, svg, lines, { px, left, width, top, height, bottom, xKind, yKind, xLabel }) {
  const cursor = node("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" }, svg);
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  box.append(tip);
  svg.addEventListener("pointerleave", () => { tip.hidden = true; cursor.setAttribute("visibility", "hidden"); });
  svg.addEventListener("pointermove", (event) => {
    const mouse = event.clientX - svg.getBoundingClientRect().left;
    const nearest = (points) => points.reduce((a, b) => Math.abs(px(b.x) - mouse) < Math.abs(px(a.x) - mouse) ? b : a);
    const x = nearest(lines.flatMap((line) => line.points)).x;
    cursor.setAttribute("x1", px(x));
    cursor.setAttribute("x2", px(x));
    cursor.setAttribute("visibility", "visible");
    const head = document.createElement("b");
    head.textContent = `${xLabel} ${written(x, xKind)}`;
    tip.replaceChildren(head);
    for (const line of lines.slice(0, 12)) {
      const point = nearest(line.points);
      const row = document.createElement("div");
      row.innerHTML = `<span class="swatch" style="background:${line.colour}"></span>`;
      const more = point.n > 1 ? ` ± ${written(point.y - point.low, yKind)} (${point.n})` : "";
      row.append(`${line.name}: ${written(point.y, yKind)}${more}`);
      tip.append(row);
    }
    tip.hidden = false;
    tip.style.left = mouse < width / 2 ? `${mouse + 14}px` : "auto";
    tip.style.right = mouse < width / 2 ? "auto" : `${width - mouse + 14}px`;
  });
}

function groupsTable(found) {
  const table = at("groups");
  const head = document.createElement("tr");
  const add = (row, tag, text, number) => {
    const cell = document.createElement(tag);
    cell.textContent = text;
    if (number) cell.className = "number";
    row.append(cell);
    return cell;
  };
  add(head, "th", "group");
  add(head, "th", "runs", true);
  for (const [heading] of Object.values(data.columns)) add(head, "th", heading, true);
  const body = document.createElement("tbody");
  for (const group of found) {
    const row = document.createElement("tr");
    row.classList.toggle("off", hidden.has(group.name));
    const name = add(row, "td", group.name);
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = group.colour;
    name.prepend(swatch);
    add(row, "td", group.runs.length, true);
    for (const [column, [, kind]] of Object.entries(data.columns)) {
      const values = group.runs.map((run) => run.values[column]).filter((value) => value !== null);
      const cell = add(row, "td", values.length ? written(spread(values).mean, kind) : "–", true);
      const more = document.createElement("small");
      if (values.length > 1) more.textContent = " ± " + written(Number(spread(values).std.toPrecision(2)), kind);
      if (column.endsWith("_to_target") && values.length < group.runs.length) more.textContent += ` (${values.length} of ${group.runs.length})`;
      cell.append(more);
    }
    row.addEventListener("click", () => {
      if (!hidden.delete(group.name)) hidden.add(group.name);
      draw();
    });
    body.append(row);
  }
  const thead = document.createElement("thead");
  thead.append(head);
  table.replaceChildren(thead, body);
}

function draw() {
  const found = groups(), metric = at("metric").value, axis = at("axis").value;
  const [xLabel, xKind] = AXES[axis];
  chart(at("curves"), found.map((group) => series(group, metric, axis)),
    { xKind, yKind: kind(metric), xLabel, aim: metric === "test_accuracy" ? data.target : null });
  const several = found.some((group) => group.runs.length > 1);
  const what = label(metric)[0].toUpperCase() + label(metric).slice(1);
  at("curves-caption").textContent = `${what} by ${xLabel}. ` + (several
    ? "Lines are means over the runs of a group, bands one standard deviation to either side." : "One run a line.")
    + (found.length > 1 ? " A click on a group below hides it or shows it again." : "");
  groupsTable(found);
  const clients = found.map((group) => {
    const known = group.runs.map((run) => run.clients).filter(Boolean);
    const points = known.length ? known[0].map((_, i) => {
      const share = i / (known[0].length - 1);
      return { x: spread(known.map((quantiles) => quantiles[i])).mean, y: share, low: share, high: share, n: 1 };
    }) : [];
    return { name: group.name, colour: group.colour, points };
  });
  chart(at("clients"), clients, { xKind: "share", yKind: "share", xLabel: "test accuracy of a client" });
  chart(at("time"), found.map((group) => series(group, "seconds", "round")), { xKind: "count", yKind: "seconds", xLabel: "round", cut: true });
  chart(at("memory"), found.map((group) => series(group, "peak_memory_bytes", "round")), { xKind: "count", yKind: "bytes", xLabel: "round" });
}

function option(select, value, text) {
  const made = document.createElement("option");
  made.value = value;
  made.textContent = text;
  select.append(made);
}

function sortable(table) {
  const heads = [...table.querySelectorAll("th")];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const up = head.dataset.up !== "true";
    heads.forEach((other) => delete other.dataset.up);
    head.dataset.up = up;
    const value = (row) => {
      const cell = row.cells[column];
      const number = Number(cell.dataset.value ?? cell.textContent);
      return cell.textContent === "–" ? [1, 0, ""] : Number.isNaN(number) ? [0, 0, cell.textContent] : [0, number, ""];
    };
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [value(row), row]);
    rows.sort(([a], [b]) => a[0] - b[0] || (up ? 1 : -1) * (a[1] - b[1] || a[2].localeCompare(b[2])));
    body.append(...rows.map(([, row]) => row));
  }));
}

data.metrics.forEach((metric) => option(at("metric"), metric, label(metric)));
data.axes.forEach((axis) => option(at("axis"), axis, AXES[axis][0]));
for (const key of data.keys) {
  const wrap = document.createElement("label"), box = document.createElement("input");
  box.type = "checkbox";
  box.value = key;
  box.checked = data.by.includes(key);
  wrap.append(box, key);
  at("keys").append(wrap);
}
at("keys").hidden = !data.keys.length;
at("target").textContent = data.target === null ? "" :
  `Target: ${written(data.target, "share")} test accuracy. Means ± standard deviations over the runs that got there.`;
at("controls").addEventListener("change", () => { hidden.clear(); draw(); });
sortable(at("runs"));
let drawnAt = at("curves").clientWidth;
draw();
new ResizeObserver(() => {
  if (at("curves").clientWidth !== drawnAt) {
    drawnAt = at("curves").clientWidth;
    draw();
  }
}).observe(at("curves"));
