import importlib
import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Test processes side by side share the cores; what they start inherits it. The process that starts
# them loads this file too, and must leave it to them.
if workers := os.environ.get('PYTEST_XDIST_WORKER_COUNT'):
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // int(workers))))
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))

settings.register_profile('bvtam', deadline=None, database=None, max_examples=60)
settings.load_profile('bvtam')


@pytest.fixture(autouse=True)
def own_zoo(tmp_path, monkeypatch):
    """Every test has an empty cache of its own, and no network."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch_home'))
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.delenv('BVTAM_ZOO', raising=False)
    torch.manual_seed(0)


@pytest.fixture
def benchmark(monkeypatch):
    """The function that imports a program of `benchmarks/`, which a wheel lacks."""
    folder = Path(__file__).parents[1] / 'benchmarks'
    if not folder.is_dir():
        pytest.skip('benchmarks are part of the checkout')
    monkeypatch.syspath_prepend(folder)
    return importlib.import_module
