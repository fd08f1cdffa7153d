"""Models on timm's backbones: against a ResNet-18 written out by hand, and against timm itself."""

import threading

import pytest
import timm
import torch
import torch.nn.functional as F
from support.choice import some
from timm.models._manipulate import group_parameters

from bvtam import BvtamError, create_model, list_models, save_pretrained, temporal_model
from bvtam.layers import residual
from bvtam.layers.residual import ClipDropPath, TemporalLayer
from bvtam.models.temporal_resnet import TemporalNet

# a backbone, how many residual branches it has, the name of its classifier
FAMILIES = {
    'resnet18': (8, 'fc'),
    'resnet26d': (8, 'fc'),
    'res2net50_14w_8s': (16, 'fc'),
    'resnest14d': (4, 'fc'),
    'regnety_002': (13, 'head.fc'),
    'regnetz_005': (17, 'head.fc'),  # the first block of a stage has no shortcut
    'regnetv_040': (22, 'head.fc'),  # pre-activation
    'convnext_atto': (12, 'head.fc'),
    'convnextv2_atto': (12, 'head.fc'),
    'efficientnet_b0': (9, 'classifier'),
    'tf_efficientnetv2_b0': (15, 'classifier'),
    'mixnet_s': (11, 'classifier'),
    'mobilenetv2_050': (10, 'classifier'),
    'mobilenetv3_small_050': (7, 'classifier'),
    'mobilenetv4_hybrid_medium': (27, 'classifier'),
}
QUICK = ['resnet18', 'regnety_002', 'convnext_atto', 'efficientnet_b0', 'mobilenetv3_small_050']


def lively(model):
    """Random norms, so that no residual branch is silent and statistics are not those of the start."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1), (module.bias, -0.1, 0.1),
                (module.running_mean, -0.1, 0.1), (module.running_var, 0.5, 1.5),
            ):  # fmt: skip
                tensor.data.uniform_(low, high, generator=generator)
        if isinstance(gamma := getattr(module, 'gamma', None), torch.nn.Parameter):
            gamma.data.fill_(1)  # layer scale
        if isinstance(module, TemporalLayer) and hasattr(module.temporal, 'weight'):
            module.temporal.weight.data.uniform_(-0.5, 1, generator=generator)
    return model.eval()


def model18(**options):
    torch.manual_seed(0)
    return lively(TemporalNet('resnet18', num_classes=5, **options))


def frames_of(clip):
    return clip.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


# ---- the oracle -------------------------------------------------------------------------------


def mix(frames, rows, relu):
    """out_t = sum_j w_j x_(t+j), zeros outside; `frames` is a list, `rows` one weight per offset."""
    out = []
    for t in range(len(frames)):
        total = torch.zeros_like(frames[0])
        for i, row in enumerate(rows):
            source = t + i - len(rows) // 2
            if 0 <= source < len(frames):
                total = total + row.view(-1, 1, 1) * frames[source]
        out.append(total.relu() if relu else total)
    return out


def shift_rows(channels):
    """TSM as the textbook has it: the first eighth from t+1, the second from t-1, the rest stays."""
    before, same, after = torch.zeros(3, channels, dtype=torch.float64)
    after[: channels // 8] = 1
    before[channels // 8 : channels // 4] = 1
    same[channels // 4 :] = 1
    return [before, same, after]


def resnet18_by_hand(state, clip, temporal, every=1, pool=False):
    """Logits of one clip (C, T, H, W), frame by frame, from the released description."""

    def norm(x, name):
        keys = ('running_mean', 'running_var', 'weight', 'bias')
        return F.batch_norm(x, *(state[f'backbone.{name}.{key}'] for key in keys))

    def conv(x, name, stride=1):
        weight = state.get(f'backbone.{name}.weight', state.get(f'backbone.{name}.layer.weight'))
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    frames = [norm(conv(f[None], 'conv1', 2), 'bn1').relu() for f in clip.unbind(1)]
    frames = [F.max_pool2d(f, 3, 2, 1) for f in frames]
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            name = f'layer{layer}.{block}'
            stride = 2 if layer > 1 and block == 0 else 1
            inside = frames
            if temporal != 'none' and block % every == 0:
                tam = state.get(f'backbone.{name}.conv1.temporal.weight')
                rows = shift_rows(frames[0].shape[1]) if tam is None else tam
                inside = mix(frames, rows, relu=tam is not None)
            out = []
            for before, x in zip(frames, inside, strict=True):
                x = norm(conv(x, f'{name}.conv1', stride), f'{name}.bn1').relu()
                x = norm(conv(x, f'{name}.conv2'), f'{name}.bn2')
                if stride == 2:
                    before = norm(conv(before, f'{name}.downsample.0', 2), f'{name}.downsample.1')
                out.append((x + before).relu())
            frames = out
        if pool and layer < 4:
            around = [frames[max(0, t - 1) : t + 2] for t in range(0, len(frames), 2)]
            frames = [torch.stack(group).amax(0) for group in around]
    pooled = torch.stack(frames).mean((0, 1, 3, 4))
    return F.linear(pooled, state['backbone.fc.weight'], state['backbone.fc.bias'])


@pytest.mark.parametrize(
    ('frames', 'options'),
    [
        (4, {'temporal': 'none'}),
        (4, {'temporal': 'tsm'}),
        (5, {'temporal': 'tsm', 'temporal_every': 2}),
        (5, {'temporal': 'tam'}),
        (6, {'temporal': 'tam', 'temporal_range': 5, 'temporal_every': 2}),
        (1, {'temporal': 'tam'}),
        (8, {'temporal': 'tam', 'temporal_pool': True}),
        (7, {'temporal': 'tsm', 'temporal_pool': True}),
        (3, {'temporal': 'none', 'temporal_pool': True}),
    ],
)
def test_equals_a_resnet_written_by_hand(frames, options):
    model = model18(**options).double()
    clips = torch.randn(2, 3, frames, 40, 48, dtype=torch.float64)
    by_hand = {'temporal': options['temporal'], 'every': options.get('temporal_every', 1)}
    pool = options.get('temporal_pool', False)
    state = model.state_dict()
    want = torch.stack([resnet18_by_hand(state, c, pool=pool, **by_hand) for c in clips])
    with torch.no_grad():
        torch.testing.assert_close(model(clips), want, rtol=1e-10, atol=1e-12)
        got = model.float()(clips.float()).double()
    assert (got - want).abs().max() < 1e-4 * want.abs().max()


# ---- timm itself ------------------------------------------------------------------------------


@pytest.mark.parametrize('backbone', some(FAMILIES, QUICK))
def test_without_operators_it_is_the_backbone_on_every_frame(backbone):
    model = lively(temporal_model(backbone, 'none', num_classes=7))
    assert not any(isinstance(m, TemporalLayer) for m in model.modules())
    clip = torch.randn(2, 3, 3, 64, 64)
    frames = frames_of(clip)
    with torch.no_grad():
        features, stages = model.forward_intermediates(clip)
        want, want_stages = model.backbone.forward_intermediates(frames)
        whole = model.backbone.forward_features(frames)
        assert torch.equal(frames_of(model.forward_features(clip)), whole)
        logits = model.backbone(frames).unflatten(0, (2, 3)).mean(1)
        torch.testing.assert_close(model(clip), logits, rtol=1e-4, atol=1e-5)
        some = model.forward_intermediates(clip, [-2], stop_early=True, intermediates_only=True)
    assert torch.equal(frames_of(features), want)
    assert all(torch.equal(frames_of(a), b) for a, b in zip(stages, want_stages, strict=True))
    assert [s.shape[1] for s in stages] == [info['num_chs'] for info in model.feature_info]
    assert len(some) == 1 and torch.equal(some[0], stages[-2])
    for info in model.feature_info:
        model.get_submodule(info['module'])


@pytest.mark.parametrize('backbone', FAMILIES)
def test_every_residual_branch_has_an_operator(backbone):
    branches, classifier = FAMILIES[backbone]
    model = lively(temporal_model(backbone, 'tam', num_classes=7))
    assert sum(isinstance(m, TemporalLayer) for m in model.modules()) == branches
    clip = torch.randn(2, 3, 4, 64, 64)
    with torch.no_grad():
        out = model(clip)
        assert out.shape == (2, 7) and torch.isfinite(out).all()
        other = clip.clone()
        other[:, :, 0] += 1
        features, changed = model.forward_features(clip), model.forward_features(other)
        assert not torch.equal(features[:, :, 1], changed[:, :, 1])  # a frame sees its neighbour
        assert model(clip[:, :, :1]).shape == (2, 7)
    assert model.get_classifier(name_only=True) == f'backbone.{classifier}'
    assert model.pretrained_cfg['classifier'] == f'backbone.{classifier}'
    assert f'{model.pretrained_cfg["first_conv"]}.weight' in model.state_dict()
    # groups of parameters as the backbone has them, plus the operators in the groups of their blocks
    groups = group_parameters(model, model.group_matcher())
    assert len(groups) == len(group_parameters(model.backbone, model.backbone.group_matcher()))
    assert sum(len(g) for g in groups.values()) == len(list(model.parameters()))
    model.reset_classifier(3)
    assert model.num_classes == 3 and model(clip).shape == (2, 3)
    model.reset_classifier(0)
    assert model(clip).shape == (2, model.head_hidden_size)


@pytest.mark.parametrize('backbone', some(FAMILIES, QUICK))
def test_features_only_keeps_what_it_needs(backbone):
    model = temporal_model(backbone, 'tsm', features_only=True, out_indices=(1, 2))
    whole = temporal_model(backbone, 'tsm')
    clip = torch.randn(1, 3, 2, 64, 64)
    features = model(clip)
    assert [f.shape[1] for f in features] == model.feature_info.channels()
    assert [64 // f.shape[-1] for f in features] == model.feature_info.reduction()
    assert all(f.shape[2] == 2 for f in features)
    count = sum(p.numel() for p in model.parameters())
    assert count < sum(p.numel() for p in whole.parameters())


def test_an_operator_stands_before_the_first_layer_of_the_branch_only():
    model = lively(TemporalNet('mobilenetv2_050', temporal='tsm', num_classes=0)).double()
    block = model.backbone.blocks[1][1]
    x = torch.randn(6, block.conv_pwl.out_channels, 8, 8, dtype=torch.float64)
    mixed = mix(list(x[:3]), shift_rows(x.shape[1]), False)
    mixed += mix(list(x[3:]), shift_rows(x.shape[1]), False)
    y = block.bn1(block.conv_pw.layer(torch.stack(mixed)))
    y = block.bn3(block.conv_pwl(block.bn2(block.conv_dw(y))))
    got = residual.run_clips(block, x, 3)
    torch.testing.assert_close(got, x + y, rtol=1e-12, atol=1e-12)
    # no shortcut, no operator
    assert not isinstance(model.backbone.blocks[1][0].conv_pw, TemporalLayer)


# ---- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'backbone': 'resnet5O'}, 'did you mean resnet50'),
        ({'backbone': 'resnet50.nowhere'}, 'nowhere'),
        ({'backbone': 'vit_tiny_patch16_224'}, '16_224 has no residual block of a known'),
        ({'backbone': 'mobilenetv1_100'}, 'no residual block of a known'),
        ({'backbone': 'tf_efficientnet_cc_b0_4e'}, 'CondConvResidual'),
        ({'backbone': 'hrnet_w18_small'}, 'HighResolutionNet'),
        ({'backbone': 'tsm_resnet50_f8'}, 'TemporalNet'),
        ({'backbone': 'regnety_002', 'temporal_pool': True}, 'temporal_pool is for ResNets'),
        ({'temporal': 'tms'}, 'tam, tsm, none'),
        ({'temporal_range': 4}, 'odd'),
        ({'temporal_every': 0}, 'temporal_every'),
        ({'global_pool': ''}, 'num_classes=0'),
        ({'temporal_evry': 2}, 'did you mean temporal_every'),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(BvtamError, match=words):
        temporal_model(**{'backbone': 'resnet18', **options})


def test_bad_input_is_named():
    model = model18()
    for shape, words in (
        ((2, 3, 32, 32), r'\(B, C=3, T, H, W\), got a tensor of shape \(2, 3, 32, 32\)'),
        ((2, 4, 2, 32, 32), r'\(2, 4, 2, 32, 32\)'),
        ((2, 3, 0, 32, 32), 'clip'),
    ):
        with pytest.raises(ValueError, match=words):
            model(torch.randn(shape))
    with pytest.raises(ValueError, match='NHWC'):
        model.forward_intermediates(torch.randn(1, 3, 1, 32, 32), output_fmt='NHWC')
    with pytest.raises(BvtamError, match='call the model'):
        model.backbone(torch.randn(2, 3, 32, 32))


def test_a_failed_call_leaves_nothing_behind():
    model = model18()
    model.backbone.layer3.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(torch.randn(1, 3, 2, 32, 32))
    assert residual._call.steps is None


@pytest.mark.parametrize(
    ('backbone', 'strict', 'options'),
    [
        ('resnet10t', False, {}),
        pytest.param('resnet18', True, {}, marks=pytest.mark.slow),
        pytest.param('resnet18', False, {'temporal': 'tsm'}, marks=pytest.mark.slow),
        pytest.param('resnet18', False, {'temporal_pool': True}, marks=pytest.mark.slow),
    ],
)
def test_compiles_once_and_exports_with_any_shape(backbone, strict, options):
    model = lively(TemporalNet(backbone, num_classes=5, **options))
    # No two axes of the first are equal: the compiler would hold them to it.
    clips = torch.randn(2, 3, 20, 64, 96), torch.randn(3, 3, 19, 80, 72)
    dynamic = torch.export.Dim.DYNAMIC
    shapes = ({0: dynamic, 2: dynamic, 3: dynamic, 4: dynamic},)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend='eager', dynamic=True)
    program = torch.export.export(model, clips[:1], dynamic_shapes=shapes, strict=strict)
    with torch.no_grad():
        want = [model(clip) for clip in clips]
        traced = torch.jit.trace(model, clips[0], check_trace=False)
        got = [traced(clips[0]), compiled(clips[0])]
        with torch.compiler.set_stance('fail_on_recompile'):
            got.append(compiled(clips[1]))
        got += [program.module()(clip) for clip in clips]
    for logits, number in zip(got, (0, 0, 1, 0, 1), strict=True):
        torch.testing.assert_close(logits, want[number], rtol=1e-4, atol=1e-6)


# ---- training ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('backbone', 'options'),
    [
        ('resnet18', {'temporal_pool': True}),
        ('regnetz_005', {'temporal': 'tsm'}),
        ('convnext_atto', {}),
        ('efficientnet_b0', {}),
        ('mobilenetv3_small_050', {}),
    ],
)
def test_checkpointing_gives_the_same_gradients(backbone, options):
    """Also where the backward runs in a thread that never saw the forward, as on a GPU."""
    model = lively(TemporalNet(backbone, num_classes=3, drop_path_rate=0.3, **options)).train()
    clip = torch.randn(2, 3, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(1)
        loss = model(clip).square().sum()
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    'backbone', ['resnet18', 'regnety_002', 'convnext_atto', 'efficientnet_b0']
)
def test_a_branch_is_dropped_for_a_whole_clip(backbone):
    model = lively(TemporalNet(backbone, num_classes=0, drop_path_rate=0.5)).train()
    ratios = []
    drops = [m for m in model.modules() if isinstance(m, ClipDropPath)]
    assert drops and not [m for m in model.modules() if type(m) is timm.layers.DropPath]
    for drop in drops:
        drop.register_forward_hook(lambda m, i, o: ratios.append((o / i[0]).flatten(1).nanmean(1)))
    torch.manual_seed(0)
    with torch.no_grad():
        model(torch.randn(16, 3, 3, 32, 32))
    by_clip = ratios[-1].unflatten(0, (16, 3))
    torch.testing.assert_close(by_clip, by_clip[:, :1].expand(-1, 3))
    assert 0 < (by_clip[:, 0] == 0).sum() < 16


def test_dropout_is_before_the_classifier():
    model = model18(drop_rate=0.9).train()
    features = torch.ones(4, 512, 3, 1, 1)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (4, 512)
    # frames are dropped one by one
    assert {round(v, 2) for v in pooled.unique().tolist()} <= {0.0, 3.33, 6.67, 10.0}
    assert torch.equal(model.eval().forward_head(features, pre_logits=True), torch.ones(4, 512))


# ---- names, weights, entry points -------------------------------------------------------------


def test_pretrained_backbone_comes_from_timm(monkeypatch):
    asked = []
    create = timm.create_model

    def offline(name, pretrained=False, **options):
        asked.append((name, pretrained, options))
        return create(name, **options)

    monkeypatch.setattr(timm, 'create_model', offline)
    temporal_model('resnet18.tv_in1k', pretrained=True, num_classes=9, in_chans=2)
    assert asked == [('resnet18.tv_in1k', True, {'num_classes': 9, 'in_chans': 2})]


def test_temporal_model_brings_the_settings_of_its_backbone_and_comes_back(tmp_path):
    model = lively(temporal_model('test_convnext2', 'tsm', num_classes=4, temporal_every=2))
    cfg = timm.get_pretrained_cfg('test_convnext2')
    assert model.model_name == 'tsm_test_convnext2' and model.label_names is None
    clip = model.clip_config
    assert clip.num_frames == 8 and clip.crop_size == cfg.input_size[-1] <= clip.resize
    assert clip.mean == cfg.mean and clip.std == cfg.std
    folder = save_pretrained(model, tmp_path / 'model')
    x = torch.randn(1, 3, 3, 64, 64)
    again = create_model(f'local-dir:{folder}', pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert again.clip_config == clip
    assert create_model(f'local-dir:{folder}', pretrained=True, num_classes=2).num_classes == 2
    # Also by the option of an entry point, whose own backbone has another first convolution.
    deep = lively(create_model('tam_resnet50_f8', backbone='test_resnet', num_classes=4))
    folder = save_pretrained(deep, tmp_path / 'deep')
    again = create_model(f'local-dir:{folder}').eval()
    with torch.no_grad():
        assert torch.equal(again(x), deep(x))


def test_entry_points():
    names = timm.list_models(module='temporal_resnet')
    assert len(names) == 11 and set(names) <= set(list_models())
    for name in names:
        kind, depth, frames = name.split('_')
        with torch.device('meta'):
            model = timm.create_model(name)
        assert model.clip_config.num_frames == int(frames[1:]) and model.clip_config.resize == 256
        assert model.num_classes == 400 and model.drop_rate == 0.5 and model.model_name == name
        operators = sum(isinstance(m, TemporalLayer) for m in model.modules())
        blocks = {'resnet18': 8, 'resnet50': 16, 'resnet101': 18 if kind == 'tsm' else 33}[depth]
        assert operators == (0 if kind == 'tsn' else blocks)
    params = {n: sum(p.numel() for p in create_model(n, num_classes=87).parameters())
              for n in ('tsn_resnet50_f8', 'tam_resnet50_f8')}  # fmt: skip
    assert params == {'tsn_resnet50_f8': 23686295, 'tam_resnet50_f8': 23725655}  # as published


def test_intermediates_show_the_shrinking_clip():
    model = create_model('tam_resnet18_f8', temporal_pool=True, features_only=True)
    features = model(torch.randn(1, 3, 7, 64, 64))
    assert [f.shape[2] for f in features] == [7, 7, 4, 2, 1]
    assert model.feature_info.module_name() == [f'backbone.{n}' for n in ('act1', 'layer1', 'layer2', 'layer3', 'layer4')]  # fmt: skip
    unpooled = TemporalNet('resnet18', num_classes=0, global_pool='')
    assert unpooled(torch.randn(2, 3, 3, 64, 64)).shape == (2, 512, 3, 2, 2)
