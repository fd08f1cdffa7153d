"""timm's model tests, on clips, over every registered name: a new model is tested by being there."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
import torch.nn.functional as F
from support.choice import some

import bvtam

NAMES = bvtam.list_models()
# Like another name but for the depth or the number of frames: they run as slow tests. A name that is in
# neither list, as of a new family, is tested in full.
ALIKE = ['blresnet101', 'blresnet152', 'bvtam_r152_8x2', 'tam_resnet101_f8', 'tam_resnet101_f32']
ALIKE += [f'bvtam_r{depth}_{pairs}x2' for depth in (50, 101) for pairs in (16, 24, 32)]
ALIKE += ['tam_resnet18_f32', 'tam_resnet50_f32', 'tsm_resnet50_f16', 'tsm_resnet101_f16']
LARGE = ['bvtam_r50_8x2', 'bvtam_r101_8x2']
LARGE += ['tam_resnet50_f8', 'tsm_resnet101_f8', 'tsn_resnet50_f8']
SMALL = [name for name in NAMES if name not in ALIKE + LARGE]  # one of each kind


def but(slow, names=NAMES):
    """The names as parameters; the slow ones run by `pytest -m slow` alone."""
    return some(names, [name for name in names if name not in slow])


SHALLOW = {'layers': (2, 2, 2, 1)}  # the fewest: tracers take their time for every block


def make(name, **options):
    return timm.create_model(name, **options)


def random_input(model, frames=4, size=(64, 64), batch=1):
    shape = (batch, model.in_chans, frames, *size)
    return torch.randn(shape[:2] + shape[3:] if model.input_kind == 'image' else shape)


def expected_steps(model, frames):
    """T' of the last features, or None for images."""
    if model.input_kind == 'image':
        return None
    return frames // model.frames_per_step


def test_names_are_those_of_the_zoo():
    wanted = {f'bvtam_{d}_{k}x2' for d in ('r50', 'r101') for k in (8, 16, 24, 32)}
    wanted |= {'bvtam_tiny_8x2', 'blresnet50', 'blresnet101', 'tsn_resnet50_f8'}
    wanted |= {f'tsm_resnet{d}_f{t}' for d in (50, 101) for t in (8, 16)}
    wanted |= {f'tam_resnet{d}_f{t}' for d in (18, 50, 101) for t in (8, 32)}
    assert wanted <= set(NAMES)
    assert set(NAMES) <= set(timm.list_models())
    for name in NAMES:
        assert callable(getattr(bvtam.models, name))


@pytest.mark.parametrize('name', but(ALIKE))
def test_forward_and_backward(name):
    model = make(name, num_classes=7).train()
    x = random_input(model, batch=2)
    y = model(x)
    assert y.shape == (2, 7)
    # the classifier starts small and residual branches at 0: every parameter gets a gradient even so
    y.square().mean().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize('name', but(ALIKE))
@torch.no_grad()
def test_default_config_and_head(name):
    model = make(name).eval()
    cfg = model.default_cfg
    state = model.state_dict()
    assert f'{cfg["classifier"]}.weight' in state
    assert model.get_classifier(name_only=True) == cfg['classifier']
    assert model.get_classifier() is model.get_submodule(cfg['classifier'])
    assert state[f'{cfg["classifier"]}.weight'].shape == (cfg['num_classes'], model.num_features)
    assert state[f'{cfg["first_conv"]}.weight'].shape[1] == cfg['input_size'][0] == model.in_chans
    assert cfg['architecture'] == model.model_name == name

    x = random_input(model)
    features = model.forward_features(x)
    steps = expected_steps(model, 4)
    middle = () if steps is None else (steps,)
    side = 64 // model.feature_info[-1]['reduction']
    assert features.shape == (1, model.num_features, *middle, side, side)
    torch.testing.assert_close(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (1, model.head_hidden_size)

    model.reset_classifier(0)
    assert model(x).shape == (1, model.num_features)
    torch.testing.assert_close(model(x), model.forward_head(features, pre_logits=True))
    model.reset_classifier(0, '')
    assert model(x).shape == features.shape
    model.reset_classifier(13, 'avg')
    assert model(x).shape == (1, 13) and model.num_classes == 13


@pytest.mark.parametrize('name', SMALL)
@torch.no_grad()
def test_options_at_creation(name):
    model = make(name, num_classes=0, in_chans=5).eval()
    assert model(random_input(model)).shape == (1, model.num_features)
    model = make(name, num_classes=3, global_pool='max', drop_rate=0.9, drop_path_rate=0.5)
    x = random_input(model, batch=2)
    assert model.train()(x).shape == (2, 3)
    model.eval()
    torch.testing.assert_close(model(x), model(x))


@pytest.mark.parametrize('name', but(ALIKE))
@torch.no_grad()
def test_features_only(name):
    extractor = make(name, features_only=True).eval()
    model = make(name).eval()
    extractor.model.load_state_dict(
        {k: v for k, v in model.state_dict().items() if not k.startswith(model.default_cfg['classifier'])}
    )  # fmt: skip
    x = random_input(model)
    features = extractor(x)
    assert [f.shape[1] for f in features] == extractor.feature_info.channels()
    assert [64 // f.shape[-1] for f in features] == extractor.feature_info.reduction()
    torch.testing.assert_close(features[-1], model.forward_features(x))
    final, some = model.forward_intermediates(x, indices=[1, 3])
    torch.testing.assert_close(final, features[-1])
    for got, want in zip(some, (features[1], features[3]), strict=True):
        torch.testing.assert_close(got, want)
    early = model.forward_intermediates(x, indices=2, intermediates_only=True, stop_early=True)
    assert len(early) == 2
    two = make(name, features_only=True, out_indices=(1, 2)).eval()
    assert [f.shape for f in two(x)] == [features[1].shape, features[2].shape]


@pytest.mark.parametrize('name', SMALL)
def test_checkpointing_changes_nothing(name):
    model = make(name, drop_rate=0.0).train()
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    x = random_input(model, batch=2)
    for each in (model, other):
        each(x).square().mean().backward()
    for (key, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7, msg=key)
    for (key, a), b in zip(model.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=key)  # batches are counted once


def test_checkpointing_counts_synchronised_batches_once():
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(make('bvtam_tiny_8x2')).train()
    model.set_grad_checkpointing()
    model(random_input(model, batch=2)).square().mean().backward()
    counts = [b.item() for name, b in model.named_buffers() if name.endswith('num_batches_tracked')]
    assert counts and set(counts) == {1}


@pytest.mark.parametrize('name', SMALL)
def test_parameter_groups(name):
    model = make(name)
    for coarse in (False, True):
        groups = timm.models.group_parameters(model, model.group_matcher(coarse))
        grouped = [n for names in groups.values() for n in names]
        assert sorted(grouped) == sorted(n for n, _ in model.named_parameters())
        assert len(groups) > 4
    assert isinstance(model.no_weight_decay(), set)


@pytest.mark.parametrize('name', SMALL)
@torch.no_grad()
def test_copies_and_threads(name):
    model = make(name).eval()
    x = random_input(model)
    want = model(x)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    ):
        torch.testing.assert_close(other(x), want, rtol=0, atol=0)
    inputs = [random_input(model, frames=2 * (1 + i % 4)) for i in range(12)]
    alone = [model(i) for i in inputs]
    with ThreadPoolExecutor(4) as pool:  # clips of different lengths, at once, in one module
        for got, want in zip(pool.map(model, inputs), alone, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', but(['tsm_resnet50_f8'], SMALL))
@torch.no_grad()
def test_one_model_any_clip(name):
    """T = 2 ... 64, 64 to 256 pixels, odd and non-square, in one process with one set of weights."""
    model = make(name, num_classes=5).eval()
    reduction = model.feature_info[-1]['reduction']
    for frames, height, width in (
        (2, 64, 64), (8, 75, 97), (16, 112, 81), (32, 64, 256), (64, 65, 64), (2, 256, 255),
    ):  # fmt: skip
        x = random_input(model, frames, (height, width))
        features = model.forward_features(x)
        steps = expected_steps(model, frames)
        middle = () if steps is None else (steps,)
        assert features.shape[2:] == (*middle, -(-height // reduction), -(-width // reduction))
        assert model(x).isfinite().all()


SHIFT = pytest.param('bvtam_tiny_8x2', {'temporal': 'tsm'}, marks=pytest.mark.slow)
SLOW_RESNETS = [name for name in SMALL if name.startswith(('tam_resnet', 'tsm_resnet'))]


def traced(name):
    """The name and options that make little to trace."""
    if name in SLOW_RESNETS:  # test_temporal_resnet.py traces a small one
        return pytest.param(name, {}, marks=pytest.mark.slow)
    return name, SHALLOW if name in ('bvtam_tiny_8x2', 'blresnet50') else {}


@pytest.mark.parametrize(('name', 'options'), [*map(traced, SMALL), SHIFT])
@torch.no_grad()
def test_export_with_every_axis_dynamic(name, options):
    model = make(name, num_classes=5, **options).eval()
    example = random_input(model, frames=6, size=(96, 96), batch=2)
    auto = torch.export.Dim.AUTO
    dims = {i: auto for i in range(example.ndim) if i != 1}
    program = torch.export.export(model, (example,), dynamic_shapes=(dims,))
    for batch, frames, height, width in ((1, 4, 64, 64), (3, 16, 75, 110), (2, 8, 128, 96)):
        x = random_input(model, frames, (height, width), batch)
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('name', 'options'), [*(traced(n) for n in SMALL if n != 'blresnet50'), SHIFT]
)
def test_compile_without_graph_breaks(name, options):
    model = make(name, num_classes=5, drop_rate=0.0, **options)
    x = random_input(model, batch=2)
    for training, backend in ((False, 'eager'), (True, 'aot_eager')):  # the latter: backward too
        compiled = torch.compile(model.train(training), fullgraph=True, backend=backend)
        other = copy.deepcopy(model)
        torch.testing.assert_close(compiled(x), other(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', SMALL)
def test_bad_tensors_are_refused(name):
    model = make(name).eval()
    image = model.input_kind == 'image'
    bad = [torch.zeros(3, 4), torch.zeros(1, 4, 64, 64) if image else torch.zeros(1, 3, 64, 64)]
    if not image:
        bad.append(torch.zeros(1, 4, 4, 64, 64))
        bad.append(torch.zeros(1, 3, 0, 64, 64))
        if model.frames_per_step > 1:
            bad.append(torch.zeros(1, 3, 2 * model.frames_per_step + 1, 64, 64))
    for x in bad:
        with pytest.raises(ValueError, match=r'expected .* got'):
            model(x)


def test_misspelt_options_are_refused():
    for create in (bvtam.create_model, timm.create_model):
        with pytest.raises(
            bvtam.BvtamError, match="no option 'temporal_rang'; did you mean temporal_range"
        ):
            create('bvtam_tiny_8x2', temporal_rang=5)
    for options in (
        {'global_pool': '', 'num_classes': 3},
        {'num_classes': -1},
        {'alpha': 'x'},
        {'temporal': 'tma'},
        {'temporal_range': 4},
        {'alpha': 3},
        {'width': 10},
    ):
        with pytest.raises(bvtam.BvtamError):
            bvtam.create_model('bvtam_tiny_8x2', **options)
    with pytest.raises(bvtam.BvtamError, match='bvtam_r50_8x2'):
        bvtam.create_model('bvtam_r50_8x')


def test_drop_path_drops_whole_clips():
    model = make('bvtam_tiny_8x2', drop_path_rate=0.5, temporal='none').train()
    block = model.layer4[1]
    torch.nn.init.ones_(block.bn3.weight)
    x = torch.randn(32 * 4, 512, 2, 2).relu()
    changed = (block(x, 4) - x).abs().flatten(1).amax(1).unflatten(0, (32, 4)) > 1e-6
    assert (changed.all(1) | ~changed.any(1)).all()
    assert changed.any() and not changed.all()


def test_autocast_trains():
    model = make('bvtam_tiny_8x2', num_classes=3, drop_rate=0.0).train()
    x, target = torch.randn(4, 3, 8, 64, 64), torch.tensor([0, 1, 2, 0])
    losses = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(6):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
