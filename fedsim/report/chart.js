"use strict";
// Lines with bands as SVG, and how a number is written; page.js says what is drawn.
function written(value, kind) {
  if (value === null || value === undefined || !isFinite(value)) return "–";
  const short = (number) => String(Number(number.toPrecision(3)));
  if (kind === "share") return (100 * value).toFixed(1) + "%";
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

function ticks(low, high, most, kind, whole) {
  const base = kind === "bytes" ? 2 : 10;
  const raw = Math.max((high - low) / most || 1, whole ? 1 : 0);  // there is no round 1.5
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
  const least = (key) => every.reduce((found, p) => Math.min(found, p[key]), Infinity);
  const most = (key) => every.reduce((found, p) => Math.max(found, p[key]), -Infinity);
  const [x0, x1] = bounds(least("x"), most("x"));
  let [y0, y1] = bounds(least("low"), most("high"));
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
    node("text", { x: left - 8, y: py(y) + 4, "text-anchor": "end" }, svg, yKind === "share" ? Number((100 * y).toPrecision(4)) + "%" : written(y, yKind));
  }
  const whole = every.every((p) => Number.isInteger(p.x));
  for (const x of ticks(x0, x1, Math.max(3, Math.floor((width - left) / 75)), xKind, whole)) {
    const text = xKind === "share" ? Number((100 * x).toPrecision(4)) + "%" : written(x, xKind);
    node("text", { x: Math.min(px(x), width - right - 4 * text.length), y: height - bottom + 18, "text-anchor": "middle" }, svg, text);
  }
  node("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, svg, xLabel);
  const aimed = aim !== null && aim !== undefined && aim >= y0 && aim <= y1;
  if (aimed) {
    node("line", { class: "aim", x1: left, x2: width - right, y1: py(aim), y2: py(aim) }, svg);
  }
  const before = lines.filter((line) => !line.behind);
  for (const line of before) {
    if (line.points.some((p) => p.high > p.low)) {
      const upper = line.points.map((p) => `${px(p.x).toFixed(1)},${py(p.high).toFixed(1)}`);
      const lower = line.points.map((p) => `${px(p.x).toFixed(1)},${py(p.low).toFixed(1)}`).reverse();
      node("polygon", { class: "band", fill: line.colour, points: [...upper, ...lower].join(" ") }, svg);
    }
  }
  dashes(before, px, py);
  for (const line of [...lines.filter((line) => line.behind), ...before]) {
    const points = line.points.map((p) => `${px(p.x).toFixed(1)},${py(p.y).toFixed(1)}`);
    line.drawn = node("polyline", { class: line.behind ? "curve behind" : "curve", stroke: line.colour, points: points.join(" ") }, svg);
    line.drawn.dataset.name = line.name;
    if (line.dash) for (const [key, value] of Object.entries(line.dash)) line.drawn.setAttribute(key, value);
    if (points.length === 1) node("circle", { r: 3.5, fill: line.colour, cx: points[0].split(",")[0], cy: points[0].split(",")[1] }, svg);
  }
  if (aimed) {  // above the lines, so that it can be read
    node("text", { x: width - right, y: py(aim) - 5, "text-anchor": "end" }, svg, "target " + written(aim, yKind));
  }
  hover(box, svg, lines, { px, py, left, width, top, height, bottom, xKind, yKind, xLabel });
}

// Lines that lie on one another (on screen, to a pixel) are dashed in turns, so that each of their colours is seen.
function dashes(lines, px, py) {
  const bundles = [];
  const alike = (a, b) => a.points.length === b.points.length && a.points.every((p, i) =>
    Math.abs(px(p.x) - px(b.points[i].x)) < 1 && Math.abs(py(p.y) - py(b.points[i].y)) < 1);
  for (const line of lines) {
    line.dash = null;
    const bundle = bundles.find((lines) => alike(lines[0], line));
    if (bundle) bundle.push(line);
    else bundles.push([line]);
  }
  for (const bundle of bundles.filter((lines) => lines.length > 1)) {
    const dash = Math.max(2, Math.min(10, 240 / bundle.length));
    bundle.forEach((line, i) => {
      line.dash = { "stroke-dasharray": `${dash} ${dash * (bundle.length - 1)}`, "stroke-dashoffset": -i * dash };
    });
  }
}

function emphasise(name, within = document) {
  within.querySelectorAll(".curve").forEach((line) => line.classList.toggle("near", line.dataset.name === name));
}

function hover(box, svg, lines, { px, py, left, width, top, height, bottom, xKind, yKind, xLabel }) {
  const cursor = node("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" }, svg);
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  box.append(tip);
  svg.addEventListener("pointerleave", () => {
    tip.hidden = true;
    cursor.setAttribute("visibility", "hidden");
    emphasise(null, svg);
  });
  svg.addEventListener("pointermove", (event) => {
    const place = svg.getBoundingClientRect();
    const mouse = event.clientX - place.left, level = event.clientY - place.top;
    const nearest = (points) => points.reduce((a, b) => Math.abs(px(b.x) - mouse) < Math.abs(px(a.x) - mouse) ? b : a);
    const x = nearest(lines.flatMap((line) => line.points)).x;
    cursor.setAttribute("x1", px(x));
    cursor.setAttribute("x2", px(x));
    cursor.setAttribute("visibility", "visible");
    const head = document.createElement("b");
    head.textContent = `${xLabel} ${written(x, xKind)}`;
    tip.replaceChildren(head);
    const found = lines.map((line) => ({ line, point: nearest(line.points) }));
    const away = ({ point }) => Math.abs(py(point.y) - level);
    const closest = [...found].sort((a, b) => away(a) - away(b)).slice(0, 12);
    emphasise(lines.length > 1 ? closest[0].line.name : null, svg);
    for (const { line, point } of found.filter((each) => closest.includes(each))) {
      const row = document.createElement("div");
      row.innerHTML = `<span class="swatch" style="background:${line.colour}"></span>`;
      const more = point.n > 1 ? ` ± ${written(point.y - point.low, yKind)} (${point.n})` : "";
      row.append(`${line.name}: ${written(point.y, yKind)}${more}`);
      tip.append(row);
    }
    if (found.length > closest.length) tip.append(`and ${found.length - closest.length} others, further from the pointer`);
    tip.hidden = false;
    tip.style.left = mouse < width / 2 ? `${mouse + 14}px` : "auto";
    tip.style.right = mouse < width / 2 ? "auto" : `${width - mouse + 14}px`;
  });
}
