"""The house of docs/architecture.md: imports run downwards only ([tool.importlinter] in pyproject.toml)."""

import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"


def lint(folder: Path) -> tuple[int, str]:
    """Runs the contract over the source tree in `folder`: exit code and report.

    A process of its own, because the linter looks for the package in its working directory
    and would else find the `fedsim` that this process has imported.
    """
    command = [sys.executable, "-c", LINT, "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def layers() -> list[set[str]]:
    """The floors of the contract, highest first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = settings["tool"]["importlinter"]["contracts"]
    return [{name.strip(" ()") for name in floor.split("|")} for floor in contract["layers"]]


def rows(heading: str) -> list[list[str]]:
    """The cells of the table of docs/architecture.md under this heading."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.split(heading)[1].split("\n\n")[0]
    return [line.split("|")[1:-1] for line in table.splitlines()[2:]]


def names(cell: str) -> set[str]:
    return {name.strip("/") for name in re.findall(r"`([\w/*]+)`", cell)}


def test_the_page_has_the_floors_of_the_contract():
    assert [names(part) for row in rows("| floor |") for part in row[1].split(";")] == layers()


def test_the_page_names_every_module_of_a_folder():
    for folder, cell in rows("| folder |"):
        (package,) = names(folder)
        named = names(cell)
        inside = {path.stem for path in (ROOT / "fedsim" / package).iterdir() if path.suffix == ".py" or path.is_dir()}
        missing = {m for m in inside if not m.startswith("__") and not any(fnmatch(m, name) for name in named)}
        assert missing == set(), f"docs/architecture.md does not name these modules of {package}/"


@pytest.fixture
def tiny_house(tmp_path: Path) -> Path:
    """A package with an empty module on every required floor, under the project's own contract."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = settings["tool"]["importlinter"]["contracts"]
    modules = [name.strip() for floor in contract["layers"] for name in floor.split("|")]
    package = tmp_path / "fedsim"
    package.mkdir()
    for module in ["__init__", *(name for name in modules if not name.startswith("("))]:
        (package / f"{module}.py").touch()
    return tmp_path


def test_the_package_keeps_the_contract():
    code, report = lint(ROOT)
    assert code == 0, report


def test_the_empty_house_keeps_the_contract(tiny_house: Path):
    code, report = lint(tiny_house)
    assert code == 0, report


@pytest.mark.parametrize(
    ("module", "line", "complaint"),
    [
        pytest.param("rng", "import fedsim.train", "fedsim.rng -> fedsim.train", id="upwards"),
        pytest.param("vector", "import fedsim.rng", "fedsim.vector -> fedsim.rng", id="sideways"),
        pytest.param("data", "def f():\n    import fedsim.cli", "fedsim.data -> fedsim.cli", id="inside a function"),
        pytest.param("homeless", "", "fedsim.homeless", id="a module on no floor"),
    ],
)
def test_the_contract_fails(tiny_house: Path, module: str, line: str, complaint: str):
    (tiny_house / "fedsim" / f"{module}.py").write_text(line + "\n", encoding="utf-8")
    code, report = lint(tiny_house)
    assert code == 1
    assert complaint in report
