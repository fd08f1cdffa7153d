"""Folders of images and arrays as videos."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from bvtam.data.video.folders import FrameFolder
from bvtam.data.video.in_memory import FrameArray
from bvtam.data.video.open import open_video
from bvtam.data.video.reader import VideoError
from bvtam.errors import BvtamError

pytestmark = pytest.mark.interfaces


def image(level, size=(20, 12)):
    """Smooth, so that JPEG keeps it: a ramp from left to right."""
    width, height = size
    ramp = np.linspace(level, level + 60, width).astype(np.uint8)
    return np.repeat(np.stack([ramp, ramp // 2, 255 - ramp], -1)[None], height, 0)


def fill(folder, names):
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        Image.fromarray(image(10 * i)).save(folder / name)
    return folder


def stored(folder, names):
    pictures = [np.array(Image.open(folder / name).convert('RGB')) for name in names]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    'names, template',
    [
        ([f'{i:05d}.jpg' for i in range(1, 8)], '{:05d}.jpg'),
        ([f'img_{i}.png' for i in range(6, 13)], 'img_%d.png'),  # by number, not by name
        ([f'v2_{i:03d}_x.PNG' for i in range(7)], 'v2_%03d_x.PNG'),
        ([f'{i}.bmp' for i in range(95, 102)], '{}.bmp'),
    ],
)
def test_images_are_sorted_by_number(tmp_path, names, template):
    folder = fill(tmp_path / 'frames', names)
    (folder / 'notes.txt').write_text('1')
    expected = stored(folder, names)
    for chosen in (None, template):
        video = FrameFolder(folder, chosen, fps=10)
        assert video.num_frames == 7 and video.name == str(folder)
        picked = video.read([6, 0, 3, 3])
        assert picked.dtype == torch.uint8 and torch.equal(picked, expected[[6, 0, 3, 3]])
        assert torch.allclose(video.times, torch.arange(7, dtype=torch.float64) / 10)
        assert video.fps == 10 and video.duration == pytest.approx(0.7)
        assert torch.equal(video.read_at([-1, 0.25, 9]), expected[[0, 2, 6]])
    again = pickle.loads(pickle.dumps(video))
    assert torch.equal(again.read([5]), expected[[5]])


def test_part_of_a_folder(tmp_path):
    names = [f'{i:05d}.jpg' for i in range(1, 10)]
    folder = fill(tmp_path / 'frames', names)
    expected = stored(folder, names)
    assert torch.equal(FrameFolder(folder, first=3, last=5).read(range(3)), expected[2:5])
    assert FrameFolder(folder, first=7).num_frames == 3
    assert FrameFolder(folder, last=7).num_frames == 7
    assert FrameFolder(folder, num_frames=4).files == FrameFolder(folder, first=1, last=4).files
    (folder / '00000.jpg').write_bytes((folder / '00001.jpg').read_bytes())
    assert FrameFolder(folder, num_frames=4).files == FrameFolder(folder, first=0, last=3).files
    (folder / '00000.jpg').unlink()
    with pytest.raises(VideoError, match='lacks frame 10 of 3 to 12; extract'):
        FrameFolder(folder, first=3, last=12).read([0])
    with pytest.raises(VideoError, match='the first frame, 5, is after the last, 4'):
        FrameFolder(folder, first=5, last=4).read([0])
    (folder / names[3]).unlink()
    with pytest.raises(VideoError, match='lacks frame 4 of 1 to 9'):
        FrameFolder(folder, first=1, last=9).read([0])
    with pytest.raises(BvtamError, match='frame 3 is outside the video, 0 to 2'):
        FrameFolder(folder, last=3).read([3])


def test_colours_depths_and_turns_become_upright_rgb(tmp_path):
    folder = tmp_path / 'frames'
    folder.mkdir()
    rgb = image(40)
    grey = rgb[..., 0]
    Image.fromarray(grey).save(folder / '1.png')
    Image.fromarray(np.dstack([rgb, np.full_like(grey, 9)])).save(folder / '2.png')
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / '3.png')
    turned = Image.fromarray(np.rot90(rgb).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter, clockwise
    turned.save(folder / '4.png', exif=exif)
    Image.fromarray(image(40, (40, 24))).save(folder / '5.png')  # another size
    frames = FrameFolder(folder).read(range(5))
    assert frames.shape == (5, 3, 12, 20)
    expected = torch.from_numpy(rgb).permute(2, 0, 1)
    assert torch.equal(frames[0], expected[:1].expand(3, -1, -1))
    assert torch.equal(frames[1], expected)
    assert torch.equal(frames[2], expected[:1].expand(3, -1, -1))
    assert torch.equal(frames[3], expected)
    assert (frames[4].int() - expected.int()).abs().max() <= 3


def test_what_is_no_folder_of_frames_says_so_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such folder of frames'):
        FrameFolder(tmp_path / 'nowhere')
    for template in ('frame.jpg', '{:05d}_{:05d}.jpg', '%s.jpg'):
        with pytest.raises(BvtamError, match='is no template of image names'):
            FrameFolder(tmp_path, template)
    with pytest.raises(BvtamError, match='fps must be above 0'):
        FrameFolder(tmp_path, fps=0)
    folder = fill(tmp_path / 'frames', ['a_1.png', 'a_2.png', 'b_1.png'])
    cases = {
        (tmp_path, None): 'holds no numbered images; name a folder',
        (folder, '{:03d}.png'): r'holds no images named \{:03d\}\.png',
        (folder, None): r"2 kinds \(a_1\.png, b_1\.png\); say .* --frames 'a_\{:05d\}\.png'",
    }
    for (path, template), message in cases.items():
        with pytest.raises(VideoError, match=message) as caught:
            FrameFolder(path, template).read([0])
        assert '\n' not in str(caught.value)
    assert FrameFolder(folder, 'a_{}.png').num_frames == 2


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'bmp'])
def test_a_damaged_image_is_an_error(tmp_path, suffix):
    names = [f'{i}.{suffix}' for i in range(3)]
    folder = fill(tmp_path / 'frames', names)
    sound = stored(folder, names)
    data = (folder / names[1]).read_bytes()
    for broken in (data[: len(data) // 2], b'', b'text'):
        (folder / names[1]).write_bytes(broken)
        assert torch.equal(FrameFolder(folder).read([2, 0]), sound[[2, 0]])
        with pytest.raises(VideoError, match=rf'1\.{suffix} cannot be read .*extract') as caught:
            FrameFolder(folder).read([0, 1])
        assert '\n' not in str(caught.value)


def test_arrays(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 9, 3), np.uint8)
    expected = torch.from_numpy(array).permute(0, 3, 1, 2)
    array.setflags(write=False)
    orders = [array, np.asfortranarray(array), array.transpose(0, 3, 1, 2), expected]
    backwards = array[::-1].copy()[::-1], array[:, ::-1].copy()[:, ::-1]
    for given in (*orders, *backwards):
        video = FrameArray(given, fps=5, name='mine')
        assert torch.equal(video.read([4, 1, 1]), expected[[4, 1, 1]])
        assert np.shares_memory(video.frames, given)
        assert video.num_frames == 5 and video.duration == 1 and video.name == 'mine'
    video.read([0])[:] = 0
    assert torch.equal(video.read([0]), expected[[0]])
    with pytest.raises(BvtamError, match='mine: frame 5 is outside'):
        video.read([5])
    for bad in (np.zeros((5, 7, 9, 3), np.float32), np.zeros((5, 7, 9), np.uint8)):
        with pytest.raises(BvtamError, match='frames must be uint8'):
            FrameArray(bad)
    with pytest.raises(BvtamError, match='holds no frame'):
        FrameArray(np.zeros((0, 4, 4, 3), np.uint8))


def test_wildcards_say_which_are_the_frames(tmp_path):
    names = [f'img_{i:04d}' for i in (1, 2, 10)]
    fill(tmp_path, [f'{name}{end}' for name in names for end in ('.jpg', '.png')])
    fill(tmp_path, [f'flow_x_{i:04d}.jpg' for i in (1, 2)])
    (tmp_path / '._img_0003.jpg').write_bytes(b'x')
    for template in ('img_*.jpg', '*.jpg', 'img_{:04d}.jpg', 'img_{:05}.jpg', 'i*_0*.jpg'):
        assert FrameFolder(tmp_path, template).files == [f'{name}.jpg' for name in names]
    assert FrameFolder(tmp_path, '*.jpg', first=1, last=2).num_frames == 2
    assert FrameFolder(tmp_path, 'flow_x_*.jpg').num_frames == 2
    for template in (None, 'img_*'):
        with pytest.raises(
            VideoError, match=r"--frames 'img_\{:05d\}\.jpg' \(data\.frames in a rec"
        ):
            FrameFolder(tmp_path, template).read([0])


def test_a_number_that_is_there_twice_is_told(tmp_path):
    folder = fill(tmp_path / 'frames', ['1.png', '01.png', '2.png'])
    with pytest.raises(VideoError, match=r'01\.png and 1\.png have the same number'):
        FrameFolder(folder).read([0])


def test_open_video_takes_names_and_rate(tmp_path):
    folder = fill(tmp_path / 'frames', ['a_1.png', 'a_2.png', 'b_1.png'])
    assert open_video(folder, frames='a_*.png', fps=10).times.tolist() == [0, 0.1]
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    assert open_video(frames, fps=2).duration == open_video(list(frames), fps=2).duration == 1.5
    assert open_video(frames).fps == 25
    file = tmp_path / 'a.mp4'
    file.write_bytes(b'x')
    for source, options, message in (
        (file, {'fps': 10}, r'fps \(--frame-rate\): only for folders of images'),
        (file, {'frames': '*.png'}, 'frames: only for folders of images'),
        (frames, {'frames': '*.png'}, 'frames: only for folders of images'),
        (open_video(frames), {'fps': 10}, 'only for folders of images'),
        (file.read_bytes(), {'fps': 10}, 'only for folders of images'),
        (folder, {'fps': float('nan')}, 'fps must be above 0'),
        (folder, {'frames': 'img.jpg'}, 'is no template'),
    ):
        with pytest.raises(BvtamError, match=message):
            open_video(source, **options)
    with pytest.raises(FileNotFoundError):
        open_video(tmp_path / 'nowhere', fps=10)


def test_flow_masks_and_hidden_files_are_left_out_and_named(tmp_path, caplog):
    names = [f'img_{i:05d}.jpg' for i in range(1, 4)]
    others = [f'{kind}_{i:05d}.jpg' for kind in ('flow_x', 'flow_y', 'mask') for i in range(1, 4)]
    fill(tmp_path, names + others + ['thumbnail_1.jpg'])
    (tmp_path / '._img_00001.jpg').write_bytes(bytes([0, 5, 22, 7]))
    assert FrameFolder(tmp_path).files == names
    (line,) = caplog.messages
    assert all(kind in line for kind in ('flow_x_*', 'flow_y_*', 'mask_*', 'thumbnail_*'))
