"""The temporal operators against their textbook forms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import textbook

from bvtam.errors import BvtamError
from bvtam.layers.tam import TAM, TamFunction, _tam_traced, stack_tam_weights
from bvtam.layers.temporal import NoTemporal, temporal_op
from bvtam.layers.tsm import TSM

RANGES = (1, 3, 5, 7)


def textbook_tam(tam, num_frames):
    """Frames stored at every step, one depthwise 1x1 convolution per offset."""
    reference = textbook.Tam(tam.weight.shape[1], num_frames, len(tam.weight)).to(tam.weight.dtype)
    with torch.no_grad():
        for parameter, row in zip(reference.parameters(), tam.weight, strict=True):
            parameter.copy_(row.view(-1, 1, 1, 1))
    return reference


def twice(x):
    """Pairs stored twice: (N*K, ...) -> (N*2K, ...)."""
    return x.repeat_interleave(2, 0)


def tensors(seed, *shape, channels_last=False):
    x = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def assert_same(got, want):
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


cases = given(
    batch=st.integers(1, 3),
    pairs=st.integers(1, 8),
    temporal_range=st.sampled_from(RANGES),
    channels_last=st.booleans(),
    seed=st.integers(0, 999),
)


@cases
def test_tam_equals_the_textbook_in_every_form(batch, pairs, temporal_range, channels_last, seed):
    tam = TAM(5, temporal_range).double()
    torch.nn.init.normal_(tam.weight)
    frames = tensors(seed, batch * 2 * pairs, 5, 3, 4, channels_last=channels_last)
    stored = textbook_tam(tam, 2 * pairs)
    want = stored(frames)
    assert_same(tam(frames, 2 * pairs), want)
    even, odd = tam.split(frames, pairs)
    assert_same(even, want[0::2])
    assert_same(odd, want[1::2])
    x = tensors(seed + 1, batch * pairs, 5, 3, 4, channels_last=channels_last)
    want = stored(twice(x))
    even, odd = tam.pair(x, pairs)
    assert_same(even, want[0::2])
    assert_same(odd, want[1::2])


@cases
def test_gradients_equal_those_of_the_textbook(batch, pairs, temporal_range, channels_last, seed):
    tam = TAM(3, temporal_range).double()
    torch.nn.init.normal_(tam.weight)
    frames = tensors(seed, batch * 2 * pairs, 3, 2, 2, channels_last=channels_last)
    x = tensors(seed + 1, batch * pairs, 3, 2, 2, channels_last=channels_last)
    stored = textbook_tam(tam, 2 * pairs)
    upstream = tensors(seed + 2, batch * 2 * pairs, 3, 2, 2)
    for source, ours, theirs in (
        (frames, lambda s: tam(s, 2 * pairs), stored),
        (frames, lambda s: interleave(*tam.split(s, pairs)), stored),
        (x, lambda s: interleave(*tam.pair(s, pairs)), lambda s: stored(twice(s))),
    ):
        source.requires_grad_()
        got = torch.autograd.grad(ours(source), [source, tam.weight], upstream)
        want = torch.autograd.grad(theirs(source), [source, *stored.parameters()], upstream)
        assert_same(got[0], want[0])
        assert_same(got[1], torch.stack([w.flatten() for w in want[1:]]))


def interleave(even, odd):
    return torch.stack([even, odd], 1).flatten(0, 1)


@cases
def test_traced_form_equals_the_eager_one(batch, pairs, temporal_range, channels_last, seed):
    weight = tensors(seed, temporal_range, 4)
    for form, per_step in (('plain', 1), ('split', 2), ('pair', 1)):
        x = tensors(seed, batch * pairs * per_step, 4, 2, 3, channels_last=channels_last)
        for a, b in zip(TamFunction.apply(x, weight, pairs, form),
                        _tam_traced(x, weight, pairs, form), strict=True):  # fmt: skip
            assert_same(a, b)


@given(batch=st.integers(1, 2), pairs=st.integers(1, 8), seed=st.integers(0, 999))
def test_shift_and_no_operator_in_pair_form_equal_stored_frames(batch, pairs, seed):
    for op, channels in ((TSM(16), 16), (TSM(9, shift_div=4), 9), (NoTemporal(), 4)):
        frames = tensors(seed, batch * 2 * pairs, channels, 2, 3)
        want = op(frames, 2 * pairs)
        even, odd = op.split(frames, pairs)
        assert_same(interleave(even, odd), want)
        x = tensors(seed, batch * pairs, channels, 2, 3)
        assert_same(interleave(*op.pair(x, pairs)), op(twice(x), 2 * pairs))


def test_shift_is_tam_with_0_1_weights():
    """The published example: 8 channels, half of them moved, exactly."""
    tam = TAM(8).double()
    with torch.no_grad():
        tam.weight[2] = torch.tensor([1.0, 1, 0, 0, 0, 0, 0, 0])  # from t+1
        tam.weight[1] = torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 1])
        tam.weight[0] = torch.tensor([0.0, 0, 1, 1, 0, 0, 0, 0])  # from t-1
    x = tensors(0, 2 * 6, 8, 3, 3).relu()  # TAM ends in a ReLU, so on non-negative frames
    assert torch.equal(tam(x, 6), TSM(8, shift_div=4)(x, 6))
    got, want = tam.pair(x, 6), TSM(8, shift_div=4).pair(x, 6)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_shift_moves_the_channels_that_the_release_moves():
    x = torch.arange(1.0, 5).view(4, 1, 1, 1).expand(4, 8, 1, 1)
    y = TSM(8)(x, 4).flatten(1)
    assert y[:, 0].tolist() == [2, 3, 4, 0]  # the first eighth from the next frame
    assert y[:, 1].tolist() == [0, 1, 2, 3]  # the second from the one before
    assert y[:, 2:].eq(torch.tensor([1.0, 2, 3, 4]).view(4, 1)).all()


def test_starts_small_as_the_release():
    torch.manual_seed(0)
    weight = TAM(20_000, 5).weight
    assert weight.std().item() == pytest.approx((2 / 20_000) ** 0.5, rel=0.01)


def test_refusals():
    for bad in (0, -1, 2, 4):
        with pytest.raises(BvtamError, match='odd and positive'):
            TAM(4, bad)
    with pytest.raises(BvtamError, match='tam, tsm, none'):
        temporal_op('shift', 4)
    row = torch.ones(4, 1, 1, 1)
    with pytest.raises(BvtamError, match='offsets'):
        stack_tam_weights({'tam.prev.weight': row, 'tam.next.weight': row})
    with pytest.raises(BvtamError, match='shape'):
        stack_tam_weights(
            {f'tam.{s}.weight': row[: 3 + (s == 'curr')] for s in ('prev', 'curr', 'next')}
        )
