"""Run `docs/tour.ipynb` and replace its outputs: ``python docs/site/run_notebook.py [ANOTHER_PATH]``."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "tour.ipynb"


def main(to: str | Path = NOTEBOOK) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    metadata = copy.deepcopy(notebook.metadata)
    NotebookClient(notebook, timeout=300, record_timing=False, coalesce_streams=True).execute()
    notebook.metadata = metadata  # without the version of Python: only outputs differ from run to run
    nbformat.write(notebook, to)


if __name__ == "__main__":
    main(*sys.argv[1:])
