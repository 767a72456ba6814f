// A partition as a map: a column a client (or a group of like ones), a row a class, dark where its share is large; above
// it the clients' numbers of samples. On a canvas, for a map may have thousands of cells.
const LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";  // as page.py writes shares

function map(box, partition) {
  box.replaceChildren();
  const canvas = document.createElement("canvas"), width = box.clientWidth, height = box.clientHeight;
  canvas.width = width * devicePixelRatio;
  canvas.height = height * devicePixelRatio;
  box.append(canvas);
  const style = getComputedStyle(box), ink = style.getPropertyValue("--soft"), accent = style.getPropertyValue("--accent");
  const draw = canvas.getContext("2d");
  draw.scale(devicePixelRatio, devicePixelRatio);
  draw.font = "12px system-ui, sans-serif";
  const { columns, totals } = partition, classes = columns[0].length;
  const left = 30, right = 2, bottom = 18, bars = totals ? 34 : 0, top = bars + (totals ? 6 : 2);
  const cell = (width - left - right) / columns.length, row = (height - top - bottom) / classes;
  const most = totals && Math.max(...totals);
  draw.fillStyle = accent;
  columns.forEach((column, x) => {
    // Whole pixels, so that neighbours leave no seam; a gap between columns where there is room for one.
    const from = Math.round(left + x * cell), to = Math.round(left + (x + 1) * cell) - (cell > 5 ? 1 : 0);
    draw.globalAlpha = 0.55;
    if (totals) draw.fillRect(from, bars * (1 - totals[x] / most), to - from, bars * totals[x] / most);
    for (let y = 0; y < classes; y++) {
      const level = LEVELS.indexOf(column[y]) / (LEVELS.length - 1);
      if (!level) continue;
      draw.globalAlpha = 0.08 + 0.92 * level;
      const low = Math.round(height - bottom - y * row), high = Math.round(height - bottom - (y + 1) * row);
      draw.fillRect(from, high, to - from, low - high);
    }
  });
  draw.globalAlpha = 1;
  draw.strokeStyle = style.getPropertyValue("--line");
  draw.strokeRect(left - 0.5, top - 0.5, width - left - right + 1, height - top - bottom + 1);
  draw.fillStyle = ink;
  draw.textAlign = "right";
  for (const y of classes > 10 ? [0, Math.floor(classes / 2), classes - 1] : [...Array(classes).keys()]) {
    draw.fillText(y, left - 6, height - bottom - (y + 0.5) * row + 4);
  }
  draw.textAlign = "center";
  draw.fillText(partition.a_column === 1 ? "client" : `groups of about ${written(Math.round(partition.a_column), "count")} like clients`,
    (left + width - right) / 2, height - 4);
}

function partitionFacts(partition) {
  const count = (value) => written(value, "count"), [least, median, largest] = [0, 25, 50].map((i) => partition.sizes[i]);
  const facts = [`${count(partition.clients)} clients`, `${count(least)} to ${count(largest)} samples (median ${count(median)})`];
  if (partition.held) facts.push(`${count(partition.held[0])} to ${count(partition.held[2])} classes (median ${count(partition.held[1])})`);
  return facts.join("; ");
}

// One panel for each partition among the first runs of the groups; groups that share one share its panel.
function maps(box, found) {
  const MOST = 12, panels = new Map();
  for (const group of found) {
    const run = group.runs.find((run) => run.partition !== null);
    if (!run) continue;
    if (!panels.has(run.partition)) panels.set(run.partition, []);
    panels.get(run.partition).push(group);
  }
  box.replaceChildren();
  const drawn = [];
  for (const [index, sharing] of [...panels].slice(0, MOST)) {
    const partition = data.partitions[index], figure = document.createElement("figure"), title = document.createElement("h3");
    const common = sharing[0].parts.filter((part) => sharing.every((group) => group.parts.includes(part)));
    title.textContent = sharing.length === 1 ? sharing[0].name : sharing.length === found.length ? "all groups"
      : common.join(", ") || sharing.slice(0, 3).map((group) => group.name).join("; ") + (sharing.length > 3 ? " ..." : "");
    const caption = document.createElement("figcaption");
    caption.textContent = partitionFacts(partition);
    figure.append(title, caption);
    box.append(figure);
    if (!partition.columns) continue;
    const area = document.createElement("div");
    area.className = "map";
    area.setAttribute("role", "img");
    area.setAttribute("aria-label", `Classes of the clients: ${title.textContent}`);
    figure.append(area);
    drawn.push([area, partition]);
  }
  for (const [area, partition] of drawn) map(area, partition);  // now that all are there, each knows its width
  return Math.max(0, panels.size - MOST);
}
