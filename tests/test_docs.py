"""The Python in README.md and docs/ and the commands of the tutorial run as they stand there; the pages build."""

import contextlib
import importlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

import fedsim
from fedsim.cli import conf_dir
from fedsim.config import Config

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


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_are_named_are_there(page: Path):
    """Such as `tests/test_cli.py`: `test_a_mistake_is_one_line_that_helps`, and that test in it."""
    for path, test in re.findall(r"`((?:tests|bench|notebooks|fedsim)/[\w/.]+)`(?:: `(test_\w+)`)?", page.read_text()):
        assert (ROOT / path).exists(), path
        assert not test or f"def {test}(" in (ROOT / path).read_text(), f"{path}: {test}"


def options() -> tuple[dict[str, set[str]], set[str]]:
    """The choices of each group of conf/, and every option as dotted keys."""

    def keys(node: object, prefix: str = "") -> Iterator[str]:
        for name, child in node.items() if isinstance(node, dict) else ():
            yield f"{prefix}{name}"
            yield from keys(child, f"{prefix}{name}.")

    choices: dict[str, set[str]] = {}
    known = set(keys(asdict(Config())))
    for file in conf_dir().glob("*/*.yaml"):
        text, group = file.read_text(), file.parent.name
        choices.setdefault(group, set()).add(file.stem)
        package = re.match(r"# @package (\S+)", text)
        prefix = group if package is None else package[1].removeprefix("_global_")
        known |= set(keys(yaml.safe_load(text), f"{prefix}." if prefix else ""))
    return choices, known


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_options_that_are_named_exist(page: Path):
    """In every command and code span; the second column of coming_from.md is ours, the first another framework's."""
    choices, known = options()
    text = page.read_text()
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE).splitlines()
    if page.name == "coming_from.md":
        lines = [line.split("|")[2] if line.startswith("|") else line for line in lines]
    wrong = []
    for code in [*blocks, *re.findall(r"`([^`]+)`", "\n".join(lines))]:
        for key, value in re.findall(r"(?<![\w.=/@-])\+?([a-z_]+(?:\.[a-z_0-9]+)*)=(\S*)", code):
            section = key.partition(".")[0]
            if key in choices:
                own = key in ("model", "tracking") and "--config-dir my_conf" in text  # a part that the page makes
                wrong += [f"{key}={n}" for n in re.findall(r"[a-z_0-9]+", value) if n not in choices[key] and not own]
            elif key not in known and section != key and section in known and section != "hydra":
                wrong.append(key)
    assert wrong == []


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


def readme_commands() -> list[list[str]]:
    """Every `python -m fedsim...` of the README's blocks, as words."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for kind, block in blocks if not kind for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [shlex.split(part, comments=True) for part in parts if part.startswith("python -m fedsim")]


# Of the main job a round is run; what needs files that the reader brings is composed.
FEWER = ("data.num_clients=8", "model=logistic", "server.num_rounds=1", "server.clients_per_round=4")
BROUGHT = ("+experiment=mnist_shards", "+experiment=shakespeare")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # trackers warn of what is theirs
def test_the_commands_of_the_readme_run(fedsim, tmp_path, monkeypatch):
    from fedsim import doctor
    from fedsim.report.__main__ import main as report

    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install '.[tracking]'")
    pytest.importorskip("dp_accounting", reason="dp-accounting is not installed: pip install '.[privacy]'")
    done = readme_commands()
    assert len(done) > 15
    main_job = tmp_path / "outputs" / "0"
    (tmp_path / "table").write_text("".join(f"{row % 5 / 5} 1:{row % 5}\n" for row in range(400)))
    for number, (_, _, module, *arguments) in enumerate(done):
        directory = tmp_path / "outputs" / str(number)
        if module in ("fedsim.report", "fedsim.doctor"):
            monkeypatch.chdir(tmp_path)
            assert (report(arguments) if module == "fedsim.report" else doctor.main()) == 0, arguments
            continue
        if "+experiment=femnist_fedavg" in arguments:
            arguments += FEWER
        if "checkpoint.resume=RUN_DIR" in arguments:
            arguments = [a.replace("RUN_DIR", str(main_job)) for a in arguments] + ["server.num_rounds=2"]
        arguments = [a.replace("data.train=FILE", f"data.train={tmp_path / 'table'}") for a in arguments]
        if any(experiment in arguments for experiment in BROUGHT):
            arguments = ["--cfg", "job", *arguments]
        if module == "fedsim.data_report":
            command = [sys.executable, "-m", module, *arguments, f"hydra.run.dir={directory}"]
            package = str(Path(doctor.__file__).resolve().parents[1])
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])}
            told = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert told.returncode == 0, told.stderr
            continue
        if "-m" in arguments:
            finished = fedsim(*arguments, f"hydra.sweep.dir={directory}")
        else:
            finished = fedsim(*arguments, directory=directory)
        assert finished.code == 0, (arguments, finished.err)
    assert json.loads((main_job / "summary.json").read_text())["rounds"] == 2
    assert (tmp_path / "report.html").exists()


def test_what_the_pages_import_is_in_the_api():
    """Every name that a page or a notebook imports from fedsim, and every public name of the package."""
    api = re.findall(r"^::: (\S+)", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    texts = [page.read_text() for page in PAGES]
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(notebook.read_text())["cells"]
        texts += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    wanted = {f"{home}.{name}" for name, home in fedsim._HOME.items()}
    for text in texts:
        for module, names in re.findall(r"^from (fedsim\.[\w.]+) import (.+)$", text, re.MULTILINE):
            wanted |= {f"{module}.{name.strip()}" for name in names.split(",")}
    covered = {name for name in wanted if any(name == entry or name.startswith(entry + ".") for entry in api)}
    assert wanted - covered == set()


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install '.[docs]'")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "site" / "api.html").read_text()
    assert "clients_per_round" in api
    shown = set(re.findall(r'id="(fedsim[.\w]+)"', api))
    for package in ("algorithms", "data.partition", "models", "robust", "transforms"):
        # a function named as its module hides behind it, and needs a line of its own in api.md
        module = importlib.import_module(f"fedsim.{package}")
        names = [name for name in module.__all__ if callable(getattr(module, name))]
        homes = {name: f"{getattr(module, name).__module__}.{name}" for name in names}
        assert [n for n in names if not {f"fedsim.{package}.{n}", homes[n]} & shown] == []
    assert "extending.html" in (tmp_path / "site" / "index.html").read_text()
