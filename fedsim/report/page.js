const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
// Okabe and Ito's colours, which colour-blind readers tell apart, then others of equal weight.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#7b3fa0", "#8c564b", "#6b7280", "#e377c2"];
const GREY = "var(--faint)";
const AXES = {
  round: ["round", "count"], seconds: ["seconds of training", "seconds"],
  virtual_seconds: ["virtual time", "seconds"], bytes: ["bytes sent", "bytes"],
};
const LABELS = { test_accuracy: "test accuracy", test_loss: "test loss", train_loss: "training loss",
  seconds: "time a round", peak_memory_bytes: "peak memory", update_norm: "norm of the mean update" };
const hidden = new Set();
for (const run of data.runs) {
  for (const curve of Object.values(run.curves)) {
    const here = (values) => curve.at ? curve.at.map((i) => values[i]) : values;
    curve.x = Object.fromEntries(Object.entries(run.axes).map(([name, values]) => [name, here(values)]));
  }
}
const label = (metric) => LABELS[metric] || metric.replaceAll("_", " ");
const kind = (metric) => metric.includes("accuracy") ? "share" : metric.includes("bytes") ? "bytes"
  : metric.endsWith("seconds") ? "seconds" : "count";

function spread(values) {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return { mean, std: values.length > 1 ? Math.sqrt(squares / (values.length - 1)) : 0, n: values.length };
}

function groups() {
  const chosen = [...at("keys").querySelectorAll("input:checked")].map((box) => data.keys.indexOf(box.value));
  const found = new Map(), ends = chosen.map((i) => data.keys[i].split(".").pop());
  const short = (i) => {  // partition.num_clients and data.num_clients keep their first words
    const end = data.keys[i].split(".").pop();
    return ends.filter((other) => other === end).length > 1 ? data.keys[i] : end;
  };
  for (const run of data.runs) {
    const given = chosen.filter((i) => run.settings[i] !== null);  // fedavg has no proximal_weight
    const parts = given.map((i) => short(i) + " " + run.settings[i]);
    const name = parts.join(", ") || (data.runs.length > 1 ? "all runs" : run.name);
    if (!found.has(name)) found.set(name, { name, parts, runs: [] });
    found.get(name).runs.push(run);
  }
  const all = [...found.values()];
  // More groups than colours: the best come first and have them, the others are grey.
  if (all.length > COLOURS.length) all.sort((a, b) => worth(b) - worth(a));
  all.forEach((group, i) => { group.colour = COLOURS[i] || GREY; });
  return all;
}

function worth(group) {
  const of = ({ best_accuracy, best_test_loss }) => best_accuracy ?? (best_test_loss == null ? null : -best_test_loss);
  const known = group.runs.map((run) => of(run.values)).filter((value) => value !== null);
  return known.length ? spread(known).mean : -Infinity;
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
  return { ...look(group), points: drawn };
}

function look({ name, colour }) {
  return { name, colour, behind: colour === GREY };
}

function read(xs, ys, x) {
  let i = 1;
  while (i < xs.length - 1 && xs[i] < x) i++;
  if (xs.length < 2 || xs[i] === xs[i - 1]) return ys[Math.min(i, ys.length - 1)];
  const share = Math.min(1, Math.max(0, (x - xs[i - 1]) / (xs[i] - xs[i - 1])));
  return ys[i - 1] + share * (ys[i] - ys[i - 1]);
}

function groupsTable(found) {
  const table = at("groups");
  const head = document.createElement("tr");
  const add = (row, tag, text, number, value) => {
    const cell = document.createElement(tag);
    cell.textContent = text;
    if (number) cell.className = "number";
    if (value !== undefined) cell.dataset.value = value;
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
    const name = add(row, "td", group.parts.length ? "" : group.name);
    group.parts.forEach((part, i) => {  // a line ends between settings, not within one
      const whole = document.createElement("span");
      whole.className = "whole";
      whole.textContent = part;
      name.append(i ? ", " : "", whole);
    });
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = group.colour;
    name.prepend(swatch);
    add(row, "td", group.runs.length, true);
    for (const [column, [, kind]] of Object.entries(data.columns)) {
      const values = group.runs.map((run) => run.values[column]).filter((value) => value !== null);
      const mean = values.length ? spread(values).mean : undefined;
      const cell = add(row, "td", values.length ? written(mean, kind) : "–", true, mean);
      const more = document.createElement("small");
      if (values.length > 1) more.textContent = " ± " + written(Number(spread(values).std.toPrecision(2)), kind);
      if (column.endsWith("_to_target") && values.length < group.runs.length) more.textContent += ` (${values.length} of ${group.runs.length})`;
      cell.append(more);
    }
    row.addEventListener("click", () => {
      if (!hidden.delete(group.name)) hidden.add(group.name);
      draw();
    });
    row.addEventListener("pointerenter", () => emphasise(group.name));
    row.addEventListener("pointerleave", () => emphasise(null));
    body.append(row);
  }
  const thead = document.createElement("thead");
  thead.append(head);
  table.replaceChildren(thead, body);
  sortable(table);
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
    + (found.length > COLOURS.length ? ` The best ${COLOURS.length} groups have colours, the other ${found.length - COLOURS.length} are grey.` : "")
    + (found.length > 1 ? " Lines that lie on one another are dashed in turns. A click on a group below hides it or shows it again, on a heading sorts." : "");
  groupsTable(found);
  const clients = found.map((group) => {
    const known = group.runs.map((run) => run.clients).filter(Boolean);
    const points = known.length ? known[0].map((_, i) => {
      const share = i / (known[0].length - 1);
      return { x: spread(known.map((quantiles) => quantiles[i])).mean, y: share, low: share, high: share, n: 1 };
    }) : [];
    return { ...look(group), points };
  });
  const better = data.judged === "accuracy" ? "right" : "left";
  chart(at("clients"), clients, { xKind: kind(data.judged), yKind: "share", xLabel: `test ${data.judged} of a client` });
  at("clients-caption").textContent = `Share of clients whose test ${data.judged} is at most the one below: the further ${better} and the steeper, the better and the fairer.`;
  const sizes = found.map((group) => {
    const run = group.runs.find((run) => run.partition !== null);
    const points = !run ? [] : data.partitions[run.partition].sizes.map((x, i, all) => {
      const share = i / (all.length - 1);
      return { x, y: share, low: share, high: share, n: 1 };
    });
    return { ...look(group), points };
  });
  chart(at("sizes"), sizes, { xKind: "count", yKind: "share", xLabel: "training samples of a client" });
  const more = maps(at("maps"), found.filter((group) => !hidden.has(group.name)));
  at("more-maps").textContent = more ? `${more} more partitions are not shown: hide groups, or group by less.` : "";
  at("partitions").hidden = !data.partitions.length;
  chart(at("time"), found.map((group) => series(group, "seconds", "round")), { xKind: "count", yKind: "seconds", xLabel: "round", cut: true });
  chart(at("memory"), found.map((group) => series(group, "peak_memory_bytes", "round")), { xKind: "count", yKind: "bytes", xLabel: "round" });
}

function option(select, value, text) {
  const made = document.createElement("option");
  made.value = value;
  made.textContent = text;
  select.append(made);
}

// A click on a heading sorts, and the table remembers it when its rows are made anew.
function sortable(table) {
  const sort = () => {
    const column = Number(table.dataset.column), up = table.dataset.up === "true";
    const value = (row) => {
      const cell = row.cells[column];
      const number = Number(cell.dataset.value ?? cell.textContent);
      return cell.textContent.startsWith("–") ? [1, 0, ""] : Number.isNaN(number) ? [0, 0, cell.textContent] : [0, number, ""];
    };
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [value(row), row]);
    rows.sort(([a], [b]) => a[0] - b[0] || (up ? 1 : -1) * (a[1] - b[1] || a[2].localeCompare(b[2])));
    body.append(...rows.map(([, row]) => row));
  };
  table.querySelectorAll("th").forEach((head, column) => head.addEventListener("click", () => {
    table.dataset.up = table.dataset.column !== String(column) || table.dataset.up !== "true";
    table.dataset.column = column;
    sort();
  }));
  if (table.dataset.column) sort();
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
