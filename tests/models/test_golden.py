"""Every recorded case, from the authors' file to logits, through the ordinary path."""

import pytest
import torch
import torch.nn.functional as F
from support import golden
from support.choice import some

import bvtam

LARGEST = 'blvnet_tam_r152_3x2_n2'


@pytest.fixture(scope='module', params=some(golden.CASES, {*golden.CASES} - {LARGEST}))
def converted(request, tmp_path_factory):
    case = golden.load(request.param)
    folder = tmp_path_factory.mktemp('case')
    checkpoint = golden.write_checkpoint(case, folder / 'checkpoint.pth')
    zoo_folder = bvtam.convert(checkpoint, out=folder / 'model')
    model = bvtam.create_model(f'local-dir:{zoo_folder}', pretrained=True).eval()
    return case, model


def relative_error(got, want):
    want = torch.as_tensor(want, dtype=torch.float64)
    return ((got.double() - want).abs().max() / want.abs().max()).item()


def test_cases_are_all_there():
    assert len(golden.CASES) == 12


@torch.no_grad()
def test_logits(converted):
    case, model = converted
    x = golden.clip(case)
    assert sum(p.numel() for p in model.parameters()) == case['params']
    assert relative_error(model.float()(x), case['logits']) < 1e-5
    assert relative_error(model.double()(x.double()), case['logits']) < 1e-12


@torch.no_grad()
def test_stages(converted):
    case, model = converted
    x = golden.clip(case).double()
    names = [info['module'].rpartition('.')[2] for info in model.feature_info]
    stages = model.double().forward_intermediates(x, intermediates_only=True)
    features = dict(zip(names, stages, strict=True))
    for name, want in case['stages'].items():
        if name == 'stem_tam':  # inside our stem
            continue
        got = features[name]
        if got.ndim == 5:  # (N, C, T', h, w) -> as the authors store it, (N*frames, C, h, w)
            got = got.transpose(1, 2).flatten(0, 1)
        if len(got) != want['shape'][0]:
            got = got.repeat_interleave(2, 0)  # a pair's tensor stands in both of its slots
        assert list(got.shape) == want['shape']
        assert got.mean().item() == pytest.approx(want['mean'], rel=1e-9)
        assert got.std().item() == pytest.approx(want['std'], rel=1e-9)
        assert got.flatten()[:8].tolist() == pytest.approx(want['first8'], rel=1e-9, abs=1e-9)


@pytest.mark.slow  # test_train.py repeats losses and norms through the trainer's own step
def test_training_trace():
    """Four steps of SGD from the same weights: losses, gradient norms, weights, running statistics."""
    case = golden.load('train_blvnet_tam_r50_8x2')
    from bvtam.models.bl_resnet import checkpoint_filter_fn

    model = bvtam.create_model('bvtam_r50_8x2', num_classes=174, drop_rate=0.0).double()
    state = checkpoint_filter_fn(golden.state_dict(case))
    model.load_state_dict(state)
    settings = dict(case['optimizer'])
    assert settings.pop('name') == 'SGD'
    optimizer = torch.optim.SGD(model.parameters(), **settings)
    x, target = golden.clip(case).double(), torch.tensor(case['targets'])
    for want_loss, want_norm in zip(case['loss_before_step'], case['grad_norm'], strict=True):
        loss = F.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        assert loss.item() == pytest.approx(want_loss, rel=1e-8)
        assert norm.item() == pytest.approx(want_norm, rel=1e-8)
        optimizer.step()
    ours = checkpoint_filter_fn({n: torch.tensor(i) for i, (n, _) in enumerate(case['tensors'])
                                 if 'tam.' not in n})  # fmt: skip
    theirs = {case['tensors'][int(i)][0]: name for name, i in ours.items()}
    after = model.state_dict()
    for key, want in case['after'].items():
        name, _, index = key.partition('[')
        if '.tam.' in name:
            owner, side = name.removeprefix('baseline_model.').split('.tam.')
            row = ('prev', 'curr', 'next').index(side.partition('.')[0])
            got = after[f'{owner}.temporal.weight'][row]
        else:
            got = after[theirs[name]]
        got = got[0, 0, 0, :4] if index.startswith('0,0,0') else got.flatten()[:4]
        assert got.tolist() == pytest.approx(want, rel=1e-8)
