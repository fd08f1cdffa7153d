import os

import pytest
import torch
from hypothesis import settings

# Test processes side by side share the cores; what they start inherits it.
_SHARE = max(1, (os.cpu_count() or 1) // int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', '1')))
os.environ.setdefault('OMP_NUM_THREADS', str(_SHARE))
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
