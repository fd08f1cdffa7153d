"""Colours of videos against computed ones, by their tags and as in JPEG files that FFmpeg writes."""

import io
import json
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import VideoReformatter
from PIL import Image
from support.videos import save
from torch import nn

import bvtam
from bvtam.clip import ClipConfig
from bvtam.data.datasets import VideoDataset
from bvtam.data.prepare import encode
from bvtam.data.prepare.run import prepare
from bvtam.data.records import Record
from bvtam.data.transforms import TrainTransform
from bvtam.data.video.file import VideoFile
from bvtam.data.video.folders import FrameFolder
from bvtam.data.video.open import open_video
from bvtam.deploy.export import _config, calibration_clips
from bvtam.deploy.runtimes import check_config
from bvtam.errors import BvtamError
from bvtam.inference.evidence import evidence
from bvtam.inference.extract import extract
from bvtam.inference.predict import predict
from bvtam.inference.render import save_annotated
from bvtam.inference.shards import load_features
from bvtam.inference.stream import predict_stream
from bvtam.inference.windows import windows
from bvtam.weights.table import entries

LUMA = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}  # red, blue
RED = (200, 60, 60)
COLOURS = (
    RED, (20, 180, 90), (60, 60, 200), (128, 128, 128), (255, 255, 255), (0, 0, 0), (250, 200, 30),
    (90, 30, 120), (230, 120, 180), (10, 70, 60), (140, 140, 20), (60, 200, 220), (255, 0, 0),
    (0, 255, 0), (0, 0, 255), (180, 160, 150),
)  # fmt: skip
TILE = 16
PQ, HLG, BT2020 = 16, 18, 9


def components(rgb, matrix, full, bits):
    """Y, Cb and Cr of H.273, as integers."""
    red, blue = LUMA[matrix]
    r, g, b = np.array(rgb) / 255
    y = red * r + (1 - red - blue) * g + blue * b
    values = np.array([y, (b - y) / 2 / (1 - blue), (r - y) / 2 / (1 - red)])
    if full:
        most = 2**bits - 1
        return np.clip(np.round(values * most + [0, 2 ** (bits - 1), 2 ** (bits - 1)]), 0, most)
    return np.round((values * [219, 224, 224] + [16, 128, 128]) * 2 ** (bits - 8))


def chart(matrix, full=False, bits=8, tag=None, transfer=2, primaries=2):
    """A frame of 4 x 4 tiles of one of `COLOURS` each, whose components are those of `matrix`."""
    name, dtype = ('yuv420p', np.uint8) if bits == 8 else (f'yuv420p{bits}le', np.uint16)
    frame = av.VideoFrame(4 * TILE, 4 * TILE, name)
    coded = np.array([components(c, matrix, full, bits) for c in COLOURS], dtype).reshape(4, 4, 3)
    for channel, plane in enumerate(frame.planes):
        side = TILE // 2 if channel else TILE
        values = coded[..., channel].repeat(side, 0).repeat(side, 1)
        rows = np.zeros((plane.height, plane.line_size // dtype().itemsize), dtype)
        rows[:, : plane.width] = values
        plane.update(rows.tobytes())
    frame.colorspace, frame.color_range = matrix if tag is None else tag, 2 if full else 1
    frame.color_trc, frame.color_primaries = transfer, primaries
    return frame


def write(path, frame, count=4):
    """`count` times the same frame, without loss."""
    names = ('colorspace', 'color_range', 'color_trc', 'color_primaries')
    settings = {name: getattr(frame, name) for name in names}

    def frames():
        for number in range(count):
            frame.pts = number
            yield frame

    return str(save(path, 'ffv1', frames(), pix_fmt=frame.format.name, **settings))


def tiles(picture_CHW):
    """(16, 3): the mean of each tile but for its edge."""
    inside = torch.as_tensor(picture_CHW).float().unflatten(1, (4, TILE)).unflatten(3, (4, TILE))
    return inside[:, :, 4:-4, :, 4:-4].mean((2, 4)).flatten(1).T.numpy()


def seen(source, colors='tagged'):
    return tiles(open_video(source, colors=colors).read([0])[0])


def as_jpeg(frame):
    """What Pillow reads of the frame, after FFmpeg has written it as JPEG."""
    full = VideoReformatter().reformat(frame, format='yuvj420p', dst_color_range=2, threads=1)
    encoder = av.CodecContext.create('mjpeg', 'w')
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, 'yuvj420p'
    encoder.time_base, encoder.color_range = Fraction(1, 25), 2
    encoder.options = {'flags': '+qscale', 'global_quality': '118'}
    full.pts = 0
    data = b''.join(bytes(packet) for packet in [*encoder.encode(full), *encoder.encode(None)])
    return tiles(np.array(Image.open(io.BytesIO(data)).convert('RGB')).transpose(2, 0, 1))


@pytest.mark.parametrize('matrix', (1, 5, 6, 9))
@pytest.mark.parametrize('full', (False, True))
@pytest.mark.parametrize('bits', (8, 10))
def test_colours_are_the_computed_ones_or_those_of_jpeg_files(tmp_path, matrix, full, bits):
    path = write(tmp_path / 'a.mkv', chart(matrix, full, bits))
    for colors in ('tagged', 'jpeg'):
        _, frame = next(open_video(path, colors=colors).play())
        assert np.array_equal(tiles(frame), seen(path, colors))
    np.testing.assert_allclose(seen(path), COLOURS, atol=4)  # swscale rounds down
    found = seen(path, 'jpeg')
    np.testing.assert_allclose(found, as_jpeg(chart(matrix, full, bits)), atol=3)
    if matrix in (1, 9):
        assert np.abs(found - COLOURS).max() > 9
    if (matrix, full) == (1, False):
        np.testing.assert_allclose(found[0], (187, 46, 62), atol=3)


@pytest.mark.parametrize('bits', (8, 10))
@pytest.mark.parametrize(('tag', 'matrix'), [(2, 6), (3, 6), (8, 6), (14, 6), (10, 9)])
def test_a_matrix_that_is_not_told_or_not_known_is_read_by_the_nearest(tmp_path, tag, matrix, bits):
    path = write(tmp_path / 'a.mkv', chart(matrix, bits=bits, tag=tag))
    np.testing.assert_allclose(seen(path), COLOURS, atol=3)
    np.testing.assert_allclose(seen(path, 'jpeg'), as_jpeg(chart(matrix, bits=bits)), atol=3)


@pytest.mark.parametrize('transfer', (PQ, HLG))
@pytest.mark.parametrize('colors', ('tagged', 'jpeg'))
def test_hdr_stays_as_coded(tmp_path, transfer, colors):
    plain = write(tmp_path / 'plain.mkv', chart(BT2020, bits=10))
    hdr = write(tmp_path / 'hdr.mkv', chart(BT2020, False, 10, None, transfer, BT2020))
    assert VideoFile(hdr).tags[:3] == (BT2020, BT2020, transfer)
    assert np.array_equal(seen(hdr, colors), seen(plain, colors))


@pytest.mark.parametrize(('full', 'bits'), [(False, 8), (True, 8), (False, 10), (True, 10)])
def test_grey_is_stretched_by_its_tag_and_is_as_coded_in_jpeg(tmp_path, full, bits):
    coded = (np.arange(16).repeat(4) * 14 + 16)[:, None].repeat(64, 1)  # 16 to 226
    if bits == 8:
        frame = av.VideoFrame.from_ndarray(coded.astype(np.uint8), 'gray')
    else:
        frame = av.VideoFrame.from_ndarray((4 * coded).astype(np.uint16), 'gray10le')
    frame.color_range, frame.colorspace = 2 if full else 1, 2
    frame.color_trc = frame.color_primaries = 2
    path = write(tmp_path / 'a.mkv', frame)
    wanted = coded if full else (coded - 16) * 255 / 219
    np.testing.assert_allclose(open_video(path).read([0])[0], [wanted] * 3, atol=1)
    np.testing.assert_allclose(open_video(path, colors='jpeg').read([0])[0], [coded] * 3, atol=0)


def test_images_and_readers_of_them_are_as_they_are(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 40, 3), np.uint8)
    (tmp_path / 'frames').mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / 'frames' / f'{number}.jpg')
    for source in (frames, [Image.fromarray(frame) for frame in frames], tmp_path / 'frames'):
        pair = [open_video(source, colors=colors).read(range(3)) for colors in ('tagged', 'jpeg')]
        assert torch.equal(*pair)
    video = write(tmp_path / 'a.mkv', chart(1).reformat(format='bgr0'))
    assert np.array_equal(seen(video), seen(video, 'jpeg'))


# ---- what a model sees ----


class Levels(nn.Module):
    """Scores that are the mean levels of the three channels, over 100."""

    num_classes, label_names, num_features, frames_per_step = 3, list('rgb'), 3, 1

    def __init__(self, colors):
        super().__init__()
        self.head = nn.Linear(3, 3)
        nn.init.eye_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        size = {'num_frames': 2, 'resize': 16, 'crop_size': 16}
        scale = {'mean': (0,) * 3, 'std': (100 / 255,) * 3}
        self.clip_config = ClipConfig(**size, **scale, colors=colors)

    def get_classifier(self):
        return self.head

    def forward_features(self, x):
        return x

    def forward_head(self, x, pre_logits=False):
        pooled = x.mean((2, 3, 4))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, x):
        return self.forward_head(x)


def scores(top):
    return torch.tensor([row['score'] for row in sorted(top, key=lambda row: row['index'])])


@pytest.fixture(scope='module')
def red(tmp_path_factory):
    """A red video of BT.709, and what is seen of it by each way."""
    frame = chart(1)
    for plane, value in zip(frame.planes, components(RED, 1, False, 8), strict=True):
        plane.update(bytes([int(value)]) * plane.buffer_size)
    folder = tmp_path_factory.mktemp('red')
    path = write(folder / 'a.mkv', frame, count=8)
    return path, {'tagged': (198.0, 58.0, 59.0), 'jpeg': (186.0, 44.0, 60.0)}


@pytest.mark.parametrize('colors', ('tagged', 'jpeg'))
def test_everything_that_a_net_is_asked_sees_the_colours_of_its_config(tmp_path, red, colors):
    path, levels = red
    model = Levels(colors).eval()
    want = (torch.tensor(levels[colors]) / 100).softmax(0)
    with open(path, 'rb') as file:
        held = file.read()
    # A reader is shared by models of both kinds; each sees its own colours.
    for video in (path, held, open_video(path), open_video(path, colors='jpeg')):
        torch.testing.assert_close(scores(predict(model, video)['top']), want, atol=0.01, rtol=0)
    for window in windows(model, open_video(path), 0.1)['windows']:
        torch.testing.assert_close(scores(window['top']), want, atol=0.01, rtol=0)
    found = evidence(model, open_video(path))
    assert found['pictures'].float().mean((0, 2, 3)).tolist() == pytest.approx(
        levels[colors], abs=2
    )
    (clip,) = calibration_clips(path, model.clip_config)
    assert (100 * clip.mean((0, 2, 3, 4))).tolist() == pytest.approx(levels[colors], abs=2)
    extract(model, path, tmp_path / 'features')
    (row,) = load_features(tmp_path / 'features').values()
    assert (100 * row.features[0]).tolist() == pytest.approx(levels[colors], abs=2)


@pytest.mark.parametrize('colors', ('tagged', 'jpeg'))
def test_data_sets_give_the_colours_of_the_config(red, colors):
    path, levels = red
    clip = Levels(colors).clip_config
    for train in (None, TrainTransform(clip)):
        for record in (Record(path), Record(path, start=0.1, end=0.2)):
            pixels = VideoDataset([record], clip, train=train)[0]['clip']
            means = pixels.float().flatten(-3).mean(-1).reshape(-1, 3)[0]
            assert means.tolist() == pytest.approx(levels[colors], abs=2), train


@pytest.mark.parametrize('colors', ('tagged', 'jpeg'))
def test_a_stream_has_the_colours_of_the_config(red, colors, monkeypatch):
    path, levels = red
    shown = []
    model = bvtam.create_model('tsn_resnet50_f8', backbone='test_resnet', num_classes=3).eval()
    model.clip_config = Levels(colors).clip_config
    monkeypatch.setattr(
        'bvtam.inference.stream.to_crops',
        lambda frames, clip: (
            shown.append(frames) or torch.zeros(1, 3, 1, 16, 16, dtype=torch.uint8)
        ),
    )
    next(predict_stream(model, path))
    assert shown[0].float().mean((0, 2, 3)).tolist() == pytest.approx(levels[colors], abs=2)


def test_a_recoloured_reader_is_of_the_same_video(red):
    video = open_video(red[0])
    other = open_video(video, colors='jpeg')
    assert other.name == video.name and other.num_frames == video.num_frames == 8
    assert torch.equal(other.times, video.times) and other.duration == video.duration
    assert other.tags == video.tags and other.frame_pixels == video.frame_pixels == 64 * 64
    assert other.with_colors('jpeg') is other
    assert torch.equal(other.with_colors('tagged').read([3]), video.read([3]))
    assert open_video(other) is other and open_video(video, colors='tagged') is video
    assert torch.equal(open_video(red[0], colors='jpeg').read([3, 3]), other.read([3, 3]))
    assert not torch.equal(video.read([3]), other.read([3]))


def test_unknown_colours_are_told_in_one_line(red):
    for call in (
        lambda: ClipConfig(colors='srgb'),
        lambda: ClipConfig.from_dict({'colors': None}),
        lambda: open_video(red[0], colors='srgb'),
        lambda: VideoFile(red[0], colors='srgb'),
        lambda: open_video(red[0]).with_colors('srgb'),
    ):
        with pytest.raises(BvtamError, match='colors must be one of tagged, jpeg, not') as caught:
            call()
        assert '\n' not in str(caught.value)


# ---- what travels ----


def test_the_config_keeps_its_colours(tmp_path):
    clip = ClipConfig(colors='jpeg')
    assert ClipConfig.from_dict(clip.to_dict()) == clip
    assert ClipConfig().colors == 'tagged'
    older = {key: value for key, value in clip.to_dict().items() if key != 'colors'}
    assert ClipConfig.from_dict(older) == ClipConfig()

    model = bvtam.create_model('bvtam_tiny_8x2', num_classes=3)
    model.clip_config = replace(model.clip_config, colors='jpeg')
    bvtam.save_pretrained(model, tmp_path / 'model')
    exported = _config(model)
    assert check_config(json.dumps(exported))['clip'] == model.clip_config
    del exported['clip']['colors']
    assert check_config(json.dumps(exported))['clip'].colors == 'tagged'
    again = bvtam.create_model(f'local-dir:{tmp_path / "model"}', pretrained=True)
    assert again.clip_config == model.clip_config
    assert 'colors: jpeg' in (tmp_path / 'model' / 'README.md').read_text()


def test_weights_of_the_authors_see_jpeg_and_our_own_do_not():
    for name, entry in entries().items():
        if entry.clip is not None:
            wanted = 'tagged' if entry.ships else 'jpeg'
            assert entry.clip.get('colors', 'tagged') == wanted, name
    assert bvtam.create_model('bvtam_r50_8x2.ssv2_ibm').clip_config.colors == 'jpeg'
    assert bvtam.create_model('bvtam_tiny_8x2.motion').clip_config.colors == 'tagged'


def test_features_of_an_earlier_version_go_on(tmp_path, red):
    path = red[0]
    extract(Levels('tagged'), path, tmp_path)
    (settings,) = tmp_path.glob('*.json')
    text = settings.read_text()
    assert '"colors": "tagged"' in text
    settings.write_text(text.replace(',\n    "colors": "tagged"', ''))
    assert '"colors"' not in settings.read_text()
    assert extract(Levels('tagged'), path, tmp_path)['rows'] == 1
    with pytest.raises(BvtamError, match='was made with clip'):
        extract(Levels('jpeg'), path, tmp_path)


# ---- videos that are written ----

TAGS = {  # matrix, primaries, transfer, whether full
    'bt709': (1, 1, 1, False),
    'bt709 full': (1, 1, 1, True),
    'pal': (5, 5, 6, False),
    'pq': (9, 9, PQ, False),
    'hlg': (9, 9, HLG, False),
    'p3': (1, 12, 13, False),
}


def read_tags(path):
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        return frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range == 2


@pytest.mark.parametrize('codec', ('libx264', 'mpeg4'))
@pytest.mark.parametrize('tags', TAGS.values(), ids=TAGS)
def test_prepared_videos_keep_tags_and_so_both_ways_to_see_them(tmp_path, tags, codec):
    matrix, primaries, transfer, full = tags
    frame = chart(matrix, full, 10, None, transfer, primaries)
    source = write(tmp_path / 'a.mkv', frame)
    settings = encode.Encoding(size=64, quality=1)
    settings.codec = codec
    encode.encode(Record(source), tmp_path / 'b.mp4', settings, 60)
    assert read_tags(tmp_path / 'b.mp4') == tags
    np.testing.assert_allclose(seen(tmp_path / 'b.mp4'), COLOURS, atol=6)
    wanted = seen(source, 'jpeg')
    np.testing.assert_allclose(seen(tmp_path / 'b.mp4', 'jpeg'), wanted, atol=6)


@pytest.mark.parametrize('tags', TAGS.values(), ids=TAGS)
def test_annotated_videos_keep_tags(tmp_path, tags):
    matrix, primaries, transfer, full = tags
    source = write(tmp_path / 'a.mkv', chart(matrix, full, 8, None, transfer, primaries))
    top = [{'label': 'a', 'index': 0, 'score': 0.5}]
    save_annotated({'top': top}, source, tmp_path / 'b.mp4', topk=1)
    assert read_tags(tmp_path / 'b.mp4') == tags
    np.testing.assert_allclose(seen(tmp_path / 'b.mp4')[4:], COLOURS[4:], atol=8)


@pytest.mark.parametrize('tag', (2, 8))
def test_without_a_known_matrix_videos_are_written_by_the_one_they_were_read_by(tmp_path, tag):
    source = write(tmp_path / 'a.mkv', chart(6, tag=tag))
    encode.encode(Record(source), tmp_path / 'b.mp4', encode.Encoding(size=64, quality=1), 60)
    assert read_tags(tmp_path / 'b.mp4') == (6, 2, 2, False)
    np.testing.assert_allclose(seen(tmp_path / 'b.mp4'), COLOURS, atol=6)


def test_frames_are_extracted_either_way(tmp_path):
    source = write(tmp_path / 'a.mkv', chart(1))
    for colors in ('tagged', 'jpeg'):
        settings = encode.Encoding('frames', 64, quality=100, colors=colors)
        encode.encode(Record(source), tmp_path / colors, settings, 60)
        found = tiles(FrameFolder(tmp_path / colors).read([0])[0])
        np.testing.assert_allclose(found, seen(source, colors), atol=3)
    with pytest.raises(BvtamError, match='a video keeps its tags'):
        prepare(tmp_path, tmp_path / 'out', colors='jpeg')
    assert not (tmp_path / 'out').exists()
