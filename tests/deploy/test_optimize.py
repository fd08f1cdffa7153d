"""An optimised net against the net that it was made of."""

import copy

import pytest
import torch
from support.models import assert_streams, clip, random_net
from torch import Tensor, nn

import bvtam
from bvtam.deploy import fused_conv
from bvtam.deploy.fused_conv import FusedConv
from bvtam.deploy.optimize import warn_slow_bf16
from bvtam.errors import BvtamError

pytestmark = pytest.mark.interfaces

NETS = {
    'bvtam_tiny_8x2': [{}, {'temporal': 'tsm'}, {'temporal': 'none'}, {'causal': True, 'width': 32}],
    'tam_resnet18_f8': [{}, {'temporal_pool': True}],
    'tsm_resnet50_f8': [{'backbone': name} for name in (
        'test_resnet', 'regnety_002', 'convnext_atto', 'efficientnet_b0', 'mobilenetv3_small_050',
        'res2net50_14w_8s', 'resnest14d', 'seresnet18',
    )],
}  # fmt: skip
CASES = [(name, options) for name, several in NETS.items() for options in several]


@pytest.mark.parametrize(('name', 'options'), CASES, ids=str)
def test_it_gives_the_same(name, options):
    net = random_net(name, **options).float()
    fast = bvtam.optimize(net)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
    for batch, frames, height, width in ((1, 8, 64, 64), (2, 4, 50, 77)):
        x = clip(frames, height, width, batch).float()
        with torch.no_grad():
            want = net.double()(x.double())
            torch.testing.assert_close(
                fast(x).double(), want, rtol=1e-4, atol=1e-4 * want.abs().max()
            )
            net.float()


def test_in_float64_it_is_exact():
    """Where no oneDNN is: the folded convolutions as they are."""
    for name, options in CASES[:1]:
        net, x = random_net(name, **options), clip(8, 40, 48)
        with torch.no_grad():
            torch.testing.assert_close(bvtam.optimize(net)(x), net(x), rtol=1e-10, atol=1e-10)


class Foreign(nn.Module):
    """A model of a family that no module knows, in other blocks than theirs."""

    def __init__(self):
        super().__init__()
        self.in_chans = 3
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.twice = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, affine=False))
        self.strange = nn.Sequential(nn.Conv2d(8, 8, 3, padding='same'), nn.BatchNorm2d(8))

    def forward(self, x):
        frames = self.body(x.transpose(1, 2).flatten(0, 1))
        frames = self.strange(self.twice(self.twice(frames)))
        return frames.unflatten(0, (len(x), -1)).mean((1, 3, 4))


def test_a_family_that_nobody_knows(caplog):
    """What can be folded is; a module called twice or of another kind stays. Without in_chans no clip
    can be made."""
    net, x = Foreign().eval(), torch.randn(2, 3, 4, 20, 24)
    nn.init.uniform_(net.body[1].running_mean)
    fast = bvtam.optimize(net)
    assert [type(m) for m in (fast.body[0], fast.twice[1], fast.strange[1])] == [
        FusedConv, nn.BatchNorm2d, nn.BatchNorm2d,
    ]  # fmt: skip
    assert not caplog.records
    del net.in_chans
    unfused = bvtam.optimize(net)
    assert isinstance(unfused.body[0], nn.Conv2d)
    assert 'Foreign runs unfused' in caplog.text and "no attribute 'in_chans'" in caplog.text
    with torch.no_grad():
        for other in (fast, unfused):
            torch.testing.assert_close(other(x), net(x), rtol=1e-4, atol=1e-5)


def test_weights_of_three_dimensions_stay_in_their_order():
    model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), nn.Flatten()).eval()
    x = torch.randn(1, 3, 4, 8, 8)
    assert torch.allclose(bvtam.optimize(model)(x), model(x), atol=1e-5)


def test_image_models():
    net = bvtam.create_model('blresnet50', num_classes=3).eval()
    nn.init.normal_(net.fc.weight)
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(bvtam.optimize(net)(x), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['bvtam_tiny_8x2', 'tam_resnet18_f8'])
def test_the_net_itself_is_left_alone(name):
    net = random_net(name).float()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    fast, x = bvtam.optimize(net), clip(4, 32, 32).float()
    with torch.no_grad():
        fast(x)
    assert type(fast) is type(net) and fast.clip_config == net.clip_config
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(isinstance(m, FusedConv) for m in net.modules())


@pytest.mark.parametrize('has_it', [fused_conv.has_bf16(), False])
def test_bfloat16(monkeypatch, has_it):
    monkeypatch.setattr(fused_conv, 'has_bf16', lambda: has_it)
    net, x = random_net('bvtam_tiny_8x2').float(), clip(8, 64, 64).float()
    fast = bvtam.optimize(net, torch.bfloat16)
    with torch.no_grad():
        got, want = fast(x.bfloat16()), net(x)
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).abs().max() < 0.05 * want.abs().max()


def test_an_optimised_net_streams():
    net = random_net('bvtam_tiny_8x2')
    assert_streams(bvtam.optimize(net), clip(20, 48, 40))
    net = random_net('tam_resnet50_f8', backbone='test_resnet')
    assert_streams(bvtam.optimize(net), clip(9, 48, 40))


@pytest.mark.slow
def test_compiled():
    net, x = random_net('bvtam_tiny_8x2').float(), clip(8, 64, 64).float()
    with torch.no_grad():
        torch.testing.assert_close(
            bvtam.optimize(net, compile=True)(x), net(x), rtol=1e-4, atol=1e-4
        )


def test_its_state_dict_is_whole():
    """And tells nets apart, as extract does; a copy of it gives the same."""
    nets = [bvtam.optimize(random_net('bvtam_tiny_8x2', seed).float()) for seed in (0, 1)]
    states = [net.state_dict() for net in nets]
    assert states[0].keys() == states[1].keys()
    assert sum(t.numel() for t in states[0].values()) > 900_000
    for key in states[0]:
        assert not torch.equal(states[0][key], states[1][key]), key
    x = clip(4, 32, 32).float()
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(nets[0])(x), nets[0](x))


def test_a_copy_shares_nothing_that_changes():
    fast, x = bvtam.optimize(random_net('bvtam_tiny_8x2')), clip(4, 32, 32)  # no weight is packed
    with torch.no_grad():
        want = fast(x)
        copy.deepcopy(fast).float()
        assert torch.equal(fast(x), want)


def test_it_needs_no_float64_where_the_net_lies(monkeypatch):
    """As on Apple's GPUs; the meta device stands for one, and what is on the CPU may be wide."""
    net = bvtam.create_model('bvtam_tiny_8x2').eval().to('meta')
    wide, folded = [], Tensor.double
    monkeypatch.setattr(Tensor, 'double', lambda x: wide.append(x.device.type) or folded(x))
    monkeypatch.setattr(Tensor, 'cpu', lambda x: torch.zeros(x.shape))
    fast = bvtam.optimize(net)
    assert set(wide) == {'cpu'}
    assert {p.device.type for p in fast.parameters()} == {'meta'}


def test_what_cannot_be_optimised(tmp_path):
    net = bvtam.create_model('bvtam_tiny_8x2')
    with pytest.raises(BvtamError, match=r'call model.eval\(\) first'):
        bvtam.optimize(net.train())
    fast = bvtam.optimize(net.eval())
    with pytest.raises(BvtamError, match='optimised already'):
        bvtam.optimize(fast)
    with pytest.raises(BvtamError, match='stays where it is'):
        fast.to('meta')
    with pytest.raises(BvtamError, match='in its precision'):
        fast.bfloat16()
    with pytest.raises(BvtamError, match='an optimised model cannot be saved'):
        bvtam.save_pretrained(fast, tmp_path / 'net')


@pytest.mark.parametrize('has_it', [True, False])
def test_bf16_without_instructions_for_it_is_told(monkeypatch, caplog, has_it):
    monkeypatch.setattr('bvtam.deploy.optimize.has_bf16', lambda: has_it)
    warn_slow_bf16(torch.device('cpu'))
    assert ('use precision fp32' in caplog.text) is not has_it


@pytest.mark.parametrize('wide', [True, False])
def test_both_orders_of_weights_give_the_same(monkeypatch, wide):
    monkeypatch.setattr(fused_conv, '_AVX512', wide)
    net, x = random_net('bvtam_tiny_8x2').float(), clip(8, 50, 77).float()
    with torch.no_grad():
        torch.testing.assert_close(bvtam.optimize(net)(x), net(x), rtol=1e-4, atol=1e-4)
