"""Exported files of others: what they say of themselves, shapes, numbers, files beside them."""

import ctypes
import gc
import json
import os
import sys
from threading import Thread

import pytest
import torch
from support.cli import SAMPLE, run
from support.models import CLIP

import bvtam
from bvtam.deploy.runtimes import RuntimeNet
from bvtam.errors import BvtamError

SUFFIXES = ('.onnx', '.xml')
CONFIG = {
    'architecture': 'bvtam_tiny_8x2',
    'num_classes': 5,
    'label_names': list('abcde'),
    'input_kind': 'clip',
    'clip': CLIP.to_dict(),
    'frame_multiple': 2,
}


def write(path, config=CONFIG, dtype='FLOAT', frames=None, image=False):
    """A file of the form that `export` writes: means over time and place, times a matrix."""
    onnx = pytest.importorskip('onnx')
    kind = getattr(onnx.TensorProto, dtype)
    axes = ['batch', 3, frames or 'frames', 'height', 'width']
    if image:
        del axes[2]
    numbers = onnx.numpy_helper.from_array
    matrix = (
        torch.arange(15.0).reshape(3, 5).numpy().astype('float16' if '16' in dtype else 'float32')
    )
    places = torch.arange(2, len(axes)).numpy()
    nodes = [
        onnx.helper.make_node('ReduceMean', ['clip', 'places'], ['means'], keepdims=0),
        onnx.helper.make_node('MatMul', ['means', 'matrix'], ['logits']),
    ]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        'net',
        [value('clip', kind, axes)],
        [value('logits', kind, ['batch', 5])],
        [numbers(matrix, 'matrix'), numbers(places, 'places')],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid('', 20)], ir_version=10
    )
    text = config if isinstance(config, str) else json.dumps(config)
    onnx.helper.set_model_props(model, {'bvtam': text})
    onnx.save(model, path.with_suffix('.onnx'))
    if path.suffix == '.onnx':
        pytest.importorskip('onnxruntime')
        return path
    openvino = pytest.importorskip('openvino')
    graph = openvino.convert_model(path.with_suffix('.onnx'))
    graph.set_rt_info(text, ['bvtam'])
    openvino.save_model(graph, path, compress_to_fp16=False)
    path.with_suffix('.onnx').unlink()
    return path


@pytest.mark.parametrize('suffix', SUFFIXES)
@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ('[1, 2]', 'metadata must be a table'),
        ('null', 'metadata must be a table'),
        ('{', 'not JSON'),
        ('[' * 5000, 'not JSON'),
        ({'architecture': None}, '"architecture" must be a name, not None'),
        ({'architecture': ['x']}, '"architecture" must be a name'),
        ({'num_classes': '5'}, '"num_classes" must be a number'),
        ({'num_classes': True}, '"num_classes" must be a number'),
        ({'num_classes': -1}, '"num_classes" must be a number'),
        ({'num_classes': 4, 'label_names': None}, 'say 4 classes, but the graph gives 5'),
        ({'label_names': list('abc')}, '"label_names" must be 5 names'),
        ({'label_names': [1, 2, 3, 4, 5]}, '"label_names" must be 5 names'),
        ({'label_names': 'abcde'}, '"label_names" must be 5 names'),
        ({'input_kind': 3}, '"input_kind" cannot be 3'),
        ({'input_kind': 'image'}, r'not \(batch, channels, height, width\)'),
        ({'clip': 3}, 'clip must be a table'),
        ({'clip': None}, 'no "clip"'),
        ({'clip': {'num_frames': '16'}}, 'clip.num_frames must be'),
        ({'clip': {'mean': [0.5, 0.5], 'std': [1, 1]}}, 'normalise 2 channels'),
        ({'frame_multiple': 0}, '"frame_multiple" cannot be 0'),
    ],
)
def test_metadata_of_others(tmp_path, suffix, change, message):
    config = change if isinstance(change, str) else CONFIG | change
    path = write(tmp_path / f'net{suffix}', config)
    with pytest.raises(BvtamError, match=message) as caught:
        RuntimeNet(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_a_key_that_is_missing(tmp_path, suffix):
    for key in ('architecture', 'num_classes', 'input_kind', 'clip'):
        config = {k: v for k, v in CONFIG.items() if k != key}
        with pytest.raises(BvtamError, match=key):
            RuntimeNet(write(tmp_path / f'net{suffix}', config))


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_shapes_are_refused_as_the_net_does(tmp_path, suffix):
    net = bvtam.create_model('bvtam_tiny_8x2', num_classes=5).eval()
    other = RuntimeNet(write(tmp_path / f'net{suffix}'))
    for shape in ((1, 3, 15, 32, 32), (1, 4, 16, 32, 32), (3, 16, 32, 32), (1, 3, 0, 32, 32)):
        with pytest.raises(ValueError) as wanted:
            net(torch.zeros(shape))
        with pytest.raises(ValueError) as got:
            other(torch.zeros(shape))
        assert str(got.value) == str(wanted.value)
    empty = torch.zeros(0, 3, 16, 32, 32)
    with torch.no_grad():
        assert other(empty).shape == net(empty).shape == (0, 5)


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_a_file_of_fixed_frames(tmp_path, suffix):
    other = RuntimeNet(write(tmp_path / f'net{suffix}', frames=8))
    assert other(torch.zeros(2, 3, 8, 9, 9)).shape == (2, 5)
    with pytest.raises(ValueError, match='takes frames 8 alone, as it was made; got frames 6'):
        other(torch.zeros(2, 3, 6, 9, 9))


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_a_half_precision_file(tmp_path, capfd, suffix):
    path = write(tmp_path / f'half{suffix}', dtype='FLOAT16')
    whole = RuntimeNet(write(tmp_path / f'whole{suffix}'))
    x = torch.rand(2, 3, 4, 8, 8)
    other = RuntimeNet(path)
    for clip in (x, x.half(), x.bfloat16(), x.double()):
        scores = other(clip)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, whole(x), rtol=2e-2, atol=2e-2)
    runtime = {'.onnx': 'onnx', '.xml': 'openvino'}[suffix]
    code, out, err = run(capfd, 'predict', SAMPLE, '--model', path, '--runtime', runtime, '--json')
    assert code == 0, err
    assert len(json.loads(out)[0]['top']) == 5


def test_a_file_of_other_numbers(tmp_path):
    onnx = pytest.importorskip('onnx')
    path = write(tmp_path / 'net.onnx')
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    cast = onnx.helper.make_node('Cast', ['clip'], ['single'], to=onnx.TensorProto.FLOAT)
    model.graph.node[0].input[0] = 'single'
    model.graph.node.insert(0, cast)
    onnx.save(model, path)
    with pytest.raises(BvtamError, match=r'net\.onnx: its graph takes tensor\(double\) clips'):
        RuntimeNet(path)


@pytest.mark.parametrize('location', ['weights.bin', '../weights.bin', '/weights.bin'])
def test_weights_in_other_files_are_not_read(tmp_path, location):
    onnx = pytest.importorskip('onnx')
    (tmp_path / 'inner').mkdir()
    path = write(tmp_path / 'inner' / 'net.onnx')
    model = onnx.load(path)
    matrix = model.graph.initializer[0]
    for folder in (tmp_path, path.parent):
        (folder / 'weights.bin').write_bytes(matrix.raw_data)
    onnx.external_data_helper.set_external_data(matrix, location)
    matrix.ClearField('raw_data')
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BvtamError, match=r'net\.onnx: it keeps weights in other files'):
        RuntimeNet(path)


def test_a_bin_that_is_missing_or_short(tmp_path):
    path = write(tmp_path / 'net.xml')
    weights = path.with_suffix('.bin')
    data = weights.read_bytes()
    weights.write_bytes(data[:8])
    with pytest.raises(BvtamError, match=r'net\.xml is damaged'):
        RuntimeNet(path)
    weights.unlink()
    with pytest.raises(BvtamError, match=r'net\.bin is missing'):
        RuntimeNet(path)
    os.mkfifo(weights)
    with pytest.raises(BvtamError, match=r'net\.bin is a pipe'):
        RuntimeNet(path)


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_threads_share_a_file(tmp_path, suffix):
    other = RuntimeNet(write(tmp_path / f'net{suffix}'))
    clips = [torch.rand(2, 3, 2, 8 + i, 9) for i in range(8)]
    wanted, wrong = [other(clip) for clip in clips], []

    def ask(i):
        for _ in range(20):
            if not torch.equal(other(clips[i]), wanted[i]):
                wrong.append(i)

    threads = [Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_images(tmp_path):
    config = CONFIG | {'architecture': 'blresnet50', 'input_kind': 'image', 'clip': None}
    path = write(tmp_path / 'net.onnx', config | {'frame_multiple': 1}, image=True)
    other = RuntimeNet(path)
    assert other(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
    with pytest.raises(ValueError, match=r'expected images \(B, C=3, H, W\)'):
        other(torch.zeros(2, 3, 2, 8, 8))


def signal_stack():
    """Where this thread's signal handlers run: address, flags, size."""
    stack = ctypes.create_string_buffer(24)
    assert ctypes.CDLL(None).sigaltstack(None, stack) == 0
    return bytes(stack)


@pytest.mark.skipif(sys.platform != 'linux', reason='sigaltstack as Linux lays it out')
def test_signals_have_the_stack_that_they_had(tmp_path):
    """OpenVINO sets one of its own on the thread that loads it, and does not keep it mapped."""
    before = signal_stack()
    paths = [write(tmp_path / f'{name}.xml') for name in ('first', 'second')]
    nets = [RuntimeNet(path) for path in paths]
    nets[0](torch.zeros(1, 3, 8, 32, 32))
    assert signal_stack() == before
    del nets[0], nets
    gc.collect()
    assert signal_stack() == before
