"""Procedural clips: what they promise about time, and that nothing else gives a class away."""

from __future__ import annotations

import csv
import pickle
from collections import Counter

import av
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import bvtam
from bvtam.data.load import load_records
from bvtam.data.motion.clips import (
    HELD_OUT_MOTIONS,
    HELD_OUT_TEXTURES,
    MOTIONS,
    SHAPES,
    TEXTURES,
    MotionClips,
    TwoLengths,
)
from bvtam.data.motion.files import sample_clip, write_videos
from bvtam.data.motion.h264 import recode, write_clip
from bvtam.data.motion.paint import uniform
from bvtam.data.motion.scene import Shots
from bvtam.data.motion.stroke import STROKES, draw_paths, paint_hands, photo
from bvtam.errors import BvtamError


def both(data, indices):
    """The clips at `indices`, and those of the partner classes."""
    clips, labels = data.render(indices)
    partners, _ = data.render(indices, [data.partner[label] for label in labels])
    return clips, partners


def chunks(clip, length):
    """How often each run of `length` frames, from a multiple of it on, occurs in (C, T, H, W)."""
    return Counter(part.numpy().tobytes() for part in clip.split(length, dim=1))


def test_uniform_is_splitmix64():
    # The first outputs for this seed, as published with the generator.
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    wanted = torch.tensor([(z >> 11) * 2.0**-53 for z in outputs], dtype=torch.float64)
    assert torch.equal(uniform(torch.tensor(1234567), 4), wanted)


@pytest.mark.parametrize('num_frames, size', [(2, 16), (8, (24, 38)), (16, 33)])
def test_a_motion_reversed_is_its_partner(num_frames, size):
    data = MotionClips(num_frames, size, motions=MOTIONS, textures=TEXTURES)
    clips, partners = both(data, range(44))
    assert torch.equal(clips.flip(2), partners)
    assert not torch.equal(clips, partners)
    assert all((a != b).any() for a, b in zip(clips, partners, strict=True))


@pytest.mark.parametrize('num_frames, size', [(2, 16), (8, (24, 38)), (16, 48)])
def test_a_stroke_reversed_is_its_partner(num_frames, size):
    data = MotionClips(num_frames, size, 'stroke', encode=1.0)
    clips, partners = both(data, range(32))
    assert torch.equal(clips.flip(2), partners)
    assert all((a != b).any() for a, b in zip(clips, partners, strict=True))


@pytest.mark.parametrize('num_frames, unit', [(4, 2), (6, 2), (8, 2), (10, 2), (16, 2), (48, 12)])
def test_two_shots_swapped_are_their_partner(num_frames, unit):
    data = MotionClips(num_frames, 16, 'order', cut_unit=unit)
    clips, partners = both(data, range(36))
    cuts = Counter()
    for clip, partner in zip(clips, partners, strict=True):
        fits = [
            cut
            for cut in range(unit, num_frames, unit)
            if torch.equal(torch.cat([clip[:, cut:], clip[:, :cut]], 1), partner)
        ]
        assert len(fits) == 1
        cuts[fits[0]] += 1
        assert chunks(clip, 2) == chunks(partner, 2)
    if len(cuts) > 1:  # neither a short nor a long first shot tells anything
        assert sorted(cuts) == sorted(num_frames - cut for cut in cuts)
    assert abs(sum(cut * n for cut, n in cuts.items()) / 36 - num_frames / 2) < num_frames / 16


def test_shots_are_independent_scenes_and_do_not_share_a_frame():
    data = MotionClips(16, 32, 'order')
    clips, _ = data.render(range(48))
    grey = clips.float().mean((1, 3, 4))
    within = (grey[:, 0] - grey[:, 5]).abs().mean()
    across = (grey[:, 0] - grey[:, 15]).abs().mean()
    assert across > 2 * within
    assert all(len(chunks(clip, 1)) == 16 for clip in clips)


def test_a_shot_does_not_know_its_place():
    # The frames of one motion's shot are the same, whichever motion comes before or after it.
    data = MotionClips(16, 32, 'order', order_motions=('right', 'grow', 'zoom_in'))
    names = data.label_names
    indices = range(12)
    a, b = (
        data.render(indices, [names.index(name)] * 12)[0]
        for name in ('right_then_grow', 'right_then_zoom_in')
    )
    assert torch.equal(a[:, :, :6], b[:, :, :6])  # 6 frames is the shortest shot
    later = data.render(indices, [names.index('grow_then_right')] * 12)[0]
    for clip, first in zip(later, a[:, :, 0], strict=True):
        assert any(torch.equal(frame, first) for frame in clip.unbind(1)[2:])


def test_clips_do_not_depend_on_their_batch():
    data = MotionClips(16, 48, 'all', textures=TEXTURES, encode=0.2)
    indices = torch.randperm(1000)[:56]
    together, labels = data.render(indices)
    alone = torch.cat(
        [data.render([i], [label])[0] for i, label in zip(indices, labels, strict=True)]
    )
    assert torch.equal(together, alone)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(data.render(indices.flip(0))[0].flip(0), together)
    finally:
        torch.set_num_threads(threads)
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again.render(indices[:3])[0], together[:3])


def test_no_two_streams_share_a_scene():
    streams = [
        MotionClips(2, 16, seed=seed, split=split).render(range(16))[0]
        for seed in (0, 1, 2**29 - 1)
        for split in ('train', 'val', 'test')
    ]
    clips = torch.cat(streams)
    assert len({clip.numpy().tobytes() for clip in clips}) == len(clips) == 144


def test_scene_is_the_same_at_any_length_and_size():
    short, long = (MotionClips(t, 32).render(range(32))[0].float() for t in (8, 16))
    near = (short[:, :, 4] - long[:, :, 8]).abs().mean()
    far = (short[:, :, 4] - long[:, :, 8].roll(1, 0)).abs().mean()
    assert near < far / 3
    large = MotionClips(8, 64).render(range(32))[0].float()
    small = torch.nn.functional.avg_pool3d(large, (1, 2, 2))
    assert (small - short).abs().mean() < far / 3


# ---- The bounds, for models


def test_pairs_seen_one_by_one_cannot_order_shots():
    data = MotionClips(16, 64, 'order')
    clips, partners = (x.float() / 128 - 1 for x in both(data, range(12)))
    torch.manual_seed(0)
    gaps = {}
    for temporal in ('none', 'tam'):
        model = bvtam.create_model('bvtam_tiny_8x2', num_classes=12, temporal=temporal)
        torch.nn.init.normal_(model.get_classifier().weight)
        for module in model.modules():  # as after training: no branch is silent
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1)
                module.momentum = 1
        with torch.no_grad():
            model.train()(clips)  # running statistics
            logits, other = model.eval()(clips), model(partners)
        gaps[temporal] = ((logits - other).abs().mean() / logits.std(0).mean()).item()
    assert gaps['none'] < 1e-4
    assert gaps['tam'] > 1e-2


def test_frames_seen_one_by_one_cannot_tell_a_motion_from_its_reverse():
    data = MotionClips(8, 24, 'all', motions=MOTIONS)  # strokes as well
    labels = torch.arange(data.num_classes)
    clips, partners = both(data, labels)
    for clip, partner in zip(clips, partners, strict=True):
        assert chunks(clip, 1) == chunks(partner, 1)
    # Order classes also hide which way each motion ran: a class, and one with both reversed.
    names = data.label_names
    right, left = (
        data.render([5], [names.index(name)])[0][0]
        for name in ('right_then_grow', 'left_then_grow')
    )
    assert chunks(right, 1) == chunks(left, 1)
    assert chunks(right, 2) != chunks(left, 2)


def test_bounds():
    assert MotionClips(family='direction').bound('frame') == 1 / 2
    assert MotionClips(family='direction').bound('pair') == 1
    order = MotionClips(family='order')  # 12 classes of right, left, grow, shrink
    # Two horizontal shots, two that change size, or one of each.
    assert order.bound('frame') == 3 / 12
    assert order.bound('pair') == 1 / 2
    four = MotionClips(family='order', order_motions=('right', 'up', 'grow', 'meet'))
    assert four.bound('frame') == four.bound('pair') == 1 / 2
    assert MotionClips(family='shapes').bound('pair') == (16 + 6) / 28
    stroke = MotionClips(family='stroke')
    assert (stroke.bound('frame'), stroke.bound('pair')) == (1 / 2, 1)
    assert MotionClips(family='all').bound('frame') == (8 + 3 + 8) / 44
    with pytest.raises(BvtamError, match='view'):
        order.bound('clip')


# ---- The bounds, for statistics: what a linear probe makes of whole batches


def probe(features, labels):
    """Accuracy, on the second half, of ridge regression fitted to the first half of (N, D)."""
    features = features.double().flatten(1)
    features = (features - features.mean(0)) / (features.std(0) + 1e-9)
    features = torch.cat([features, torch.ones(len(features), 1)], 1)
    half, sign = len(features) // 2, labels.double() * 2 - 1
    x = features[:half]
    weight = torch.linalg.solve(x.T @ x + 10 * torch.eye(x.shape[1]), x.T @ sign[:half])
    return ((features[half:] @ weight > 0) == (sign[half:] > 0)).double().mean().item()


def two_classes(first, second, family='direction', count=1000, **options):
    data = MotionClips(8, 24, family, **options)
    labels = torch.arange(count) % 2
    wanted = torch.tensor([data.label_names.index(first), data.label_names.index(second)])
    parts = [
        data.render(range(i, i + 100), wanted[labels[i : i + 100]])[0] for i in range(0, count, 100)
    ]
    return torch.cat(parts).float(), labels


CHANCE = 0.08  # more than 3.5 standard deviations of the accuracy over 500 clips


@pytest.mark.parametrize(
    'first, second, family',
    [
        ('right', 'left', 'direction'),
        ('grow', 'shrink', 'direction'),
        ('appear', 'vanish', 'direction'),
        ('zoom_in', 'zoom_out', 'direction'),
        ('right_then_grow', 'grow_then_right', 'order'),
        ('swipe_right', 'swipe_left', 'stroke'),
        ('circle_clockwise', 'circle_anticlockwise', 'stroke'),
        ('tick', 'tick_reversed', 'stroke'),
    ],
)
def test_averaged_frame_statistics_stay_at_chance(first, second, family):
    clips, labels = two_classes(first, second, family)
    pictures = torch.nn.functional.avg_pool3d(clips, (1, 6, 6)).mean(2).flatten(1)
    shares = torch.stack(
        [((clips >= g) & (clips < g + 32)).float().mean((2, 3, 4)) for g in range(0, 256, 32)], 1
    )
    moments = torch.cat([clips.mean((3, 4)).mean(2), clips.std((3, 4)).mean(2)], 1)
    features = torch.cat([pictures, shares.flatten(1), moments], 1)
    assert abs(probe(features, labels) - 0.5) < CHANCE


def test_no_drift_of_light_or_noise_gives_a_class_away():
    clips, labels = two_classes('right', 'left')
    assert abs(probe(clips.mean((1, 3, 4)), labels) - 0.5) < CHANCE
    noise = (clips[..., 1:] - clips[..., :-1]).abs().mean((1, 3, 4))
    assert abs(probe(noise, labels) - 0.5) < CHANCE
    clips, labels = two_classes('right_then_grow', 'grow_then_right', 'order')
    assert abs(probe(clips.mean((1, 3, 4)), labels) - 0.5) < CHANCE
    # Neither when the hand comes in and goes.
    clips, labels = two_classes('swipe_right', 'swipe_left', 'stroke')
    assert abs(probe(clips.mean((1, 3, 4)), labels) - 0.5) < CHANCE
    shape = clips.std((3, 4)).mean(1)
    assert abs(probe(shape, labels) - 0.5) < CHANCE


def test_the_probe_finds_what_is_there():
    clips, labels = two_classes('appear', 'vanish')
    contrast = clips.std((3, 4)).mean(1)
    assert probe(contrast, labels) > 0.5 + 2 * CHANCE
    # And the size of what is seen, frame by frame, shows where the camera went.
    clips, labels = two_classes('zoom_in', 'zoom_out')
    assert probe((clips[..., 1:] - clips[..., :-1]).abs().mean((1, 3, 4)), labels) > 0.5 + CHANCE


@pytest.mark.parametrize(
    'motion, axis',
    [('right', 0), ('down', 1), ('pan_right', 0), ('zoom_in', 2), ('roll_clockwise', 3)],
)
def test_motions_go_where_their_names_say(motion, axis):
    # Least squares for the shift, growth and turn that explain the change between two frames.
    data = MotionClips(16, 32, motions=MOTIONS)
    clips, _ = data.render(range(64), [data.label_names.index(motion)] * 64)
    grey = clips.double().mean(1)
    now, change = (grey[:, 1:] + grey[:, :-1]) / 2, grey[:, 1:] - grey[:, :-1]
    dx = (now[:, :, 1:-1, 2:] - now[:, :, 1:-1, :-2]) / 2
    dy = (now[:, :, 2:, 1:-1] - now[:, :, :-2, 1:-1]) / 2
    change = change[:, :, 1:-1, 1:-1]
    y, x = torch.meshgrid(torch.arange(30.0) - 14.5, torch.arange(30.0) - 14.5, indexing='ij')
    flows = [dx, dy, x * dx + y * dy, x * dy - y * dx]
    design = -torch.stack([flow.flatten() for flow in flows], 1)
    found = torch.linalg.lstsq(design, change.flatten()[:, None]).solution[:, 0]
    found = found * torch.tensor([1, 1, 10, 10])  # pixels per frame, at 10 pixels from the middle
    assert found[axis] > 0
    assert found.abs().argmax() == axis


def turning(path):
    """By how many turns a path (S, N) goes round, clockwise as seen on a screen."""
    step = path[:, 1:] - path[:, :-1]
    return (step[:, 1:] / step[:, :-1]).angle().sum(1) / (2 * torch.pi)


def test_strokes_go_where_their_names_say():
    names = [forward for forward, _ in STROKES]
    keys = torch.arange(400)

    def drawn(name):
        pairs = torch.full_like(keys, names.index(name))
        return draw_paths(Shots(keys, pairs))[0][:, ::5]

    for name, way in (('swipe_right', 1), ('swipe_down', 1j), ('tick', 1), ('caret', 1)):
        path = drawn(name)
        assert ((path[:, -1] - path[:, 0]) / way).real.gt(0).double().mean() > 0.95, name
    middle = drawn('caret')  # up, then down
    assert (middle[:, 10] - middle[:, 0]).imag.mean() < -0.2
    assert (middle[:, -1] - middle[:, 10]).imag.mean() > 0.2
    assert turning(drawn('circle_anticlockwise')).median() < -0.8
    assert turning(drawn('square_clockwise')).median() > 0.6


def test_hands_look_as_different_as_hands_do():
    hands, arms = paint_hands(torch.arange(200), 48)
    assert hands.shape == arms.shape == (200, 4, 48, 48)
    cover = hands[:, 3]
    assert ((cover >= 0) & (cover <= 1)).all() and (cover.mean((1, 2)) > 0.1).all()
    colour = (hands[:, :3] * cover[:, None]).sum((2, 3)) / (cover**2).sum((1, 2))[:, None]
    light = colour.mean(1).sort().values
    assert light[10] < 80 < 180 < light[-10]


def test_backgrounds_look_as_photographs_do(benchmark):
    pictures = photo(torch.arange(40), 96).mean(1)
    # The power of photographs falls with about the square of the frequency.
    power = torch.fft.rfft2(pictures - pictures.mean((1, 2), keepdim=True)).abs().square()
    at = torch.tensor([3, 6, 12, 24])
    slope = (power[:, 0, at[1:]].mean(0) / power[:, 0, at[:-1]].mean(0)).log2()
    assert (slope > -3.5).all() and (slope < -0.8).all(), slope
    # Between the 20th and the 80th percentile of real frames, as this program prints them. Without the
    # leaves there is as much contrast, but a fifth of the second difference.
    least, most = torch.tensor([[35.8, 4.7, 5.4], [63.0, 15.9, 19.7]])
    found = benchmark('contrast').statistics(photo(torch.arange(200), 102)).median(1).values
    assert ((least < found) & (found < most)).all(), found


# ---- Settings


def test_labels():
    data = MotionClips(family='shapes')
    assert data.num_classes == len(data.label_names) == len(set(data.label_names)) == 28
    every = MotionClips(family='all').label_names
    assert len(every) == 44
    assert set(every) - set(data.label_names) == set(MotionClips(family='stroke').label_names)
    assert data.label_names == sorted(data.label_names)
    assert set(MotionClips().label_names) == set(MOTIONS[:16]) < set(data.label_names)
    right, left = data.label_names.index('right'), data.label_names.index('left')
    assert data.partner[right] == left
    for label, partner in enumerate(data.partner):
        assert data.partner[partner] == label != partner
    swap = data.label_names.index('grow_then_left')
    assert data.label_names[data.partner[swap]] == 'left_then_grow'
    _, labels = data.render(range(100, 156))
    assert (labels.bincount() == 2).all()
    more = MotionClips(4, 16, 'all', strokes=3)
    counts = more.render(range(2 * (44 + 2 * 16)))[1].bincount()
    drawn = torch.tensor([name in MotionClips(family='stroke').label_names for name in every])
    assert (counts == torch.where(drawn, 6, 2)).all()


def test_held_out_is_never_trained_on():
    seen, new = MotionClips(family='shapes'), MotionClips(family='shapes', held_out=True)
    assert not {part for name in seen.label_names for part in name.split('_then_')} & {
        part for name in new.label_names for part in name.split('_then_')
    }
    assert len(HELD_OUT_MOTIONS) == 6 and not set(seen.textures) & set(HELD_OUT_TEXTURES)
    assert new.textures == list(HELD_OUT_TEXTURES)
    assert set(seen.textures) | set(new.textures) == set(TEXTURES)


@pytest.mark.parametrize('option, names', [('textures', TEXTURES), ('shapes', SHAPES)])
def test_every_texture_and_shape_is_one_of_its_own(option, names):
    pictures = [
        MotionClips(2, 48, **{option: [name]}).render([3], [0])[0].float() for name in names
    ]
    for i, a in enumerate(pictures):
        for b in pictures[:i]:
            assert (a - b).abs().mean() > 0.5


@pytest.mark.parametrize(
    'options, message',
    [
        ({'num_frames': 7}, 'even'),
        ({'num_frames': 0}, 'num_frames'),
        ({'size': 8}, 'size'),
        ({'size': 17, 'encode': 1.0}, 'H.264'),
        ({'family': 'orders'}, 'family'),
        ({'split': 'training'}, 'split'),
        ({'seed': -1}, 'seed'),
        ({'seed': 2**29}, 'seed'),
        ({'encode': 2}, 'encode'),
        ({'motions': ['left']}, "its reverse 'right'"),
        ({'motions': ['left', 'rihgt']}, 'did you mean right'),
        ({'textures': []}, 'textures'),
        ({'shapes': ['disc', 'disc']}, 'each once'),
        ({'family': 'order', 'order_motions': ['left']}, 'two motions'),
        ({'family': 'order', 'num_frames': 2}, 'cut_unit'),
        ({'family': 'order', 'cut_unit': 6}, 'cut_unit'),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(BvtamError, match=message):
        MotionClips(**options)


def test_indices_and_labels_that_cannot_be():
    data = MotionClips(2, 16)
    for arguments in (([-1],), ([2**32],), ([0], [16]), ([0], [-1]), ([0, 1], [0])):
        with pytest.raises(BvtamError):
            data.render(*arguments)
    with pytest.raises(IndexError):
        data[len(data)]
    clips, labels = data.render([])
    assert clips.shape == (0, 3, 2, 16, 16) and labels.shape == (0,)


def test_a_loader_with_workers_gives_the_rendered_clips_of_its_epoch():
    data = MotionClips(4, 16, length=20)
    loader = DataLoader(data, batch_size=8, num_workers=1, persistent_workers=True)
    for epoch in (0, 3):
        data.set_epoch(epoch)
        batches = list(loader)
        clips, labels = data.render(range(20 * epoch, 20 * epoch + 20))
        assert torch.equal(torch.cat([batch['clip'] for batch in batches]), clips)
        assert torch.equal(torch.cat([batch['label'] for batch in batches]), labels)
        assert torch.cat([batch['index'] for batch in batches]).tolist() == list(range(20))
    assert data[7]['label'] == labels[7] and torch.equal(data[7]['clip'], clips[7])


# ---- H.264


def test_coding_has_no_direction_of_time():
    clip = MotionClips(8, 32).render([0])[0][0]
    coded = recode(clip, quantiser=30)
    assert torch.equal(recode(clip.flip(1), quantiser=30).flip(1), coded)
    assert torch.equal(recode(clip[:, 2:3], quantiser=30), coded[:, 2:3])
    assert 0.5 < (coded.float() - clip).abs().mean() < 20
    data = MotionClips(8, 32, 'all', encode=0.5)
    clips, partners = both(data, range(28))
    plain = MotionClips(8, 32, 'all').render(range(28))[0]
    changed = (clips != plain).flatten(1).any(1)
    assert 5 < changed.sum() < 23
    for clip, partner in zip(clips, partners, strict=True):
        assert chunks(clip, 2) == chunks(partner, 2) or torch.equal(clip.flip(1), partner)


def frames_of(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == 'h264'
        frames = [frame.to_ndarray(format='rgb24') for frame in container.decode(stream)]
        return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2), float(stream.average_rate)


def test_a_written_file_has_no_direction_of_time(tmp_path):
    clip = MotionClips(8, 32).render([0])[0][0]
    forwards, _ = frames_of(write_clip(tmp_path / 'a.mp4', clip))
    backwards, _ = frames_of(write_clip(tmp_path / 'b.mp4', clip.flip(1)))
    assert torch.equal(forwards.flip(1), backwards)


def test_written_videos(tmp_path):
    data = MotionClips(8, 32, split='val')
    out = tmp_path / 'motion'
    paths = list(write_videos(data, out, 20, fps=12.5, quantiser=10))
    clips, labels = data.render(range(20))
    assert [path.parent for path in paths] == [
        out / 'val' / data.label_names[label] for label in labels
    ]
    for path, clip in zip(paths, clips, strict=True):
        frames, fps = frames_of(path)
        assert fps == 12.5 and frames.shape == clip.shape
        assert (frames.float() - clip).abs().mean() < 12
    records, names = load_records(out / 'val.csv')
    assert names == data.label_names and [record.label for record in records] == labels.tolist()
    rows = list(csv.reader((out / 'val.csv').open()))
    assert rows[0] == ['video', 'label']
    assert [(out / video, label) for video, label in rows[1:]] == [
        (path, path.parent.name) for path in paths
    ]
    assert not [path for path in out.rglob('*') if path.name.startswith('.')]


def test_videos_of_clips_with_more_strokes_have_the_labels_of_the_clips(tmp_path):
    data = MotionClips(4, 16, 'all', strokes=2, split='val')
    paths = list(write_videos(data, tmp_path, 59))  # 44 classes, then strokes again
    labels = data.render(range(59))[1].tolist()
    assert [path.parent.name for path in paths] == [data.label_names[i] for i in labels]
    with pytest.raises(BvtamError, match='tells of other settings'):
        next(write_videos(MotionClips(4, 16, 'all', split='val'), tmp_path, 59))


def test_writing_goes_on_where_it_was(tmp_path):
    data = MotionClips(4, 16)
    written = write_videos(data, tmp_path, 6)
    first, second = next(written), next(written)
    written.close()  # as when the program is stopped
    assert not (tmp_path / 'train.csv').exists()
    kept, content = first.stat().st_mtime_ns, second.read_bytes()
    second.unlink()
    paths = list(write_videos(data, tmp_path, 6))
    assert first.stat().st_mtime_ns == kept and second.read_bytes() == content
    assert len(paths) == len(set(paths)) == 6 and all(path.exists() for path in paths)
    with pytest.raises(BvtamError, match='other settings'):
        next(write_videos(MotionClips(4, 16, seed=1), tmp_path, 6))
    with pytest.raises(BvtamError, match='other settings'):
        next(write_videos(data, tmp_path, 6, gop=8))
    with pytest.raises(BvtamError, match='even height'):
        next(write_videos(MotionClips(4, 17), tmp_path / 'odd', 1))
    assert not (tmp_path / 'odd').exists()
    foreign = tmp_path / 'foreign'
    (foreign / 'train' / 'cats').mkdir(parents=True)
    with pytest.raises(BvtamError, match='is not of this command'):
        next(write_videos(data, foreign, 6))
    blocked = tmp_path / 'file'
    blocked.write_text('')
    with pytest.raises(BvtamError, match='cannot be written'):
        next(write_videos(data, blocked, 1))


def test_a_smaller_count_tells_of_what_stays(tmp_path, caplog):
    data = MotionClips(4, 16)
    list(write_videos(data, tmp_path, 6))
    list(write_videos(data, tmp_path, 6))
    assert not caplog.records
    list(write_videos(data, tmp_path, 4))
    assert '2 videos of an earlier, larger count stay' in caplog.text


def test_the_length_of_a_clip_does_not_tell_its_class():
    both = TwoLengths(MotionClips(8, 16, family='all'))
    samples = (both[i] for i in range(44 * 16))
    counts = Counter((sample['label'], sample['clip'].shape[1]) for sample in samples)
    assert set(counts) == {(label, length) for label in range(44) for length in (4, 8)}


def test_sample_clip(tmp_path):
    path = sample_clip(tmp_path / 'sample.mp4')
    frames, fps = frames_of(path)
    assert frames.shape == (3, 100, 240, 320) and fps == 25
    assert path.stat().st_size < 150_000
