"""Counts against the published integers, by two independent counters."""

import pytest
import torch
from support import textbook
from torch.utils.flop_counter import FlopCounterMode

import bvtam
from bvtam.deploy.flops import check, count, flops, published


@pytest.mark.slow  # `bvtam flops --check` does the same
def test_every_published_row():
    rows = list(check())
    assert len(rows) == len(published()) >= 20
    assert [r['model'] for r in rows if not r['ok']] == []
    assert sum('conv_macs' in r['expected'] for r in rows) == 8  # exact ones


def test_published_rows_of_short_clips(monkeypatch):
    # Of a model that is published with both, the exact numbers.
    short = {r['model']: r for r in reversed(published()) if r['num_frames'] <= 8}
    exact = next(r for r in published() if (r['model'], r['size']) == ('bvtam_r50_8x2', 224))
    short = [exact, *short.values()]
    monkeypatch.setattr('bvtam.deploy.flops.published', lambda: short)
    rows = list(check())
    assert len(rows) == len(short) >= 6 and all(r['ok'] for r in rows)
    assert sum('conv_macs' in r['expected'] for r in rows) >= 4


@torch.no_grad()
@pytest.mark.parametrize('options', [{}, {'temporal_range': 5}, {'alpha': 4, 'beta': 2}])
def test_textbook_counted_by_torch_agrees(options):
    frames, size = 8, 96
    with FlopCounterMode(display=False) as counter:
        textbook.BLVNet(num_frames=frames, **options).eval()(torch.zeros(1, 3, frames, size, size))
    total = counter.get_flop_counts()['Global']
    convolution = total[torch.ops.aten.convolution] // 2  # torch counts 2 for a multiply-accumulate
    ours = flops('bvtam_r50_8x2', frames, size, **options)
    assert ours['conv_macs'] == convolution
    assert ours['linear_macs'] == total[torch.ops.aten.addmm] // 2
    assert ours['executed_macs'] < convolution


def test_executed_counts_what_the_pair_form_does():
    tam = flops('bvtam_tiny_8x2', 4, 64)
    none = flops('bvtam_tiny_8x2', 4, 64, temporal='none')
    pairs, (stem, l1, l2, l3, l4a, l4b) = 2, (32 * 32, 16 * 16, 8 * 8, 4 * 4, 4 * 4, 2 * 2)
    # module TAMs: 4 products per pair and value instead of 6; the others 3 per value
    modules = 4 * pairs * (16 * l1 + 64 * l2 + 128 * l3)
    others = 3 * (2 * pairs * 16 * stem + pairs * (256 * l4a + 512 * l4b))
    assert tam['executed_macs'] - none['executed_macs'] == modules + others
    assert tam['conv_macs'] - none['conv_macs'] == modules * 6 // 4 + others


def test_counting_leaves_the_net_as_it_was():
    model = bvtam.create_model('bvtam_tiny_8x2').train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    count(model, 4, 64)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_bad_calls():
    with pytest.raises(ValueError, match='T=5'):
        flops('bvtam_tiny_8x2', 5)
    with pytest.raises(bvtam.BvtamError, match='unknown model'):
        flops('bvtam_huge')


def test_a_family_that_nobody_knows():
    net = torch.nn.Conv3d(3, 4, 1)
    with pytest.raises(bvtam.BvtamError, match="Conv3d has no attribute 'in_chans'"):
        count(net)
    net.in_chans = 3
    assert count(net, 2, 8)['executed_macs'] == 3 * 4 * 2 * 8 * 8
