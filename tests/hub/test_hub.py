"""hubconf.py and the zoo folders as other programs read them."""

import ast
import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from support import local_hub

import bvtam

ROOT = Path(__file__).parents[2]
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


def test_dependencies_are_complete():
    """Every package that a module imports, of those that hubconf.py brings in, is declared."""
    script = (
        f'import sys; sys.path.insert(0, {str(ROOT)!r}); import hubconf; '
        'print(*(m.__file__ for n, m in list(sys.modules.items()) if n.partition(".")[0] == "bvtam"))'
    )
    result = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, check=True
    )
    imported = set()
    for file in result.stdout.split():
        for node in ast.walk(ast.parse(Path(file).read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition('.')[0])
    assert imported - set(sys.stdlib_module_names) == set(hubconf().dependencies) - {'torchvision'}


TORCH_HUB = """
import os, sys
# neither an installed nor an editable bvtam may help
sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in getattr(f, '__module__', '')]
sys.path[:] = [p for p in sys.path if not os.path.isfile(os.path.join(p, 'bvtam', '__init__.py'))]
import torch
torch.hub._git_archive_link = lambda owner, name, ref: os.environ['ARCHIVE']
model = torch.hub.load('owner/bvtam:main', 'bvtam_r50_16x2', num_classes=4, skip_validation=True,
                     trust_repo=True, verbose=False)
import bvtam
assert bvtam.__file__.startswith(torch.hub.get_dir()), bvtam.__file__
print(model(torch.zeros(1, 3, 2, 64, 64)).shape[1], model.clip_config.num_frames)
"""


def test_torch_hub_from_the_zip_it_downloads(tmp_path):
    """In a fresh interpreter, with an empty cache, without the package."""
    archive = tmp_path / 'main.zip'
    with zipfile.ZipFile(archive, 'w') as file:
        file.mkdir('owner-bvtam-0123abc')  # first, as in GitHub's archives
        for path in [ROOT / 'hubconf.py', *(ROOT / 'bvtam').rglob('*'), *(ROOT / 'zoo').rglob('*')]:
            if path.is_file() and '__pycache__' not in path.parts:
                file.write(path, Path('owner-bvtam-0123abc') / path.relative_to(ROOT))
    with local_hub.LocalHub() as hub:
        hub.files['/main.zip'] = archive.read_bytes()
        env = os.environ | {'ARCHIVE': f'{hub.url}/main.zip', 'TORCH_HOME': str(tmp_path / 'home')}
        env.pop('PYTHONPATH', None)
        result = subprocess.run(
            [sys.executable, '-c', TORCH_HUB], capture_output=True, text=True, env=env, cwd=tmp_path
        )
        assert result.stdout.split()[-2:] == ['4', '32'], result.stderr
        assert len(hub.seen('main.zip', 'GET')) == 1


@torch.no_grad()
@pytest.mark.parametrize('name', ['bvtam_tiny_8x2', 'tam_resnet18_f8', 'blresnet50'])
def test_saved_models_come_back(name, tmp_path):
    options = {'temporal_range': 5} if 'ta' in name else {'alpha': 4}
    plain = getattr(bvtam.models, name)(num_classes=3, **options).eval()
    model = plain.to(memory_format=torch.channels_last)
    model.label_names = ['a', 'b', 'c']
    folder = bvtam.save_pretrained(model, tmp_path / 'model', licence='cc-by-4.0')
    assert 'license: cc-by-4.0' in (folder / 'README.md').read_text()
    assert '"license": "cc-by-4.0"' in (folder / 'config.json').read_text()
    shape = (1, 3, 96, 96) if model.input_kind == 'image' else (1, 3, 4, 96, 96)
    x = torch.randn(shape)
    for create in (bvtam.create_model, timm.create_model):
        again = create(f'local-dir:{folder}', pretrained=True).eval()
        assert torch.equal(again(x), model(x))
        assert again.clip_config == model.clip_config
        assert again.label_names == ['a', 'b', 'c']
    assert bvtam.verify(str(folder))['golden_error'] < 1e-6
    model.label_names = ['a']
    with pytest.raises(bvtam.BvtamError, match='1 label names for 3 classes'):
        bvtam.save_pretrained(model, tmp_path / 'other')
