"""The package as a whole: its version, its modules, and its command from any working directory."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

import fedsim

PACKAGE = Path(fedsim.__file__).resolve().parent


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# __main__ is a program, not a module to import: the test of --help runs it.
MODULES = sorted(module_name(path) for path in PACKAGE.rglob("*.py") if path.name != "__main__.py")


def run_python(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs this interpreter in `folder` with the `fedsim` under test, whether or not it is installed."""
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_version_is_canonical_pep_440():
    assert str(Version(fedsim.__version__)) == fedsim.__version__


def test_a_public_name_is_no_module(tmp_path: Path):
    """A module of the same name would take its place as soon as it is imported: only what is used twice shows it."""
    look = (
        "import fedsim; print({n for n in 2 * fedsim.__all__ if type(getattr(fedsim, n)).__name__ == 'module'} or '')"
    )
    done = run_python("-c", look, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("name", MODULES)
def test_module_imports(name: str):
    importlib.import_module(name)


def test_command_line_starts_without_torch(tmp_path: Path):
    """Help, completion, a refused config and a report answer at once: importing torch takes seconds."""
    look = "import sys, fedsim.cli, fedsim.report.__main__; print('torch' in sys.modules)"
    done = run_python("-c", look, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"


def test_help_runs_from_any_working_directory_and_writes_nothing(tmp_path: Path):
    done = run_python("-m", "fedsim", "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "fedsim" in done.stdout
    assert list(tmp_path.iterdir()) == []
