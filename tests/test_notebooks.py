"""Every notebook runs from top to bottom, in one kernel that is started for them; none carries outputs in git."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
pytestmark = pytest.mark.slow

# In a process of its own, whose event loop and sockets end with it. Prints what went wrong and the processor seconds of
# the kernel and of the programs that it has started and that have ended, a line a notebook.
RUN = """
import json, sys
import nbformat, psutil
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

kernel = KernelManager()
kernel.start_kernel(cwd=sys.argv[1])
process = psutil.Process(kernel.provisioner.pid)
used = lambda: sum(process.cpu_times()[:4])  # own and children's, user and system
for path in sys.argv[2:]:
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f\\n%matplotlib inline"))
    before, error = used(), None
    try:
        NotebookClient(notebook, km=kernel, timeout=200, resources={"metadata": {"path": sys.argv[1]}}).execute()
    except Exception as failure:
        error = str(failure)
    print(json.dumps({"notebook": path, "error": error, "seconds": used() - before}), flush=True)
kernel.shutdown_kernel(now=True)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    for name in ("nbclient", "ipykernel"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install '.[notebooks]'")
    command = [sys.executable, "-c", RUN, str(tmp_path_factory.mktemp("notebooks")), *map(str, NOTEBOOKS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"notebook"')]
    assert len(found) == len(NOTEBOOKS), done.stderr
    return {Path(outcome["notebook"]).stem: outcome for outcome in found}


@pytest.mark.timeout(600)  # the first one waits for all
@pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS])
def test_notebook_runs(name: str, outcomes):
    assert outcomes[name]["error"] is None
    assert outcomes[name]["seconds"] < 100  # of a processor: under a minute on two cores


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_clean(path: Path):
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
