"""The page: self-contained, and what a browser makes of it."""

import html
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from fedsim.report import runs
from fedsim.report.page import page, written

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

# Beside the page's own script: notes every error, changes the grouping, and writes what it saw into the page.
PROBE = """<script>
window.seen = [];
addEventListener("error", (e) => seen.push(e.message));
addEventListener("unhandledrejection", (e) => seen.push(String(e.reason)));
</script>"""
REPORT = """<script>
setTimeout(() => {
  const cells = (row) => [...row.cells].map((c) => c.textContent);
  const rows = () => [...document.querySelectorAll("#groups tbody tr")].map(cells);
  const first = rows();
  const curves = document.querySelectorAll("#curves .curve").length;
  const bands = document.querySelectorAll("#curves .band").length;
  const behind = document.querySelectorAll("#curves .curve.behind").length;
  const charts = [...document.querySelectorAll(".chart svg")].length;
  document.querySelectorAll("#groups th")[2].click();
  document.querySelector("#groups tbody tr").click();  // hides it; the order stays
  const ofGroups = rows().map((row) => row[2]);
  for (const metric of document.querySelectorAll("#metric option"))
    for (const axis of document.querySelectorAll("#axis option")) {
      document.getElementById("metric").value = metric.value;
      document.getElementById("axis").value = axis.value;
      document.getElementById("controls").dispatchEvent(new Event("change"));
    }
  document.querySelectorAll("#keys input").forEach((box) => { box.checked = box.value === "seed"; });
  document.getElementById("controls").dispatchEvent(new Event("change"));
  const bySeed = rows();
  document.querySelectorAll("#runs th")[3].click();
  document.querySelectorAll("#runs th")[3].click();
  const sorted = [...document.querySelectorAll("#runs tbody tr")].map((r) => r.cells[0].textContent);
  const maps = [...document.querySelectorAll("#maps canvas")].map((canvas) => {
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return { width: canvas.clientWidth, painted: pixels.filter((value, i) => i % 4 === 3 && value > 0).length };
  });
  const titles = [...document.querySelectorAll("#maps figure")]
    .map((f) => [...f.querySelectorAll("h3, figcaption")].map((e) => e.textContent));
  const dashed = [...document.querySelectorAll("#memory .curve")].map((line) => line.getAttribute("stroke-dashoffset"));
  const chart = document.querySelector("#curves svg"), box = chart.getBoundingClientRect();
  chart.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + box.width / 2, clientY: box.top + 50 }));
  const tip = document.querySelector("#curves .tip").textContent;
  const wide = [...document.querySelectorAll("body *")].filter((e) => !e.closest(".scroll, svg, .tip")
    && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.tagName + "#" + e.id);
  const small = [...document.querySelectorAll("p, td, th, li, label, figcaption, text")]
    .filter((e) => parseFloat(getComputedStyle(e).fontSize) < 12).length;
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = JSON.stringify({ seen, first, ofGroups, curves, bands, behind, charts, bySeed, sorted, tip, wide,
    small, maps, titles, dashed, width: innerWidth, scroll: document.documentElement.scrollWidth,
    fetched: performance.getEntriesByType("resource").map((r) => r.name) });
  document.body.append(out);
}, 500);
</script>"""


def browse(text: str, folder: Path, *, width: int) -> dict:
    """What the probe saw in headless Chromium with a window of `width` pixels."""
    if BROWSER is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    file = folder / "probed.html"
    file.write_text(text.replace("<body>", "<body>" + PROBE, 1).replace("</body>", REPORT + "</body>", 1))
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900", "--virtual-time-budget=4000",
        "--dump-dom", file.as_uri(),
    ]  # fmt: skip
    errors = ""
    for _ in range(3):  # a busy machine can keep the browser from starting in time, or from ending
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ})
        except subprocess.TimeoutExpired:
            continue
        if found := re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL):
            return json.loads(html.unescape(found[1]))
        errors = done.stderr[-2000:]
        time.sleep(1)
    raise AssertionError(f"the page did not come to its end: {errors}")


@pytest.fixture
def text(sweep) -> str:
    return page(runs([sweep]), sweep.parent, by=["algorithm"], target=0.5)


def test_nothing_is_fetched_from_anywhere(text):
    assert not re.search(r"""(?:src|@import|url\()\s*=?\s*["']?\s*(?:https?:)?//""", text)
    assert "<link" not in text
    assert not re.search(r"<script[^>]+src", text)
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, not an address


def test_what_a_run_says_cannot_become_markup(text):
    assert "stand-in </script>" not in text
    assert "a stand-in &lt;/script&gt;&lt;b&gt;" in text
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert len(json.loads(data[1])["runs"]) == 6


def test_links_lead_to_the_files(text, sweep):
    links = set(re.findall(r'href="([^"]+)"', text))
    assert "sweep/0/summary.json" in links
    assert all((sweep.parent / link).exists() for link in links)


def test_the_runs_are_plain_html(text):
    cells = re.findall(r"<tr><td class=\"name\">.*?</tr>", text)
    assert len(cells) == 6
    assert "fedprox" in cells[3]
    assert "0.01" not in cells[3]  # that comes with fedprox; it is told below
    assert "<dt>algorithm.proximal_weight</dt><dd>0.01 (of 3 runs; the others have no such setting)</dd>" in text
    assert "80.0%" in cells[3]
    assert "<dt>local.learning_rate</dt><dd>0.1</dd>" in text


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_draws_it_without_an_error(text, tmp_path, width):
    seen = browse(text, tmp_path, width=width)
    assert seen["width"] <= max(width, 500)  # some builds refuse windows narrower than 500
    assert seen["seen"] == []
    assert seen["fetched"] == []
    assert (seen["curves"], seen["bands"], seen["charts"]) == (2, 2, 5)
    fedavg = seen["first"][0]
    assert fedavg[:3] == ["algorithm fedavg", "3", "46.7% ± 15.0%"]
    assert "4 ± 0 (2 of 3)" in fedavg
    assert [row[0] for row in seen["bySeed"]] == ["seed 1", "seed 2", "seed 0"]  # still as the heading was clicked
    assert seen["bySeed"][2][2] == "70.0% ± 14.0%"  # 60 and 80 %: deviation sqrt(2 * 10^2 / 1), to two digits
    assert seen["sorted"] == ["5", "3", "4", "0", "1", "2"]  # by the best accuracy, falling
    assert seen["tip"].startswith("bytes sent")
    # By seed: seeds 0 and 2 of fedavg have the partition of conftest.py, seed 1 has another one.
    assert seen["titles"] == [
        ["seed 0; seed 2", "3 clients; 2 to 8 samples (median 5); 1 to 2 classes (median 2)"],
        ["seed 1", "300 clients; 1 to 9 samples (median 4)"],
    ]
    assert [m["painted"] > 1000 for m in seen["maps"]] == [True]
    assert seen["dashed"] == ["0", "-10", "-20"]  # the memory of all is the same
    assert seen["wide"] == []
    assert seen["scroll"] <= seen["width"]
    assert seen["small"] == 0


def test_of_more_groups_than_colours_the_best_have_them(many, tmp_path):
    seen = browse(page(runs([many]), tmp_path, by=["seed"]), tmp_path, width=1280)
    assert seen["seen"] == []
    assert (seen["curves"], seen["behind"]) == (12, 2)
    assert [row[0] for row in seen["first"]] == ["seed 1", *(f"seed {i}" for i in range(11, 1, -1)), "seed 0"]
    assert seen["ofGroups"] == ["10.0%", *(f"{20 + 5 * i}.0%" for i in range(10)), "90.0%"]  # a click on the heading


def test_one_run_alone_is_a_page_too(sweep, tmp_path):
    alone = page(runs([sweep / "3"]), tmp_path)
    assert "1 run<" in alone
    assert json.loads(re.findall(r'id="data">(.*?)</script>', alone, re.DOTALL)[0])["by"] == []


def test_shares_of_classes_are_letters(sweep, tmp_path):
    written = json.loads(re.findall(r'id="data">(.*?)</script>', page(runs([sweep]), tmp_path), re.DOTALL)[0])
    assert [run["partition"] for run in written["runs"]] == [0, 1, 0, 0, 1, 0]
    # (2, 0), (1, 4), (4, 4): 63 sqrt(share), rounded up: 63; 28.2 and 56.3; 44.5
    assert written["partitions"][0]["columns"] == ["_A", "d5", "tt"]
    assert written["partitions"][0]["totals"] == [2, 5, 8]
    assert "columns" not in written["partitions"][1]


def test_hundreds_of_runs_stay_small(sweep):
    recorded = runs([sweep]) * 60
    assert len(page(recorded, sweep.parent)) < 2_000_000


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (None, "share", "\u2013"), (0.1234, "share", "12.3%"), (1536.0, "bytes", "1.5 KiB"), (0.5, "bytes", "0.5 B"),
        (0.0123, "seconds", "12.3 ms"), (90.0, "seconds", "1.5 min"), (7200.0, "seconds", "2 h"), (12.0, "count", "12"),
        (1234.0, "count", "1,234"), (0.5, "count", "0.5"),
    ],
)  # fmt: skip
def test_numbers_are_written_for_people(value, kind, text):
    assert written(value, kind) == text
