"""Every notebook runs from top to bottom, in one kernel that is started for them; none carries outputs in git."""

from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# What Jupyter's own packages warn of is not ours to mend.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.slow]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    for name in ("nbclient", "ipykernel"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'fedsim[notebooks]'")
    from jupyter_client.manager import KernelManager

    manager = KernelManager()
    manager.start_kernel(cwd=str(tmp_path_factory.mktemp("notebooks")))
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, kernel, tmp_path: Path):
    import nbformat
    import psutil
    from nbclient import NotebookClient

    def processor_seconds() -> float:
        times = psutil.Process(kernel.provisioner.pid).cpu_times()
        return times.user + times.system

    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f\n%matplotlib inline"))
    before = processor_seconds()
    NotebookClient(notebook, km=kernel, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert processor_seconds() - before < 100  # under a minute on two cores


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_clean(path: Path):
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install 'fedsim[notebooks]'")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
