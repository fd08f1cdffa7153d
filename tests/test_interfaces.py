"""What other libraries do not document is tried before it is used, and done without where it is gone."""

from types import SimpleNamespace

import av
import pytest
import torch

import bvtam
from bvtam.data.video import pyav
from bvtam.deploy import fused_conv as room

pytestmark = pytest.mark.interfaces

OPERATORS = tuple(room.ARGUMENTS)


class Without:
    """torch.ops.mkldnn with one operator gone, or one that gives something else."""

    def __init__(self, name, replacement=None):
        self.name, self.replacement, self.real = name, replacement, torch.ops.mkldnn

    def __getattr__(self, name):
        if name != self.name:
            return getattr(self.real, name)
        if self.replacement is None:
            raise AttributeError(f"'_OpNamespace' 'mkldnn' object has no attribute '{name}'")
        return self.replacement


class Wrong:
    """An operator that doubles its answer."""

    def __init__(self, operator):
        self.operator = operator

    def __getattr__(self, name):
        return getattr(self.operator, name)

    def __call__(self, *args):
        return 2 * self.operator(*args)


@pytest.fixture
def fresh():
    room.operators_work.cache_clear()
    yield
    room.operators_work.cache_clear()


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return bvtam.create_model('bvtam_tiny_8x2', num_classes=5).eval()


def packed(model):
    return [m for m in model.modules() if getattr(m, 'packed', None) is not None]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason='torch without oneDNN')
def test_operators_that_work_are_used(model, fresh, caplog):
    state = torch.random.get_rng_state()
    assert packed(bvtam.optimize(model))
    assert not caplog.records
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_operators_of_this_torch_take_what_is_given_to_them():
    assert room.changed_operators() == []


def test_a_changed_operator_is_named(monkeypatch):
    def operator(*names, default=False):
        arguments = [
            SimpleNamespace(name=name, has_default_value=lambda: default) for name in names
        ]
        return SimpleNamespace(
            default=SimpleNamespace(_schema=SimpleNamespace(arguments=arguments))
        )

    for new, lines in (
        (None, ['_reorder_linear_weight is missing']),
        (operator('weight'), ['_reorder_linear_weight takes (weight), not (self)']),
        (operator('self', 'x'), ['_reorder_linear_weight takes (self, x), not (self)']),
        (operator('self', 'x', default=True), []),
    ):
        monkeypatch.setattr(room, '_mkldnn', Without('_reorder_linear_weight', new))
        assert room.changed_operators() == lines
        monkeypatch.undo()


@pytest.mark.parametrize('kind', ['missing', 'wrong', 'changed'])
@pytest.mark.parametrize('name', OPERATORS)
def test_without_an_operator_the_folded_convolutions_run(
    model, fresh, caplog, monkeypatch, name, kind
):
    if not torch.backends.mkldnn.is_available():
        pytest.skip('torch without oneDNN')
    real = getattr(torch.ops.mkldnn, name)
    other = {'missing': None, 'wrong': Wrong(real), 'changed': lambda: real()}[kind]
    if name.startswith('_reorder') and kind == 'wrong':
        # In the order that torch asks for, of other weights.
        other = lambda weight, *rest: real(2 * weight, *rest)  # noqa: E731
        other.default = real.default
    if name == '_reorder_convolution_weight' and not room._AVX512:
        monkeypatch.setattr(room, '_AVX512', True)  # where it is used
    monkeypatch.setattr(room, '_mkldnn', Without(name, other))
    clip = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        for _ in range(2):
            fast = bvtam.optimize(model)
            assert not packed(fast)
            torch.testing.assert_close(fast(clip), model(clip), rtol=1e-4, atol=1e-5)
    (record,) = caplog.records
    assert 'plain convolutions' in record.getMessage()


def test_a_processor_that_does_not_tell_has_no_bf16(monkeypatch):
    monkeypatch.setattr(room, '_mkldnn', Without('_is_mkldnn_bf16_supported'))
    assert room.has_bf16() is False


def test_the_option_of_av_open_that_later_releases_do_not_know(monkeypatch):
    def later(source, format=None, options=None, timeout=None):
        return source

    def earlier(source, metadata_errors='strict', **options):
        if not source:
            raise av.FileNotFoundError(2, 'No such file or directory', source)
        return metadata_errors

    for release, result in ((later, 'a'), (earlier, 'ignore')):
        pyav._metadata_may_raise.cache_clear()
        monkeypatch.setattr(av, 'open', release)
        assert pyav.open_container('a', timeout=1) == result
    pyav._metadata_may_raise.cache_clear()


def test_an_index_that_is_not_told():
    assert pyav.num_indexed(SimpleNamespace()) is None
    assert pyav.num_indexed(SimpleNamespace(index_entries=[1, 2])) == 2
