"""Transforms against plain references and PIL, which the authors resize with."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.video import R3D_18_Weights
from torchvision.transforms import v2

from bvtam.clip import ClipConfig
from bvtam.data.transforms import TrainTransform, flip_label_map, normalize, to_clip, to_crops
from bvtam.errors import BvtamError

PIL_FILTERS = {'bilinear': Image.BILINEAR, 'bicubic': Image.BICUBIC}
EVERYTHING = {'color_jitter': 0.5, 'rand_augment': 3, 'random_erasing': 1.0}


def noise(*shape):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_frames_of_the_right_size_are_not_resized():
    frames = torch.randint(0, 256, (2, 3, 20, 31), dtype=torch.uint8)
    config = ClipConfig(resize=20, crop_size=20, num_crops=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    out = to_clip(frames, config)
    # 5.5 is rounded to even, as CenterCrop does.
    for view, left in zip(out, (0, 6, 11), strict=True):
        wanted = frames[..., left : left + 20].transpose(0, 1)
        assert torch.equal((view * 255).round().to(torch.uint8), wanted)


def test_to_clip_names_what_does_not_fit():
    config = ClipConfig(resize=8, crop_size=8)
    with pytest.raises(BvtamError, match=r'uint8 tensor \(T, C, H, W\), not torch.float32'):
        to_clip(torch.zeros(2, 3, 8, 8), config)
    with pytest.raises(BvtamError, match=r'not torch.uint8 \(3, 8, 8\)'):
        to_clip(torch.zeros(3, 8, 8, dtype=torch.uint8), config)
    with pytest.raises(BvtamError, match=r'clip\.mean has 3 channels, but the frames have 1'):
        to_clip(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), config)
    with pytest.raises(BvtamError, match=r'uint8 tensor \(\.\.\., C, T, H, W\), not torch.float32'):
        normalize(torch.zeros(3, 2, 8, 8), config)
    with pytest.raises(BvtamError, match=r'clip\.mean has 3 channels, but the frames have 2'):
        normalize(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), config)


def test_five_crops_are_torchvisions_and_ten_are_mirrored_too():
    frames = noise(2, 3, 21, 32)
    config = ClipConfig(resize=21, crop_size=16, num_crops=5, flip=True)
    crops = to_crops(frames, config)
    wanted = torch.stack(v2.functional.five_crop(frames, [16, 16])).transpose(1, 2)
    assert torch.equal(crops, wanted) and crops.is_contiguous()
    assert torch.equal(to_crops(frames, replace(config, flip=False)), wanted)
    ten = to_crops(frames, replace(config, num_crops=10))
    assert torch.equal(ten, torch.cat([wanted, wanted.flip(-1)])) and ten.is_contiguous()


def test_mirrored_crops_need_labels_that_may_be_mirrored():
    with pytest.raises(BvtamError, match='clip.num_crops 10 mirrors clips, which clip.flip false'):
        ClipConfig(num_crops=10)
    with pytest.raises(BvtamError, match='num_crops must be one of 1, 3, 5, 10, not 4'):
        ClipConfig(num_crops=4)
    config = ClipConfig(num_crops=10, flip=True)
    assert ClipConfig.from_dict(config.to_dict()) == config


def pil_resized(frame, box, size, interpolation):
    """(C, H, W) frame, its box (top, left, height, width) by PIL at size (height, width)."""
    top, left, height, width = box
    picture = Image.fromarray(frame.permute(1, 2, 0).numpy())
    picture = picture.crop((left, top, left + width, top + height))
    picture = picture.resize(size[::-1], PIL_FILTERS[interpolation])
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def grey_levels(a, b):
    return (a.int() - b.int()).abs().float().mean()


@pytest.mark.parametrize('interpolation', PIL_FILTERS)
@pytest.mark.parametrize('height, width', [(256, 340), (480, 270), (100, 132), (224, 401)])
@pytest.mark.parametrize('num_crops', [1, 3])
def test_to_clip_is_pils_resize_and_crop_normalised(interpolation, height, width, num_crops):
    frames = noise(2, 3, height, width)
    config = ClipConfig(
        resize=256,
        crop_size=224,
        num_crops=num_crops,
        interpolation=interpolation,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.25, 0.3),
    )
    out = to_clip(frames, config)
    assert out.shape == (num_crops, 3, 2, 224, 224)
    assert out.dtype == torch.float32 and out.is_contiguous()
    short = min(height, width)
    new_h, new_w = 256 * height // short, 256 * width // short
    whole = torch.stack(
        [pil_resized(f, (0, 0, height, width), (new_h, new_w), interpolation) for f in frames]
    )
    top, left = round((new_h - 224) / 2), round((new_w - 224) / 2)
    if num_crops == 1:
        corners = [(top, left)]
    elif width > height:
        corners = [(top, 0), (top, left), (top, new_w - 224)]
    else:
        corners = [(0, left), (top, left), (new_h - 224, left)]
    mean, std = (torch.tensor(v)[:, None, None, None] for v in (config.mean, config.std))
    for view, (y, x) in zip(out, corners, strict=True):
        wanted = whole[..., y : y + 224, x : x + 224].transpose(0, 1)
        levels = (255 * (view * std + mean) - wanted).abs()
        # A weight rounded to 16 bits may decide between two levels, along either side.
        assert levels.max() < 2.01 and levels.mean() < 0.1


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_the_layout_of_the_frames_changes_nothing(layout):
    frames = noise(3, 3, 50, 70)
    config = ClipConfig(resize=40, crop_size=32, flip=True)
    crops = to_crops(frames.contiguous(memory_format=layout), config)
    view, _ = TrainTransform(config)(frames.contiguous(memory_format=layout), 0, seeded(1))
    assert torch.equal(crops, to_crops(frames, config)) and crops.is_contiguous()
    assert torch.equal(view, TrainTransform(config)(frames, 0, seeded(1))[0])
    assert view.is_contiguous()


@pytest.mark.parametrize('shape', [(3, 2, 5, 7), (2, 3, 2, 5, 7), (4, 2, 3, 2, 5, 7)])
def test_normalize_is_torchvisions(shape):
    crops, config = noise(*shape), ClipConfig()
    images = v2.functional.to_dtype(crops.movedim(-4, -3), torch.float32, scale=True)
    wanted = v2.functional.normalize(images, config.mean, config.std).movedim(-3, -4)
    before = crops.clone()
    torch.testing.assert_close(normalize(crops, config), wanted, atol=1e-6, rtol=0)
    assert torch.equal(crops, before)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        out = normalize(crops, config, dtype)
        assert out.dtype == dtype and out.shape == crops.shape
        # Rounded once: half a unit in the last place, but for ties that float32 decides.
        torch.testing.assert_close(
            out.double(), wanted.double(), atol=1e-6, rtol=0.51 * torch.finfo(dtype).eps
        )
    assert normalize(crops.to('meta'), config).device.type == 'meta'


def multi_scale_boxes(height, width, size):
    """{(top, left, height, width)} of GroupMultiScaleCrop, written out."""
    short = min(height, width)
    sides = [int(short * 1), int(short * 0.875), int(short * 0.75), int(short * 0.66)]
    sides = [size if abs(side - size) < 3 and size <= short else side for side in sides]
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 2), (3, 3)]
    boxes = set()
    for i, j in pairs:
        h, w = sides[i], sides[j]
        y, x = (height - h) // 4, (width - w) // 4
        places = {
            'corners': [(0, 0), (0, 4 * x), (4 * y, 0), (4 * y, 4 * x)],
            'centre': [(2 * y, 2 * x)],
            'middles of the sides': [(2 * y, 0), (2 * y, 4 * x), (0, 2 * x), (4 * y, 2 * x)],
            'quarters': [(y, x), (y, 3 * x), (3 * y, x), (3 * y, 3 * x)],
        }
        assert sum(map(len, places.values())) == 13
        boxes |= {(*place, h, w) for kind in places.values() for place in kind}
    return boxes


# Of 46 pixels, the sides 34 and 30 are taken for 32; of 31 pixels, 31 is not.
@pytest.mark.parametrize('height, width, size', [(40, 56, 16), (61, 46, 32), (31, 45, 32)])
def test_multi_scale_crops_are_the_authors_at_all_places(height, width, size):
    frame = noise(1, 3, height, width)
    boxes = multi_scale_boxes(height, width, size)
    views = {}
    for box in boxes:
        view = v2.functional.resized_crop(frame, *box, [size, size], antialias=True)[0]
        assert grey_levels(view, pil_resized(frame[0], box, (size, size), 'bilinear')) < 0.1
        views[view.numpy().tobytes()] = box
    assert len(views) == len(boxes) > 70
    transform = TrainTransform(ClipConfig(resize=size, crop_size=size))
    generator = seeded(0)
    drawn = (transform(frame, 0, generator)[0][:, 0].numpy().tobytes() for _ in range(1800))
    assert {views[view] for view in drawn} == boxes


@pytest.mark.parametrize('interpolation', PIL_FILTERS)
def test_multi_scale_crops_of_videos_are_resized_as_by_pil(interpolation):
    frame = noise(1, 3, 256, 340)
    config = ClipConfig(interpolation=interpolation)
    boxes = multi_scale_boxes(256, 340, 224)
    for seed in range(3):
        view = TrainTransform(config)(frame, 0, seeded(seed))[0][:, 0]
        near = [b for b in boxes if grey_levels(view, pil_resized(frame[0], b, (224, 224), interpolation)) < 0.1]  # fmt: skip
        assert len(near) == 1


def test_center_is_the_test_view_and_random_crops_are_of_its_scale():
    frames = noise(2, 3, 20, 23)
    config = ClipConfig(resize=20, crop_size=16, num_crops=3)
    view, _ = TrainTransform(config, 'center')(frames, 0, seeded(0))
    assert torch.equal(view, to_crops(frames, config)[1])
    places = {
        frames[..., y : y + 16, x : x + 16].transpose(0, 1).numpy().tobytes(): (y, x)
        for y in range(5)
        for x in range(8)
    }
    transform, generator = TrainTransform(config, 'random'), seeded(0)
    drawn = {places[transform(frames, 0, generator)[0].numpy().tobytes()] for _ in range(500)}
    assert len(drawn) == 40


def test_random_resized_crops_keep_to_scale_and_ratio():
    # The grey levels of a ramp say where the crop lies: 2 per column and 2 per row.
    ramp = torch.arange(120, dtype=torch.uint8) * 2
    frames = torch.stack([ramp.repeat(90, 1), ramp[:90, None].repeat(1, 120)])[None]
    config = ClipConfig(resize=60, crop_size=60, mean=(0.5, 0.5), std=(1, 1))
    transform = TrainTransform(config, 'random_resized', scale=(0.2, 0.5), ratio=(0.5, 2.0))
    shares, ratios = [], []
    for seed in range(150):
        view = transform(frames, 0, seeded(seed))[0][:, 0].float()
        # 59/60 of the way lies between the outer pixels' centres.
        width, height = ((c.max() - c.min()) / 2 * 60 / 59 for c in view)
        shares.append(width * height / 90 / 120)
        ratios.append(width / height)
    assert 0.17 < min(shares) < 0.23 and 0.45 < max(shares) < 0.53
    assert 0.45 < min(ratios) < 0.6 and 1.65 < max(ratios) < 2.2


@pytest.mark.parametrize('crop', ['multi_scale', 'random_resized', 'random', 'center'])
@pytest.mark.parametrize('height, width', [(1, 1), (3, 50), (90, 20)])
def test_small_frames_are_scaled_up(crop, height, width):
    transform = TrainTransform(ClipConfig(resize=36, crop_size=32), crop, **EVERYTHING)
    for seed in range(5):
        view, label = transform(noise(2, 3, height, width), 4, seeded(seed))
        assert view.shape == (3, 2, 32, 32) and view.dtype == torch.uint8 and label == 4
        assert view.is_contiguous()


@pytest.mark.parametrize('crop', ['multi_scale', 'random_resized', 'random'])
def test_all_frames_share_one_draw(crop):
    frames = noise(1, 3, 40, 56).expand(5, -1, -1, -1)
    transform = TrainTransform(ClipConfig(resize=36, crop_size=32, flip=True), crop, **EVERYTHING)
    views = [transform(frames, 0, seeded(seed))[0] for seed in range(20)]
    assert all(torch.equal(view, view[:, :1].expand_as(view)) for view in views)
    assert len({view.numpy().tobytes() for view in views}) == 20


def test_the_generator_alone_decides_and_nothing_else_moves():
    frames = noise(2, 3, 40, 56)
    config = ClipConfig(resize=36, crop_size=32, flip=True)
    for crop in ('multi_scale', 'random_resized', 'random'):
        transform = TrainTransform(config, crop, **EVERYTHING)
        first = [transform(frames, 0, seeded(seed))[0] for seed in range(5)]
        torch.manual_seed(3), random.seed(3), np.random.seed(3)
        states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
        transform = pickle.loads(pickle.dumps(transform))  # as into a loader's process
        again = [transform(frames, 0, seeded(seed))[0] for seed in range(5)]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1] and str(np.random.get_state()) == states[2]
        # The generator goes on, also from one clip to the next.
        generator = seeded(0)
        assert torch.equal(transform(frames, 0, generator)[0], first[0])
        assert not torch.equal(transform(frames, 0, generator)[0], first[0])


def test_the_generators_of_accelerators_are_not_seeded(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', lambda *_: 1 / 0)
    TrainTransform(ClipConfig(), **EVERYTHING)(noise(1, 3, 8, 8), 0, seeded(0))


def test_an_error_inside_leaves_the_global_generator_as_it_was(monkeypatch):
    state = torch.get_rng_state()
    monkeypatch.setattr(TrainTransform, '_box', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        TrainTransform(ClipConfig())(noise(1, 3, 8, 8), 0, seeded(0))
    assert torch.equal(torch.get_rng_state(), state)


def mirrored(transform, label, draws=60):
    """Labels of the views that came mirrored, and of those that did not."""
    frames, generator = noise(2, 3, 16, 16), seeded(0)
    found = {True: [], False: []}
    for _ in range(draws):
        view, label_after = transform(frames, label, generator)
        flipped = not torch.equal(view, frames.transpose(0, 1))
        assert torch.equal(view.flip(-1) if flipped else view, frames.transpose(0, 1))
        found[flipped].append(label_after)
    return found[True], found[False]


def test_clips_are_mirrored_where_their_labels_allow_it():
    config = ClipConfig(resize=16, crop_size=16)
    yes, no = mirrored(TrainTransform(replace(config, flip=True), 'center'), 5)
    assert 15 <= len(yes) <= 45 and set(yes + no) == {5}
    assert mirrored(TrainTransform(config, 'center'), 5) == ([], [5] * 60)

    for flip in (False, True):
        pairs = TrainTransform(replace(config, flip=flip), 'center', {0: 1, 1: 0, 2: 2})
        for label, other in ((0, 1), (1, 0), (2, 2)):
            yes, no = mirrored(pairs, label)
            assert 15 <= len(yes) <= 45 and set(yes) == {other} and set(no) == {label}
        assert mirrored(pairs, 3) == ([], [3] * 60)


def test_label_maps_pair_opposite_directions(caplog):
    labels = [
        'Pulling [something] from left to right',
        'Pulling [something] from right to left',
        'Turning the camera left while filming [something]',
        'Turning the camera Right while filming [something]',
        'Turning Hand Clockwise',
        'Turning Hand Counterclockwise',
        'spin_anti-clockwise',
        'spin_clockwise',
        'swipeLeft',
        'SwipeRight',
        'Writing upright with a bright pen, leftover',
        'LEFTWARD',
        'rightward',
    ]
    wanted = {0: 1, 1: 0, 2: 3, 3: 2, 4: 5, 5: 4, 6: 7, 7: 6, 8: 9, 9: 8, 10: 10, 11: 12, 12: 11}
    assert flip_label_map(labels) == wanted
    assert not caplog.records


@pytest.mark.parametrize(
    'pair',
    [
        'left2right right2left', 'Gesture1Left Gesture1Right', 'left1 right1', 'turnleft turnright',
        'CW CCW', 'spin_acw spin_cw',
    ],
)  # fmt: skip
def test_directions_written_together_with_other_things_or_short(pair):
    assert flip_label_map(pair.split()) == {0: 1, 1: 0}


def test_labels_without_one_opposite_are_never_mirrored(caplog):
    labels = ['Moving left', 'Jumping', 'left to right and back', 'turn right', 'turn left']
    assert flip_label_map(labels) == {1: 1, 3: 4, 4: 3}
    assert '2 labels are never mirrored' in caplog.text
    assert 'Moving left, left to right and back' in caplog.text
    # A direction within a word is one only beside its opposite.
    assert flip_label_map(['bright', 'cleft']) == {0: 0, 1: 1}
    # Two that read alike: neither is the one opposite of the third.
    assert flip_label_map(['turn-left', 'turn right', 'Turn Left']) == {0: 1, 2: 1}


@pytest.mark.parametrize(
    'pair',
    [
        'swipe_L/swipe_R', 'handL/handR', 'gauche/droite', 'Links/rechts', 'linke_Hand/rechte_Hand',
        'east/west', 'walk_E/walk_W', 'north-east/north-west', 'main_g/main_d', 'mano_izq/mano_der',
        'izquierda/derecha', 'à_gauche/à_droite', 'esquerda/direita', 'braccio_sx/braccio_dx', 'lewo/prawo',
        'налево/направо', '左/右', '向左滑动/向右滑动', '왼쪽/오른쪽', 'يسار/يمين', 'बाएँ/दाएँ', 'ซ้าย/ขวา',
        'sola/sağa', 'vänster/höger', 'kiri/kanan', 'αριστερά/δεξιά', '→/←', 'LR/RL', 'moveL2R/moveR2L',
        'horario/antihorario', 'linksherum/rechtsherum', 'port/starboard', 'LeftL/RightL', 'swipeleft/leftArm',
        "3 o'clock/9 o'clock", '3 o clock/9 O_Clock', 'Lhook/Rhook', 'swipel/swiper', 'rotcw/rotccw',
        'roll 90/roll -90', 'swipe >/swipe <', 'Linkskurve/venstresving', 'batı/doğu', 'look tl/look tr',
    ],
)  # fmt: skip
def test_directions_in_other_words_signs_or_letters_are_never_mirrored(pair, caplog):
    names = pair.split('/')
    assert flip_label_map([*names, 'clap', 'locking', 'rocking']) == {2: 2, 3: 3, 4: 4}
    assert all(name in caplog.text for name in names)


def test_words_that_hold_a_direction_by_chance_are_mirrored():
    names = R3D_18_Weights.KINETICS400_V1.meta['categories']
    others = ['bright light', "ouvrir l'eau", 'correre e saltare', "man's hat", 'g', 'i']
    for labels in (names, others):
        assert flip_label_map(labels) == dict(enumerate(range(len(labels))))


def test_erasing_gives_one_box_the_mean_colour():
    frames = torch.full((4, 3, 32, 32), 255, dtype=torch.uint8)
    transform = TrainTransform(ClipConfig(resize=32, crop_size=32), 'center', random_erasing=1.0)
    view = transform(frames, 0, seeded(0))[0]
    erased = view[0] != 255
    rows, columns = erased[0].any(1), erased[0].any(0)
    assert torch.equal(erased, (rows[:, None] & columns).expand(4, 32, 32))
    assert 0.01 < erased.float().mean() < 0.4
    assert view[:, erased].unique(dim=1).tolist() == [[124], [116], [104]]
    half = replace(transform, random_erasing=0.5)
    count = sum(bool((half(frames, 0, seeded(s))[0] != 255).any()) for s in range(100))
    assert 30 < count < 70


def test_color_jitter_changes_brightness_contrast_and_saturation():
    frames = torch.tensor([130, 90, 90], dtype=torch.uint8)[None, :, None, None].repeat(1, 1, 8, 8)
    transform = TrainTransform(ClipConfig(resize=8, crop_size=8), 'center', color_jitter=0.4)
    views = torch.stack([transform(frames, 0, seeded(s))[0][:, 0, 0, 0] for s in range(300)])
    grey = views.float() @ torch.tensor([0.299, 0.587, 0.114])
    brightness, chroma = grey / 102, (views[:, 0].float() - views[:, 1]) / grey * 102 / 40
    assert 0.58 < brightness.min() < 0.64 and 1.36 < brightness.max() < 1.42
    # On an even picture contrast and saturation both move colours from or to grey.
    assert 0.36 * 0.9 < chroma.min() < 0.5 and 1.65 < chroma.max() < 1.96 * 1.1


def test_rand_augment_is_torchvisions():
    frames = noise(2, 3, 32, 32)
    transform = TrainTransform(
        ClipConfig(resize=32, crop_size=32), 'center', rand_augment=2, rand_augment_magnitude=15
    )
    plain = replace(transform, rand_augment=0)(frames, 0, seeded(0))[0]
    changed = [transform(frames, 0, seeded(s))[0] for s in range(20)]
    assert sum(not torch.equal(view, plain) for view in changed) > 12
    gentle = replace(transform, rand_augment_magnitude=1)

    def distance(t):
        return sum(grey_levels(t(frames, 0, seeded(s))[0], plain) for s in range(20))

    assert distance(gentle) < distance(transform)


@pytest.mark.parametrize(
    'settings, message',
    [
        ({'crop': 'corner'}, "crop must be one of multi_scale, .*, not 'corner'"),
        ({'color_jitter': 1.5}, 'color_jitter must be from 0 to 1, not 1.5'),
        ({'rand_augment': -1}, 'rand_augment must be from 0 to 10, not -1'),
        ({'rand_augment_magnitude': 31}, 'rand_augment_magnitude must be from 0 to 30, not 31'),
        ({'random_erasing': float('nan')}, 'random_erasing must be from 0 to 1, not nan'),
        ({'scale': (0.5, 0.1)}, r'scale must be two numbers above 0, the smaller first, up to 1'),
        ({'scale': (0.5, 1.1)}, r'scale must be two numbers .*, not \(0.5, 1.1\)'),
        ({'ratio': (0, 1)}, r'ratio must be two numbers above 0, the smaller first, not \(0, 1\)'),
    ],
)
def test_training_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(BvtamError, match=message):
        TrainTransform(ClipConfig(), **settings)


def test_training_names_what_does_not_fit():
    with pytest.raises(BvtamError, match=r'uint8 tensor \(T, C, H, W\), not torch.float32'):
        TrainTransform(ClipConfig())(torch.zeros(2, 3, 8, 8), 0, seeded(0))
    four = ClipConfig(mean=(0.5,) * 4, std=(1,) * 4)
    with pytest.raises(BvtamError, match='need frames of 1 or 3 channels, not 4'):
        TrainTransform(four, rand_augment=1)
