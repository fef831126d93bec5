"""Execute the notebooks, offline and with this Python, and store what they print.

    make notebooks
    python examples/notebooks/run.py examples/notebooks/inspecting.ipynb

A cell that raises ends the run with an error, and the file stays as it was: that includes the cells that assert
what the text beside them says. What differs between two runs of the same code (times, widgets, progress bars) is
not stored, so that running again changes nothing in the files.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Kernels inherit this: no network, and no warnings about forks and debuggers.
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
WIDGET = "application/vnd.jupyter.widget-view+json"


class ThisPython(AsyncKernelManager):
    """A kernel of the Python that runs this; what other kernels are installed does not matter."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]), **kwargs)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="files of this folder; none: all")
    parser.add_argument("--timeout", type=int, default=900, help="most seconds of one cell")
    options = parser.parse_args()
    failed: list[str] = []
    for path in options.notebooks or sorted(FOLDER.glob("*.ipynb")):
        started, busy = time.perf_counter(), children()
        try:
            execute(path, options.timeout)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            failed.append(path.name)
            print(f"{path.name}: {error}", file=sys.stderr)
        spent = time.perf_counter() - started
        print(f"{path.name}: {spent:.0f} s, {children() - busy:.0f} s of a processor", flush=True)
    if failed:
        print(f"Failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def children() -> float:
    """Processor seconds of kernels that have ended; 0 where the system does not count them."""
    times = os.times()
    return times.children_user + times.children_system


def execute(path: Path, timeout: int) -> None:
    """Run a notebook from top to bottom in a folder of its own and store its outputs.

    Raises:
        CellExecutionError: A cell raised; the file is not touched.
        CellTimeoutError: A cell took too long; likewise.
        DeadKernelError: The kernel died; likewise.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            kernel_manager_class=ThisPython,
            timeout=timeout,
            startup_timeout=timeout,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
            record_timing=False,
            coalesce_streams=True,
            store_widget_state=False,
            resources={"metadata": {"path": folder}},
        )
        client.execute()
    nbformat.write(without_traces(notebook), path)


def without_traces(notebook: NotebookNode) -> NotebookNode:
    """The notebook without what says where and when it ran."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_passing(output)]
            for output in cell.outputs:
                if "metadata" in output:
                    output.metadata = nbformat.from_dict({})
    return notebook


def _is_passing(output: NotebookNode) -> bool:
    """Whether an output is a progress bar, a log line or a warning."""
    return WIDGET in output.get("data", {}) or output.get("name") == "stderr"


if __name__ == "__main__":
    sys.exit(main())
