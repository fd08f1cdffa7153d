"""Exported nets against the nets that they were made of."""

import json
import pickle
from collections import Counter
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from support.choice import some
from support.cli import SAMPLE, run
from support.models import classifier

import bvtam
from bvtam.deploy import export as export_module
from bvtam.deploy.export import calibration_clips, export
from bvtam.deploy.runtimes import RuntimeNet
from bvtam.errors import BvtamError

LIBRARIES = {'.onnx': ('onnx', 'onnxscript', 'onnxruntime'), '.pt2': ()}
LIBRARIES['.xml'] = (*LIBRARIES['.onnx'], 'openvino')
SHAPES = ((1, 3, 16, 64, 64), (3, 3, 8, 75, 110), (2, 3, 4, 128, 96), (1, 3, 2, 17, 31))
NETS = [
    ('bvtam_tiny_8x2', {}),
    pytest.param('bvtam_tiny_8x2', {'temporal': 'tsm'}, marks=pytest.mark.slow),
    pytest.param('bvtam_tiny_8x2', {'causal': True}, marks=pytest.mark.slow),
    pytest.param('tam_resnet50_f8', {'backbone': 'test_resnet'}, marks=pytest.mark.slow),
]


@pytest.fixture(scope='module', autouse=True)
def one_trace_per_model():
    """To trace a model takes most of an export: the files of equal models share its program."""
    made = {}

    def once(function, key):
        def remembered(*args):
            found = key(*args)
            if found not in made:  # with the arguments, lest others get their ids
                made[found] = function(*args), args
            return made[found][0]

        return remembered

    def onnx_key(program, config, clips):
        return id(program), config, id(clips)

    with pytest.MonkeyPatch.context() as patch:
        for name, key in (('_program', pickle.dumps), ('_onnx_model', onnx_key)):
            patch.setattr(export_module, name, once(getattr(export_module, name), key))
        yield


def rounded(name='bvtam_tiny_8x2', **options):
    """A model in bfloat16; its file, in float32, holds the same numbers."""
    return classifier(name, **options).bfloat16()


def needs(suffix, *more):
    for name in (*LIBRARIES[suffix], *more):
        pytest.importorskip(name)


def load(path):
    if path.suffix == '.pt2':
        return torch.export.load(path).module()
    return RuntimeNet(path)


def check_axes(path):
    if path.suffix == '.onnx':
        graph = pytest.importorskip('onnx').load(path).graph
        shapes = [
            [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
            for value in (*graph.input, *graph.output)
        ]
        assert shapes == [['batch', 3, 'frames', 'height', 'width'], ['batch', 5]]
    else:
        (given,) = pytest.importorskip('openvino').Core().read_model(path).get_parameters()
        names = ('batch', 'channels', 'frames', 'height', 'width')
        assert [given.get_layout().get_index_by_name(name) for name in names] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize('suffix', some(list(LIBRARIES), ['.onnx', '.xml']))
@pytest.mark.parametrize(('name', 'options'), NETS)
def test_an_exported_net_is_the_net(tmp_path, capfd, name, options, suffix):
    needs(suffix)
    given = rounded(name, **options)
    net = deepcopy(given).float()
    path = tmp_path / f'net{suffix}'
    assert export(given, path) == path
    assert {p.dtype for p in given.parameters()} == {torch.bfloat16}
    assert {p.suffix for p in tmp_path.iterdir()} <= {suffix, '.bin'}
    other = load(path)
    for shape in SHAPES:
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(other(x), net(x), rtol=1e-4, atol=1e-4)
    if suffix == '.pt2':
        return
    check_axes(path)
    runtime = {'.onnx': 'onnx', '.xml': 'openvino'}[suffix]
    command = 'predict', SAMPLE, '--model', path, '--runtime', runtime, '--json'
    code, out, err = run(capfd, *command)
    assert code == 0, err
    (got,), want = json.loads(out), bvtam.predict(net, SAMPLE)
    assert [t['label'] for t in got['top']] == [t['label'] for t in want['top']]
    for a, b in zip(got['top'], want['top'], strict=True):
        assert a['score'] == pytest.approx(b['score'], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['.onnx', '.xml'])
def test_eight_bits(tmp_path, suffix):
    needs(suffix, 'nncf')
    net = rounded().float()
    clips = list(calibration_clips('motion', net.clip_config, 8))
    whole = export(net, tmp_path / f'whole{suffix}')
    small = export(net, tmp_path / f'small{suffix}', clips)
    weights = {'.onnx': '.onnx', '.xml': '.bin'}[suffix]
    assert small.with_suffix(weights).stat().st_size < whole.with_suffix(weights).stat().st_size / 2
    other, x = RuntimeNet(small), torch.cat(clips[:4])
    with torch.no_grad():
        want = net(x)
    assert (other(x) - want).abs().max() < 0.2 * want.abs().max()


def test_calibration_clips(tmp_path):
    net = classifier()
    for data, count in ((str(SAMPLE), 1), (str(SAMPLE.parent), 1), ('motion', 3)):
        clips = list(calibration_clips(data, net.clip_config, 3))
        assert len(clips) == count
        assert {c.shape for c in clips} == {(1, 3, 16, 32, 32)}


def test_clips_of_all_classes_calibrate(tmp_path, monkeypatch):
    for name in (f'{label}/{i}.mp4' for label in 'abcd' for i in range(4)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(SAMPLE)
    opened = []
    read = export_module.open_video
    monkeypatch.setattr(export_module, 'open_video', lambda p: opened.append(p) or read(p))
    assert len(list(calibration_clips(str(tmp_path), classifier().clip_config, 9))) == 9
    assert Counter(Path(p).parent.name for p in opened) == {'a': 3, 'b': 2, 'c': 2, 'd': 2}


def test_what_cannot_be_exported(tmp_path, capfd):
    net = classifier()
    with pytest.raises(BvtamError, match='not FeatureGetterNet'):
        export(bvtam.create_model('bvtam_tiny_8x2', features_only=True), tmp_path / 'net.onnx')
    with pytest.raises(BvtamError, match='must be one of .onnx, .xml, .pt2'):
        export(net, tmp_path / 'net.pb')
    with pytest.raises(BvtamError, match='eval mode that is not optimised'):
        export(bvtam.optimize(net), tmp_path / 'net.onnx')
    with pytest.raises(BvtamError, match='for .onnx and .xml'):
        export(net, tmp_path / 'net.pt2', [torch.zeros(1, 3, 2, 32, 32)])
    with pytest.raises(BvtamError, match='give a file that `bvtam export` wrote'):
        RuntimeNet(tmp_path / 'net.pt2')
    with pytest.raises(FileNotFoundError, match='`bvtam export NAME net.onnx` makes it'):
        RuntimeNet(tmp_path / 'net.onnx')
    code, _, err = run(capfd, 'predict', SAMPLE, '--runtime', 'onnx')
    assert code == 2 and '--runtime onnx needs --model FILE.onnx' in ' '.join(err.split())
    out = tmp_path / 'out'
    for args in (['--evidence', out], ['--stream']):
        code, _, err = run(capfd, 'predict', SAMPLE, '--model', 'net.onnx', *args)
        assert code == 1 and 'net.onnx gives scores alone' in err
    code, _, err = run(capfd, 'extract', SAMPLE, '--model', 'net.onnx', '--out', out)
    assert code == 1 and 'net.onnx gives scores alone' in err and not out.exists()


@pytest.mark.parametrize('suffix', ['.onnx', '.xml'])
def test_damaged_files(tmp_path, suffix):
    needs(suffix)
    path = tmp_path / f'net{suffix}'
    if suffix == '.xml':
        with pytest.raises(BvtamError, match='net.bin is missing'):
            path.write_bytes(b'<net/>')
            RuntimeNet(path)
        path.with_suffix('.bin').write_bytes(b'')
    for data in (b'', b'no net', b'<net/>'):
        path.write_bytes(data)
        with pytest.raises(BvtamError, match='is damaged, or not from `bvtam export`'):
            RuntimeNet(path)


def test_the_command(tmp_path, capfd):
    folder = bvtam.save_pretrained(classifier('tam_resnet18_f8'), tmp_path / 'tam_resnet18_f8.own')
    out = tmp_path / 'net.pt2'
    code, text, err = run(capfd, 'export', folder, out, '--json')
    assert code == 0, err
    assert json.loads(text) == {'file': str(out), 'bytes': out.stat().st_size, 'int8': False}
    code, _, err = run(capfd, 'export', folder, tmp_path / 'net.pb')
    assert code == 1 and 'the suffix must be one of' in err
