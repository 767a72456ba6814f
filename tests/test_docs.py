"""The Python in README.md and docs/ and the commands of the tutorial run as they stand there; the pages build."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in p.read_text()], ids=lambda p: p.name)
def test_python_in_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            exec(block, names)
    assert printed.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def commands(page: Path) -> list[list[str]]:
    """The lines of a page's sh blocks, as words."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_the_commands_of_the_tutorial_run(fedsim, tmp_path, monkeypatch, capsys):
    """In one folder, one after another, in this process: each would else load PyTorch again."""
    from fedsim import doctor
    from fedsim.report.__main__ import main as report

    done = commands(ROOT / "docs" / "tutorial.md")
    assert len(done) == 7
    for words in done:
        assert words[:2] == ["python", "-m"], words
        module, arguments = words[2], words[3:]
        if module == "fedsim":
            finished = fedsim(*arguments)
            assert finished.code == 0, (words, finished.err)
        else:
            monkeypatch.chdir(tmp_path)
            assert {"fedsim.report": report, "fedsim.doctor": lambda _: doctor.main()}[module](arguments) == 0, words
    assert "6 runs in 2 groups" in capsys.readouterr().out
    assert (tmp_path / "report.html").exists()
    assert len((tmp_path / "first" / "metrics.jsonl").read_text().splitlines()) == 8
    assert (tmp_path / "second" / "summary.json").exists()
    assert len(list((tmp_path / "sweep").glob("*/summary.json"))) == 6
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'fedsim[docs]'")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed: pip install 'fedsim[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "site" / "api.html").read_text()
    assert "clients_per_round" in api
    assert "extending.html" in (tmp_path / "site" / "index.html").read_text()
