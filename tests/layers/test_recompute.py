"""Recomputing in the backward pass changes no number, and saves memory."""

import copy

import pytest
import torch
from support import textbook
from support.kept import kept_bytes
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import bvtam
from bvtam.layers import recompute


def plain(monkeypatch):
    """Makes every fused form fall back to the plain modules."""
    monkeypatch.setattr(recompute, 'can_fuse', lambda norm, *others: False)


@pytest.mark.parametrize('cheap', [False, True])
@pytest.mark.parametrize(
    'options',
    [{}, {'temporal': 'tsm'}, {'temporal_range': 5}, {'temporal': 'none'}, {'causal': True}],
    ids=str,
)
def test_training_equals_the_plain_modules(monkeypatch, options, cheap):
    model = bvtam.create_model('bvtam_tiny_8x2', num_classes=4, drop_rate=0.0, **options).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    other = copy.deepcopy(model)
    model.set_cheap_recompute(cheap)
    x = torch.randn(2, 3, 6, 48, 40, dtype=torch.float64)
    target = torch.tensor([0, 3])
    loss = nn.functional.cross_entropy(model(x), target)
    loss.backward()
    plain(monkeypatch)
    want = nn.functional.cross_entropy(other(x), target)
    want.backward()
    assert loss.item() == pytest.approx(want.item(), rel=1e-12)
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12, msg=name)
    for (name, a), b in zip(model.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=name)


def test_tensors_of_a_trace_are_not_counted():
    x = torch.randn(4, 4)
    want = kept_bytes(nn.Linear(4, 4), x)
    with FakeTensorMode():
        traced = [torch.randn(8, 8)]
    traced.append(torch._to_functional_tensor(torch.randn(8, 8)))
    assert kept_bytes(nn.Linear(4, 4), x) == want
    assert all(tensor.shape == (8, 8) for tensor in traced)


def test_cheap_recompute_keeps_far_less():
    """Against the textbook form: 0.76 becomes less than 0.55, with stages recomputed less than 0.3."""
    x = torch.randn(1, 3, 16, 64, 64)
    book = kept_bytes(textbook.BLVNet(50, 16).train(), x)
    model = bvtam.create_model('bvtam_r50_8x2').train()
    assert kept_bytes(model, x) < 0.8 * book
    model.set_cheap_recompute()
    assert kept_bytes(model, x) < 0.55 * book
    model.set_grad_checkpointing()
    assert kept_bytes(model, x) < 0.3 * book


@pytest.mark.parametrize('cheap', [False, True])
def test_recomputation_beside_all_else(cheap):
    """Frozen norms, stochastic depth, intermediate features, and a second backward pass or a refusal."""
    model = bvtam.create_model('bvtam_tiny_8x2', drop_path_rate=0.3, drop_rate=0.0).train()
    model.layer1.fusion.bn1.eval()
    other = copy.deepcopy(model)
    if cheap:
        other.set_cheap_recompute()
    else:
        other.set_grad_checkpointing()
    x = torch.randn(2, 3, 4, 64, 64)
    for each in (model, other):
        torch.manual_seed(0)
        features, several = each.forward_intermediates(x)
        loss = features.square().mean() + sum(f.mean() for f in several)
        loss.backward(retain_graph=True)
        if each is other and cheap:
            with pytest.raises(RuntimeError, match='only allowed to backward once'):
                loss.backward()
        elif not cheap:
            loss.backward()
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_hooks_are_called_in_training():
    model = bvtam.create_model('bvtam_tiny_8x2').train()
    block, seen = model.layer1.fusion, []
    for module in (block.bn1, block.conv3):
        module.register_forward_hook(lambda module, args, out: seen.append(module))
    model(torch.randn(1, 3, 4, 32, 32))
    assert seen == [block.bn1, block.conv3]


def test_frozen_batch_norm_stays_frozen():
    model = bvtam.create_model('bvtam_tiny_8x2').train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.eval()
    before = [n.running_mean.clone() for n in norms]
    model(torch.randn(1, 3, 4, 32, 32)).sum().backward()
    assert all(torch.equal(n.running_mean, b) for n, b in zip(norms, before, strict=True))


def test_recomputed_in_bf16_to_the_bit():
    norm = nn.BatchNorm2d(8)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    x = (torch.randn(4, 8, 5, 5) + 16).bfloat16()
    args = x, norm.weight.detach(), norm.bias.detach()
    y, mean, invstd = recompute._norm_relu(*args, recompute._stats(norm))
    assert torch.equal(recompute._norm_relu_again(*args, mean, invstd, norm.eps), y)


@pytest.mark.parametrize('change', [{'momentum': None}, {'track_running_stats': False}])
def test_checkpointing_with_unusual_norms(change):
    model = bvtam.create_model('bvtam_tiny_8x2').train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for key, value in change.items():
                setattr(module, key, value)
            if change.get('track_running_stats') is False:
                module.running_mean = module.running_var = module.num_batches_tracked = None
    model.set_grad_checkpointing()
    model(torch.randn(1, 3, 4, 32, 32)).sum().backward()


def test_a_batch_without_statistics_is_refused_before_anything_is_updated():
    model = bvtam.create_model('bvtam_tiny_8x2').train()
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        model(torch.randn(1, 3, 2, 32, 32))
    assert all(b.isfinite().all() for b in model.buffers())
