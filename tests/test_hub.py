"""hubconf.py and the zoo folders as other programs read them."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import bvtam

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    not (ROOT / 'hubconf.py').is_file(), reason='hubconf.py is part of the checkout, not the wheel'
)


def hubconf():
    spec = importlib.util.spec_from_file_location('hubconf', ROOT / 'hubconf.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_registered_name_is_offered_and_nothing_else():
    offered = {n for n, v in vars(hubconf()).items() if callable(v) and not n.startswith('_')}
    assert offered == set(bvtam.list_models())


@pytest.mark.parametrize('name', bvtam.list_models())
def test_torch_hub_loads(name):
    model = torch.hub.load(str(ROOT), name, source='local', num_classes=2)
    assert model.num_classes == 2 and model.model_name == name


def test_dependencies_are_complete():
    """What an interpreter imports for hubconf.py, of packages that are not torch's or timm's own."""
    script = (
        f'import sys; sys.path.insert(0, {str(ROOT)!r}); import torch, torchvision, timm; '
        'before = set(sys.modules); import hubconf; '
        'print(*{m.partition(".")[0] for m in set(sys.modules) - before})'
    )
    result = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, check=True
    )
    imported = set(result.stdout.split()) - set(sys.stdlib_module_names) - {'bvtam', 'hubconf'}
    assert imported <= set(hubconf().dependencies), imported


@torch.no_grad()
@pytest.mark.parametrize('name', ['bvtam_tiny_8x2', 'tam_resnet18_f8', 'blresnet50'])
def test_saved_nets_come_back(name, tmp_path):
    options = {'temporal_range': 5} if 'ta' in name else {'alpha': 4}
    model = bvtam.create_model(name, num_classes=3, **options).eval()
    model.label_names = ['a', 'b', 'c']
    folder = bvtam.save_pretrained(model, tmp_path / 'net', licence='cc-by-4.0')
    assert 'license: cc-by-4.0' in (folder / 'README.md').read_text()
    shape = (1, 3, 96, 96) if model.input_kind == 'image' else (1, 3, 4, 96, 96)
    x = torch.randn(shape)
    for create in (bvtam.create_model, timm.create_model):
        again = create(f'local-dir:{folder}', pretrained=True).eval()
        assert torch.equal(again(x), model(x))
        assert again.clip_config == model.clip_config
        assert again.label_names == ['a', 'b', 'c']
