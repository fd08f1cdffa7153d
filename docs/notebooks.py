"""Runs the notebooks of docs/ and writes their outputs again: python docs/notebooks.py (extra `docs`)"""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = sorted(Path(__file__).parent.rglob('*.ipynb'))
KEPT = 'text/plain', 'image/png'


def run(path: Path) -> nbformat.NotebookNode:
    """The notebook with new outputs, without messages and whatever else depends on the machine.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, record_timing=False).execute()
    notebook.metadata = {
        'kernelspec': {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}
    }
    for cell in notebook.cells:
        outputs = [out for out in cell.get('outputs', ()) if out.get('name') != 'stderr']
        for out in outputs:
            data = out.get('data', {})
            kind = max((k for k in KEPT if k in data), key=KEPT.index, default=None)
            if kind:  # a picture's text is an address in memory
                out['data'] = {kind: data[kind]}
        if cell.cell_type == 'code':
            cell.outputs = outputs
    return notebook


if __name__ == '__main__':
    for path in NOTEBOOKS:
        nbformat.write(run(path), path)
