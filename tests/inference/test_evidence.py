"""Where and when the evidence is: maps that add up to the logits, and their picture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image
from support.cli import SAMPLE, run
from support.runs import lively

import bvtam
from bvtam.data.transforms import normalize
from bvtam.errors import BvtamError


@pytest.fixture(scope='module', params=['bvtam_tiny_8x2', 'tam_resnet18_f8'])
def net(request):
    torch.manual_seed(0)
    net = bvtam.create_model(request.param, num_classes=6)
    net.label_names = [*'abcde', '$5 and _']
    net.clip_config = replace(net.clip_config, resize=64, crop_size=64, num_clips=2)
    torch.nn.init.normal_(net.get_classifier().weight, std=0.3)
    return lively(net)


def test_maps_add_up_to_the_lead_of_the_class(net):
    found = bvtam.evidence(net, SAMPLE, topk=3)
    frames = net.clip_config.num_frames
    steps = frames // 2 if found['model'].startswith('bvtam') else frames
    assert found['maps'].shape == (steps, 2, 2) and len(found['frames']) == frames
    assert found['pictures'].shape == (frames, 3, 64, 64)
    assert found['times'] == pytest.approx([index / 25 for index in found['frames']])
    clip = normalize(found['pictures'].transpose(0, 1)[None], net.clip_config)
    with torch.no_grad():
        logits = net.eval()(clip)[0]
    best = found['top'][0]['index']
    assert best == logits.argmax() and len(found['top']) == 3
    assert found['maps'].mean().item() == pytest.approx((logits[best] - logits.mean()).item(), rel=1e-4)  # fmt: skip
    assert found['maps'].flatten().std() > 0.01


def test_the_map_is_where_the_evidence_is(net):
    """Features that speak for the class in one corner and step alone light up there alone."""
    maps = bvtam.evidence(net, SAMPLE)['maps']
    place = bvtam.evidence(net, SAMPLE)['top'][0]['index']
    weight = net.get_classifier().weight.detach()
    towards = weight[place] - weight.mean(0)

    def hook(_module, _inputs, features):
        features = features * 0
        features[:, :, 1, 0, 1] = towards
        return features

    original = net.forward_features
    net.forward_features = lambda x: hook(None, None, original(x))
    try:
        lit = bvtam.evidence(net, SAMPLE)
    finally:
        del net.forward_features
    assert lit['top'][0]['index'] == place
    assert (lit['maps'] > lit['maps'].mean()).nonzero().tolist() == [[1, 0, 1]]
    assert lit['maps'].shape == maps.shape


def test_picture(net, tmp_path, capfd):
    bvtam.save_evidence(bvtam.evidence(net, SAMPLE), tmp_path / 'seen.png')
    assert Image.open(tmp_path / 'seen.png').width > 1000
    with pytest.raises(BvtamError, match='must end in .png'):
        bvtam.save_evidence({}, tmp_path / 'seen.jpg')
    folder = bvtam.save_pretrained(net, tmp_path / 'net')
    command = ('predict', SAMPLE, '--model', folder, '--evidence')
    code, _, err = run(capfd, *command, tmp_path / 'pictures')
    assert code == 0, err
    assert (tmp_path / 'pictures' / 'sample.png').exists()
    code, _, err = run(capfd, *command, 'x.png', '--every', 1)
    assert code == 2 and '--evidence is of the whole video' in err


def test_nets_without_such_maps_are_refused(net):
    with pytest.raises(BvtamError, match='has no classifier'):
        bvtam.evidence(bvtam.create_model('bvtam_tiny_8x2', num_classes=0), SAMPLE)
    for pool in ('max', 'catavgmax'):
        other = bvtam.create_model('bvtam_tiny_8x2', num_classes=3, global_pool=pool)
        lively(other).clip_config = net.clip_config
        with pytest.raises(BvtamError, match='does not average its features'):
            bvtam.evidence(other, SAMPLE)
