"""A name, a folder or a run is the same model to every function and command, with its weights."""

import json
import subprocess
import sysconfig
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

import bvtam
from bvtam.data.labels import read_labels
from bvtam.hub.convert import read_checkpoint


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The folder of a training run, as far as a model is in it."""
    folder = tmp_path_factory.mktemp('runs') / 'mine'
    torch.manual_seed(1)
    model = bvtam.create_model('bvtam_tiny_8x2', num_classes=2).eval()
    model.label_names = ['left', 'right']
    bvtam.save_pretrained(model, folder / 'best')
    return folder


def weights(model):
    return model.state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize('form', ['{}', 'local-dir:{}', 'local-dir:{}/best', '{}/best'])
def test_a_folder_that_is_named_gives_its_weights(run, form):
    model = bvtam.create_model(form.format(run))
    assert same(weights(model), load_file(run / 'best' / 'model.safetensors'))
    assert model.label_names == ['left', 'right']


def test_a_path_is_a_path(run, monkeypatch):
    monkeypatch.chdir(run.parents[1])
    want = load_file(run / 'best' / 'model.safetensors')
    for source in (run, run / 'best', Path(run.parent.name, 'mine'), f'{run.parent.name}/mine'):
        assert same(weights(bvtam.create_model(source)), want)
    with pytest.raises(FileNotFoundError, match='no such folder'):
        bvtam.create_model(Path('bvtam_tiny_8x2'))
    assert not same(weights(bvtam.create_model('bvtam_tiny_8x2', num_classes=2)), want)


def test_random_weights_have_no_label_names(run, caplog):
    model = bvtam.create_model(f'local-dir:{run}', pretrained=False)
    assert not same(weights(model), load_file(run / 'best' / 'model.safetensors'))
    assert model.label_names is None
    bvtam.create_model('bvtam_tiny_8x2.motion')
    assert 'random weights' in caplog.text


def test_a_run_can_be_verified_and_described(run):
    assert bvtam.verify(str(run))['golden_error'] < 1e-5
    with pytest.raises(FileNotFoundError, match='holds no model'):
        bvtam.verify(str(run.parent))
    with pytest.raises(FileNotFoundError, match='no such folder'):
        bvtam.create_model(str(run / 'x'))


def test_the_program_knows_the_models(run):
    """The command line imports the models only when it needs them; `verify` goes by timm's registry."""
    program = Path(sysconfig.get_path('scripts')) / 'bvtam'
    if not program.exists():
        pytest.skip('bvtam is on the path, but not installed')
    done = subprocess.run([program, 'verify', run, '--json'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]['tensors'] == len(load_file(run / 'best/model.safetensors'))


@pytest.mark.parametrize(
    ('prefix', 'container'),
    [
        ('module.', None),
        ('_orig_mod.', 'state_dict'),
        ('model.', 'state_dict'),
        ('module._orig_mod.', 'model'),
        ('model._orig_mod.', 'model_state_dict'),
    ],
)
def test_what_wrappers_put_before_names_is_taken_off(tmp_path, prefix, container):
    state = timm.create_model('resnet18', num_classes=3).state_dict()
    content = {prefix + name: tensor for name, tensor in state.items()}
    if container:
        content = {container: content, 'epoch': 3, 'optimizer': {'state': {}}}
    torch.save(content, tmp_path / 'a.pth')
    found, meta = read_checkpoint(tmp_path / 'a.pth')
    assert same(found, state)
    assert meta.get('epoch') == (3 if container else None)


def test_averaged_weights_come_first(tmp_path, caplog):
    raw = {'a.weight': torch.zeros(2)}
    torch.save(
        {'state_dict': raw, 'state_dict_ema': {'module.a.weight': torch.ones(2)}}, tmp_path / 'a'
    )
    found, _ = read_checkpoint(tmp_path / 'a')
    assert found['a.weight'].tolist() == [1, 1]
    assert 'state_dict_ema is taken' in caplog.text


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('config.json', '{"id2label": {"0": "left", "1": "go, right"}, "hidden_size": 8}'),
        ('labels.json', '{"0": "left", "1": "go, right"}'),
        ('labels.json', '{"left": 0, "go, right": 1}'),
        ('labels.json', '["left", "go, right"]'),
        ('labels.csv', '0,left\n1,go, right\n'),
        ('labels.txt', 'left\ngo, right\n'),
    ],
)
def test_label_names_in_every_form(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_labels(tmp_path / name) == ['left', 'go, right']
