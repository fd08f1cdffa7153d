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
from bvtam.inference import evidence as room


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


def test_motion_adds_up_to_the_lead_over_a_still_clip_and_is_where_something_moves(
    net, monkeypatch
):
    monkeypatch.setattr(room, '_STEPS', 64)  # noise wants many
    frames = net.clip_config.num_frames
    torch.manual_seed(0)
    video = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8).repeat(frames, 1, 1, 1)
    video[:, :, 10:30, 20:40] = torch.randint(0, 256, (frames, 3, 20, 20), dtype=torch.uint8)
    found = bvtam.evidence(net, video)
    moves = torch.zeros(64, 64, dtype=torch.bool)
    moves[10:30, 20:40] = True
    assert found['motion'].shape == (frames, 64, 64)
    strength = found['motion'].abs().amax(0)
    assert strength[~moves].max() < 1e-3 * strength[moves].median()
    clip = normalize(video.transpose(0, 1)[None], net.clip_config)
    with torch.no_grad():
        logits = net.eval()(torch.cat([clip, clip.mean(2, keepdim=True).expand_as(clip)]))
    leads = logits[:, found['top'][0]['index']] - logits.mean(1)
    assert found['motion'].sum().item() == pytest.approx((leads[0] - leads[1]).item(), rel=0.1)
    fast = bvtam.evidence(bvtam.optimize(net), video)['motion']
    both = torch.stack([fast.flatten(), found['motion'].flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.999


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
