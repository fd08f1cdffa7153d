"""The authors' files: what is inferred from them, what is written, and what is refused."""

import json
import os
import pickle

import pytest
import safetensors.torch
import timm
import torch
from support import textbook

import bvtam
from bvtam.errors import BvtamError
from bvtam.weights import resolve


def randomize(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if 'num_batches' not in name:
            low = 0.5 if tensor.ndim == 1 else -0.5
            scale = 1 if tensor.ndim == 1 else (3 / max(1, tensor[0].numel())) ** 0.5
            tensor.copy_((torch.rand(tensor.shape, generator=generator) + low) * scale)
    return model.eval()


def release_file(model, path, layout='flat'):
    """A checkpoint of IBM/bLVNet-TAM from the textbook model, whose names are the release's."""
    state = {f'baseline_model.{n}': t for n, t in model.state_dict().items()}
    if layout != 'plain fc':
        state = {n.replace('baseline_model.fc', 'new_fc'): t for n, t in state.items()}
    if layout == 'wrapped':
        state = {'state_dict': {f'module.{n}': t for n, t in state.items()}, 'epoch': 3}
    torch.save(state, path)
    return path


@pytest.mark.parametrize('layout', ['flat', 'wrapped', 'plain fc'])
@pytest.mark.parametrize(
    ('options', 'arch', 'model_args'),
    [
        ({'num_frames': 8}, 'bvtam_r50_8x2', {}),
        ({'num_frames': 4, 'alpha': 4, 'beta': 2, 'num_classes': 11}, 'bvtam_r50_8x2',
         {'alpha': 4, 'beta': 2}),
        ({'num_frames': 6, 'temporal_range': 7, 'in_chans': 2}, 'bvtam_r50_8x2',
         {'temporal_range': 7}),
        ({'num_frames': 4, 'blocks': (2, 2, 2, 2), 'width': 16}, 'bvtam_tiny_8x2', {}),
    ],
)  # fmt: skip
@torch.no_grad()
def test_options_are_inferred(tmp_path, layout, options, arch, model_args):
    book = randomize(textbook.BLVNet(**options))
    folder = bvtam.convert(
        release_file(book, tmp_path / 'file.pth', layout), out=tmp_path / 'model'
    )
    config = json.loads((folder / 'config.json').read_text())
    assert config['architecture'] == arch
    asked = {'alpha', 'beta', 'temporal_range'}
    assert {k: v for k, v in config['model_args'].items() if k in asked} == model_args
    x = torch.randn(2, options.get('in_chans', 3), options['num_frames'], 64, 48)
    want = book(x)
    for model in (
        bvtam.create_model(f'local-dir:{folder}', pretrained=True),
        timm.create_model(f'local-dir:{folder}', pretrained=True),
    ):
        torch.testing.assert_close(model.eval()(x), want, rtol=1e-4, atol=1e-4)
        assert len(model.clip_config.mean) == x.shape[1]
        assert model.clip_config.colors == 'jpeg'


@pytest.fixture(scope='module')
def tiny_file(tmp_path_factory):
    model = randomize(textbook.BLVNet(blocks=(2, 2, 2, 2), width=16, num_classes=6))
    return release_file(model, tmp_path_factory.mktemp('release') / 'tiny-f8x2.pth')


def test_a_name_finds_what_was_converted(tiny_file, tmp_path, monkeypatch):
    labels = tmp_path / 'labels.txt'
    labels.write_text('\n'.join('abcdef') + '\n')
    folder = bvtam.convert(tiny_file, name='bvtam_tiny_8x2.mine', labels=labels)
    assert bvtam.list_pretrained('bvtam_tiny*') == ['bvtam_tiny_8x2.motion', 'bvtam_tiny_8x2.mine']
    assert bvtam.list_pretrained('*.mine') == ['bvtam_tiny_8x2.mine']
    assert bvtam.list_pretrained('swin*') == []
    # the bare name is that of the weights that ship, where there are some
    assert bvtam.create_model('bvtam_tiny_8x2', pretrained=True).num_classes == 44
    others = resolve.roots()[:-1]
    monkeypatch.setattr(resolve, 'roots', lambda: others)
    for create, name in (
        (bvtam.create_model, 'bvtam_tiny_8x2.mine'),
        (bvtam.create_model, 'bvtam_tiny_8x2'),
        (timm.create_model, 'bvtam_tiny_8x2.mine'),
        (timm.create_model, 'bvtam_tiny_8x2'),
    ):
        model = create(name, pretrained=True)
        assert model.label_names == list('abcdef')
        assert model.num_classes == 6
    model = bvtam.models.bvtam_tiny_8x2(pretrained=True, num_classes=0)
    assert model(torch.zeros(1, 3, 4, 32, 32)).shape == (1, 512)
    assert (folder / 'README.md').read_text().startswith('---\n')
    # a second set of weights makes the bare name ambiguous, and BVTAM_ZOO comes first
    bvtam.convert(tiny_file, name='bvtam_tiny_8x2.other')
    with pytest.raises(BvtamError, match='bvtam_tiny_8x2.mine, bvtam_tiny_8x2.other'):
        bvtam.create_model('bvtam_tiny_8x2', pretrained=True)


def test_user_folders_come_first(tiny_file, tmp_path, monkeypatch):
    bvtam.convert(tiny_file, name='bvtam_tiny_8x2.mine')
    first = bvtam.convert(tiny_file, out=tmp_path / 'zoo' / 'bvtam_tiny_8x2.mine')
    monkeypatch.setenv('BVTAM_ZOO', f'{tmp_path / "nowhere"}{os.pathsep}{tmp_path / "zoo"}')
    model = bvtam.create_model('bvtam_tiny_8x2.mine', pretrained=True)
    assert model.pretrained_cfg['file'] == str(first)


def test_only_head_and_first_convolution_may_differ(tiny_file, tmp_path, caplog):
    name = f'local-dir:{bvtam.convert(tiny_file, out=tmp_path / "model")}'
    same = bvtam.create_model(name, pretrained=True).state_dict()
    model = bvtam.create_model(name, pretrained=True, num_classes=5, in_chans=10)
    assert '6 classes and the model 5' in caplog.text
    assert 'adapted from 3 to 10 channels' in caplog.text
    for key, tensor in model.state_dict().items():
        if key not in ('fc.weight', 'fc.bias', 'stem.conv1.weight'):
            assert torch.equal(tensor, same[key]), key
    for create in (bvtam.create_model, timm.create_model):
        with pytest.raises(
            BvtamError,
            match=r'layer1.temporal.weight has shape \(3, 16\), not \(5, 16\).* and 3 more',
        ):
            create(name, pretrained=True, temporal_range=5)
        with pytest.raises(BvtamError, match='missing|unexpected'):
            create(name, pretrained=True, temporal='none')


def test_frames_in_the_name_of_the_file_choose_the_clip(tmp_path):
    book = randomize(textbook.BLVNet(num_classes=3))
    file = release_file(book, tmp_path / 'st2stv2-bLVNet-TAM-50-f16x2.pth')
    folder = bvtam.convert(file, out=tmp_path / 'model')
    model = bvtam.create_model(f'local-dir:{folder}')
    assert model.model_name == 'bvtam_r50_16x2' and model.clip_config.num_frames == 32


def test_max_pool_variant_is_told_by_the_stored_name(tmp_path):
    from bvtam.models.temporal_resnet import TemporalNet

    book = TemporalNet('resnet18', num_classes=3, temporal='none', temporal_pool=True)
    state = {f'module.{n.removeprefix("backbone.")}': t for n, t in book.state_dict().items()}
    for name in [n for n in state if n.endswith('.conv1.weight') and 'layer' in n]:
        owner = name.removesuffix('conv1.weight')
        channels = state[name].shape[1]
        for side in ('prev', 'curr', 'next'):
            state[f'{owner}tam.{side}_se.fc1.weight'] = torch.rand(channels, 1, 1, 1)
    file = tmp_path / 'file.pth.tar'
    torch.save({'state_dict': state, 'arch': 'K400-rgb-TAM-b3-sum--resnet-18-ts-max-f8'}, file)
    model = bvtam.create_model(
        f'local-dir:{bvtam.convert(file, out=tmp_path / "model")}', True
    ).eval()
    assert model.forward_features(torch.zeros(1, 3, 8, 32, 32)).shape[2] == 1
    for arch, word in (('resnet-18-ts-avg', 'averaging'), ('TAM-b3-max--resnet-18', 'by maximum')):
        torch.save({'state_dict': state, 'arch': arch}, file)
        with pytest.raises(BvtamError, match=word):
            bvtam.convert(file, out=tmp_path / 'other')
    torch.save({'state_dict': state}, file)  # a file that does not tell: the caller may
    folder = bvtam.convert(file, out=tmp_path / 'told', temporal_pool=True)
    model = bvtam.create_model(f'local-dir:{folder}', pretrained=True).eval()
    assert model.forward_features(torch.zeros(1, 3, 8, 32, 32)).shape[2] == 1


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ('bomb_went_off',))


def damaged(kind, tiny_file, path):
    """A file with this kind of damage, at `path` or, where the name matters, beside it."""
    state = torch.load(tiny_file, weights_only=True)
    whole = tiny_file.read_bytes()
    fusion, conv, norm = (
        f'baseline_model.{name}.weight' for name in ('layer2.fusion.0.bn2', 'layer4.0.conv2', 'bn1')
    )
    contents = {
        'truncated': whole[: len(whole) // 2],
        'empty': b'',
        'web page': b'<!DOCTYPE html><html>sign in</html>',
        'text': b'hello',
        'bare code': pickle.dumps(Bomb()),
        'safetensors cut': safetensors.torch.save(state)[:-1000],
    }
    saved = {
        'code': {'state_dict': state, 'extra': Bomb()},
        'list': [1, 2],
        'other family': {'conv_stem.weight': torch.ones(1)},
        'missing tensor': {name: tensor for name, tensor in state.items() if name != fusion},
        'extra tensor': state | {'baseline_model.extra.weight': torch.ones(1)},
        'wrong shape': state | {conv: state[conv][:-1]},
        'not finite': state | {norm: state[norm] * float('nan')},
    }
    if kind == 'safetensors cut':
        path = path.with_suffix('.safetensors')
    if kind in contents:
        path.write_bytes(contents[kind])
    else:
        torch.save(saved[kind], path)
    return path


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        ('truncated', 'damaged, truncated'),
        ('empty', 'empty'),
        ('web page', 'web page'),
        ('text', 'damaged'),
        ('code', 'nothing in it was run'),
        ('bare code', 'nothing in it was run'),
        ('list', 'list, not a state dict'),
        ('other family', 'none of the families .* conv_stem.weight'),
        ('missing tensor', 'layer2.fusion.bn2.weight'),
        ('extra tensor', 'extra.weight'),
        ('wrong shape', 'layer4.0.conv2.weight has shape'),
        ('not finite', 'stem.bn1.weight .* not finite'),
        ('safetensors cut', 'damaged, truncated'),
    ],
)
def test_damaged_files_are_refused(kind, message, tiny_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = damaged(kind, tiny_file, tmp_path / 'file.pth')
    with pytest.raises(BvtamError, match=message) as caught:
        bvtam.convert(path, out=tmp_path / 'model')
    assert '\n' not in str(caught.value) and str(path) in str(caught.value)
    assert not (tmp_path / 'model').exists()
    assert not (tmp_path / 'bomb_went_off').exists()


def test_wrong_calls_are_refused(tiny_file, tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.pth'):
        bvtam.convert('nowhere.pth')
    with pytest.raises(BvtamError, match='tsm_resnet50_f8, but the checkpoint is of bvtam_tiny_'):
        bvtam.convert(tiny_file, name='tsm_resnet50_f8.x')
    with pytest.raises(BvtamError, match='did you mean bvtam_tiny_8x2'):
        bvtam.convert(tiny_file, name='bvtam_tiny.x')
    (tmp_path / 'labels.txt').write_text('a\nb\n')
    with pytest.raises(BvtamError, match='2 labels, but the checkpoint 6 classes'):
        bvtam.convert(tiny_file, labels=tmp_path / 'labels.txt')
    (tmp_path / 'taken').mkdir()
    (tmp_path / 'taken' / 'thesis.txt').write_text('precious')
    (tmp_path / 'taken' / 'config.json').write_text('{"my": "webapp"}')
    with pytest.raises(BvtamError, match='no zoo folder'):
        bvtam.convert(tiny_file, out=tmp_path / 'taken')
    assert (tmp_path / 'taken' / 'thesis.txt').exists()
