"""One new file in `bvtam/models/` is a new family, in all that runs over the models."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bvtam

TESTS = Path(__file__).parents[1]
PACKAGE = Path(bvtam.__file__).parent
NAME = 'mean_frames_f4'


@pytest.fixture
def checkout(tmp_path):
    """A copy of the package and of the tests of its models, with one more family."""
    ignored = shutil.ignore_patterns('__pycache__', 'zoo')
    shutil.copytree(PACKAGE, tmp_path / 'bvtam', ignore=ignored)
    shutil.copy(TESTS / 'support' / 'mean_frames.py', tmp_path / 'bvtam' / 'models')
    for name in ('hubconf.py', 'pyproject.toml'):
        if not (TESTS.parent / name).is_file():
            pytest.skip(f'{name} is part of the checkout')
        shutil.copy(TESTS.parent / name, tmp_path)
    for name in ('models', 'support'):
        shutil.copytree(TESTS / name, tmp_path / 'tests' / name, ignore=ignored)
    shutil.copy(TESTS / 'conftest.py', tmp_path / 'tests')
    return tmp_path


def run(checkout, *arguments):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env=os.environ | {'PYTHONPATH': str(checkout)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


SCRIPT = f"""
import timm, torch
import bvtam, hubconf
from bvtam.cli import app
from bvtam.factory import input_kind
from typer.testing import CliRunner

assert bvtam.list_models()[-1] != '{NAME}' in bvtam.list_models(), 'in the order of the files'
assert '{NAME}' in CliRunner().invoke(app, ['list']).output.split()
model = hubconf.{NAME}(num_classes=3, temporal='max').eval()
assert type(model) is bvtam.models.MeanFrames and model.clip_config.num_frames == 4
bvtam.save_pretrained(model, 'saved')
assert input_kind('./saved') == input_kind('mean_frames_f4') == 'clip'
clip = torch.randn(1, 3, 4, 64, 64)
with torch.no_grad():
    for again in (bvtam.create_model('./saved'), timm.create_model('local-dir:saved', pretrained=True)):
        assert torch.equal(again.eval()(clip), model(clip))
        assert again.temporal == 'max'
    torch.testing.assert_close(bvtam.optimize(model)(clip), model(clip))
assert bvtam.verify('./saved')['tensors'] == len(model.state_dict())
bvtam.export(model, 'model.pt2')
"""


def test_a_new_file_is_listed_created_saved_optimised_and_exported(checkout):
    run(checkout, '-c', SCRIPT)


@pytest.mark.slow
def test_a_new_file_is_tested(checkout):
    tests = 'tests/models/test_models.py'
    said = run(checkout, '-m', 'pytest', '-n', '0', tests, '-k', NAME)
    assert re.search(r'\b1[1-9] passed, \d+ deselected in', said), said  # none is skipped


@pytest.mark.parametrize(
    ('code', 'told'),
    [
        ('import nothere', "spoilt.py: ModuleNotFoundError: No module named 'nothere'"),
        (
            'from timm.models import register_model\n\n'
            '@register_model\ndef resnet50(pretrained=False): ...\n',
            "spoilt.py: timm has a model 'resnet50' already",
        ),
    ],
    ids=['import', 'name'],
)
@pytest.mark.filterwarnings('ignore:Overwriting resnet50')
def test_a_file_that_cannot_be_a_family_is_named(checkout, code, told):
    (checkout / 'bvtam' / 'models' / 'spoilt.py').write_text(code)
    done = subprocess.run(
        [sys.executable, '-m', 'bvtam', 'list'],
        cwd=checkout,
        env=os.environ | {'PYTHONPATH': str(checkout)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith(told), done.stderr
