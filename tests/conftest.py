import pytest
import torch
from hypothesis import settings

settings.register_profile('bvtam', deadline=None, database=None, max_examples=60)
settings.load_profile('bvtam')


@pytest.fixture(autouse=True)
def own_zoo(tmp_path, monkeypatch):
    """Every test has an empty cache of its own, and no network."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch_home'))
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.delenv('BVTAM_ZOO', raising=False)
    torch.manual_seed(0)
