"""Videos prepared for training: what comes out, and that a run can be cut off anywhere."""

import csv
import json
import os
import signal
import struct
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from support.videos import at, save

import bvtam
from bvtam.data.load import load_records
from bvtam.data.prepare import encode
from bvtam.data.prepare import run as module
from bvtam.data.prepare.run import prepare
from bvtam.data.prepare.workers import Crash, outcomes, watch
from bvtam.data.records import Record
from bvtam.data.video import reader
from bvtam.data.video.in_memory import FrameArray
from bvtam.data.video.open import open_video
from bvtam.data.video.write import write_video
from bvtam.errors import BvtamError

EVEN = [Fraction(i, 25) for i in range(30)]
UNEVEN = [Fraction(i * i + 10 * i, 1000) for i in range(30)]  # from 11 to 67 ms apart


def picture(index, width=96, height=64):
    """Smooth, of many colours, and another one for every index."""
    y, x = np.mgrid[0:height, 0:width]
    blue = 127 + 100 * np.sin((x + y) / 40 + index / 3)
    return np.stack([x * 255 / width, 40 + y * 150 / height + 2 * index, blue], -1).astype(np.uint8)


def write(path, times=EVEN, size=(96, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    clock = 25 if path.suffix == '.avi' else 1000
    pictures = (picture(index, *size) for index in range(len(times)))
    frames = at(pictures, [int(moment * clock) for moment in times], Fraction(1, clock))
    settings = {'time_base': Fraction(1, clock), 'bit_rate': 8_000_000}
    return save(path, 'mpeg4', frames, {'qscale': '2', 'g': '25'}, **settings)


def turn(path):
    """Marks an MP4 file as filmed with a phone held upright."""
    data = path.read_bytes()
    place = data.index(b'tkhd') + 44
    matrix = struct.pack('>9i', 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data[:place] + matrix + data[place + 36 :])
    return path


def write_folder(path, numbers=range(1, 31)):
    path.mkdir(parents=True)
    for number in numbers:
        Image.fromarray(picture(number)).save(path / f'{number:05d}.jpg', quality=95)
    return path


def decoded(path):
    """(T, H, W, C) pixels, times, and numbers of the keyframes, by PyAV alone."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    pixels = np.stack([frame.to_ndarray(format='rgb24') for frame in frames])
    keys = [i for i, frame in enumerate(frames) if frame.key_frame]
    return pixels, [float(frame.pts * frame.time_base) for frame in frames], keys


def resized(pixels, width, height):
    images = [Image.fromarray(p).resize((width, height), Image.BILINEAR) for p in pixels]
    return np.stack([np.asarray(image) for image in images]).astype(int)


def tree(folder):
    """{path: bytes} of all files in it."""
    files = (path for path in sorted(folder.rglob('*')) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """Class folders with what is difficult in videos."""
    root = tmp_path_factory.mktemp('source')
    write(root / 'run' / 'even.mp4')
    write(root / 'run' / 'far' / 'uneven.mkv', UNEVEN)
    write(root / 'run' / 'small.mp4', size=(34, 26))
    turn(write(root / 'sit down' / 'turned.mp4'))
    write(root / 'sit down' / 'same.avi', EVEN[:8])
    write(root / 'sit down' / 'same.mp4', EVEN[:9])
    write_folder(root / 'sit down' / 'folder.v2')
    return root


@pytest.fixture(scope='module')
def videos(source, tmp_path_factory):
    out = tmp_path_factory.mktemp('videos')
    return out, prepare(source, out, size=32, gop=7, workers=2)


def test_names_and_labels_are_those_of_the_source(source, videos):
    out, summary = videos
    assert {name for name in tree(out) if name.endswith('.mp4')} == {
        'run/even.mp4',
        'run/far/uneven.mp4',
        'run/small.mp4',
        'sit down/turned.mp4',
        'sit down/same.avi.mp4',  # two of one name keep their endings
        'sit down/same.mp4.mp4',
        'sit down/folder.v2.mp4',
    }
    assert not list(out.glob('.*'))
    expected = {'videos': 7, 'written': 7, 'kept': 0, 'failed': 0, 'frames': 30 * 5 + 8 + 9}
    assert {key: summary[key] for key in expected} == expected
    records, names = load_records(out)
    assert names == load_records(source)[1] == ['run', 'sit down']
    listed, listed_names = load_records(summary['list'])
    assert listed_names == names
    assert {(os.path.realpath(r.source), r.label) for r in listed} == {
        (os.path.realpath(r.source), r.label) for r in records
    }
    assert load_records(out, labels=out / 'labels.txt') == (records, names)


@pytest.mark.parametrize(
    'name, size',
    [
        ('run/even.mp4', (48, 32)),
        ('run/far/uneven.mkv', (48, 32)),
        ('run/small.mp4', (34, 26)),
        ('sit down/turned.mp4', (32, 48)),
        ('sit down/folder.v2', (48, 32)),
    ],
)
def test_videos_keep_frames_times_and_pictures(source, videos, name, size):
    path = videos[0] / f'{name.removesuffix(".mp4").removesuffix(".mkv")}.mp4'
    pixels, times, keys = decoded(path)
    if name.endswith('v2'):
        files = sorted((source / name).iterdir())
        before = np.stack([np.asarray(Image.open(file)) for file in files])
        moments = [i / 25 for i in range(30)]
    else:
        before, moments, _ = decoded(source / name)
    if 'turned' in name:
        before = np.rot90(before, -1, axes=(1, 2))
    assert times == pytest.approx([moment - moments[0] for moment in moments], abs=1 / 90000)
    assert keys == [0, 7, 14, 21, 28]
    assert pixels.shape == (30, size[1], size[0], 3)
    wanted = resized(before, *size)
    error = np.stack([np.abs(wanted - p).mean(axis=(1, 2, 3)) for p in pixels])
    assert error.argmin(axis=1).tolist() == list(range(30))
    # Half of it is the conversion from YUV, which rounds down.
    assert error.diagonal().max() < 4
    with av.open(str(path)) as container:
        (stream,) = container.streams
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ('h264', 'yuv420p')
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert [p.dts for p in packets] == [p.pts for p in packets]  # no B-frames
    data = path.read_bytes()
    assert data.index(b'moov') < data.index(b'mdat')

    reader = open_video(str(path))
    order = [29, 0, 13, 14, 7, 6, 21, 3]
    for index, frame in zip(order, reader.read(order), strict=True):
        assert torch.equal(frame, torch.from_numpy(pixels[index]).permute(2, 0, 1))
    # The last frame is as long as before, not as the mean.
    whole = open_video(str(source / name)).duration
    assert reader.duration == pytest.approx(whole, abs=0.002)


def test_frame_folders_are_the_authors(source, tmp_path):
    summary = prepare(source, tmp_path / 'out', size=32, format='frames', workers=2)
    out = tmp_path / 'out'
    folder = out / 'run' / 'even'
    assert sorted(p.name for p in folder.iterdir()) == [f'{i:05d}.jpg' for i in range(1, 31)]
    before = resized(decoded(source / 'run' / 'even.mp4')[0], 48, 32)
    after = np.stack([np.asarray(Image.open(p)) for p in sorted(folder.iterdir())])
    assert np.abs(after - before).mean() < 3

    lines = (out / 'list.txt').read_text().splitlines()
    assert lines[0] == 'run/even;1;30;0'  # a space would part 'sit down'
    assert 'sit down/same.avi;1;8;1' in lines
    expected = {(str(out / line.split(';')[0]), int(line.split(';')[3])) for line in lines}
    for path in (out / 'list.txt', summary['list']):
        records, _ = load_records(path)
        assert {(r.source, r.label) for r in records} == expected
        assert all((r.first, r.last) == (1, len(os.listdir(r.source))) for r in records)
    assert {(r.source, r.label) for r in load_records(out)[0]} == expected


def give(monkeypatch, records, names=None):
    monkeypatch.setattr(module, 'load_parts', lambda *args, **options: ({'': records}, names))


def test_parts_are_cut_and_frames_resampled(tmp_path, monkeypatch):
    video = write(tmp_path / 'in' / 'video.mkv', UNEVEN)
    folder = write_folder(tmp_path / 'in' / 'folder')
    records = [
        Record(str(video), 0, start=0.2, end=0.9),
        Record(str(video), 1, start=0.5, end=None),
        Record(str(video), 2, start=0.2, end=0.9),  # a second label
        Record(str(folder), 1, first=11, last=20),
        Record(str(folder), 1, first=1, last=5),
    ]
    names = [
        'video_000000.200_000000.900.mp4',
        'video_000000.500_end.mp4',
        'folder_11_20.mp4',
        'folder_1_5.mp4',
    ]
    moments = np.array([float(t) for t in UNEVEN])
    give(monkeypatch, records)
    plain = prepare(tmp_path / 'in', tmp_path / 'out', size=64, workers=1)
    assert plain['videos'] == 4
    assert sorted(p.name for p in (tmp_path / 'out').glob('*.mp4')) == sorted(names)
    with open(plain['list'], newline='') as file:
        assert [(r['video'], r['label']) for r in csv.DictReader(file)] == [
            (names[0], '0'),
            (names[1], '1'),
            (names[0], '2'),
            (names[2], '1'),
            (names[3], '1'),
        ]
    before = decoded(video)[0].astype(int)
    for name, inside in (
        (names[0], (moments >= 0.2) & (moments < 0.9)),
        (names[1], moments >= 0.5),
    ):
        pixels, times, _ = decoded(tmp_path / 'out' / name)
        assert times == pytest.approx(moments[inside] - moments[inside][0], abs=1e-4)
        assert np.abs(pixels - before[inside]).mean() < 3
    for name, numbers in ((names[2], range(11, 21)), (names[3], range(1, 6))):
        before = np.stack([picture(number) for number in numbers]).astype(int)
        assert np.abs(decoded(tmp_path / 'out' / name)[0] - before).mean() < 3

    give(monkeypatch, records[:2])
    prepare(tmp_path / 'in', tmp_path / 'even', size=64, fps=20, workers=1)
    pixels, times, _ = decoded(tmp_path / 'even' / names[0])
    assert times == pytest.approx([i / 20 for i in range(14)], abs=1e-4)
    shown = [max(i for i, t in enumerate(moments) if t <= 0.2 + time + 1e-6) for time in times]
    before = decoded(video)[0].astype(int)[shown]
    assert np.abs(pixels - before).mean(axis=(1, 2, 3)).max() < 3


def test_what_has_changed_is_done_again(tmp_path, monkeypatch):
    video = write(tmp_path / 'in' / 'video.mp4')
    folder = write_folder(tmp_path / 'in' / 'folder')
    out = tmp_path / 'out'

    def run(last=9):
        give(monkeypatch, [Record(str(video)), Record(str(folder), first=1, last=last)])
        summary = prepare(tmp_path / 'in', out, size=32, workers=1, max_failed=1)
        return summary['written'], summary['kept'], summary['failed']

    assert run() == (2, 0, 0)
    assert run() == (0, 2, 0)
    assert run(last=12) == (1, 1, 0)
    assert len(decoded(out / 'folder.mp4')[1]) == 12
    write(video, EVEN[:10])
    later = (out / 'video.mp4').stat().st_mtime + 5
    os.utime(video, (later, later))
    assert run(last=12) == (1, 1, 0)
    assert len(decoded(out / 'video.mp4')[1]) == 10
    video.write_bytes(b'')
    os.utime(video, (later + 5, later + 5))
    assert run(last=12) == (0, 1, 1)
    assert not (out / 'video.mp4').exists()  # or it would be taken for the new one


def test_what_is_old_goes_at_once(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / 'in' / 'a', range(1, 4))
    prepare(tmp_path / 'in', tmp_path / 'out', format='frames', workers=1)
    later = time.time() + 5
    os.utime(folder, (later, later))

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.shutil, 'rmtree', killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / 'in', tmp_path / 'out', format='frames', workers=1)
    assert not (tmp_path / 'out' / 'a').exists()


def test_damaged_videos_are_listed(tmp_path, caplog):
    for name in ('a', 'b', 'c'):
        write(tmp_path / 'in' / f'{name}.mp4')
    damaged = tmp_path / 'in' / 'b.mp4'
    data = damaged.read_bytes()
    damaged.write_bytes(data[: len(data) // 2])
    (tmp_path / 'in' / 'd.mp4').write_text('no video')

    out = tmp_path / 'out'
    summary = prepare(tmp_path / 'in', out, workers=1, max_failed=0.5)
    assert (summary['written'], summary['failed']) == (2, 2)
    with open(out / 'errors.csv', newline='') as file:
        assert {row['video'] for row in csv.DictReader(file)} == {
            str(damaged),
            str(tmp_path / 'in' / 'd.mp4'),
        }
    assert (out / 'list.csv').read_text() == 'video\na.mp4\nc.mp4\n'
    assert sorted(p.name for p in out.glob('*.mp4')) == ['a.mp4', 'c.mp4']
    with pytest.raises(BvtamError, match='2 of 4 videos failed'):
        prepare(tmp_path / 'in', out, workers=1, max_failed=0.25)
    with pytest.raises(BvtamError, match='b.mp4') as error:
        prepare(tmp_path / 'in', out, workers=1, on_error='raise')
    assert '\n' not in str(error.value)


# The process that encodes b.mp4 stops once the file is written, before it gets its name.
SCRIPT = """
import pathlib, sys, threading
from bvtam.data.prepare import run
encode = run.encode
def encode_and_wait(part, path, *rest):
    frames = encode(part, path, *rest)
    if part.source.endswith('b.mp4'):
        pathlib.Path(sys.argv[3]).touch()
        threading.Event().wait()
    return frames
run.encode = encode_and_wait
if __name__ == '__main__':
    run.prepare(sys.argv[1], sys.argv[2], size=48, workers=2)
"""


def test_a_killed_run_goes_on(tmp_path):
    for name in 'abc':
        write(tmp_path / 'in' / f'{name}.mp4')
    out, scratch, stopped = tmp_path / 'out', tmp_path / 'out' / '.prepare', tmp_path / 'stopped'
    (tmp_path / 'script.py').write_text(SCRIPT)
    command = [sys.executable, tmp_path / 'script.py', tmp_path / 'in', out, stopped]
    paths = os.pathsep.join([str(Path(bvtam.__file__).parents[1]), *sys.path])
    process = subprocess.Popen(command, env={**os.environ, 'PYTHONPATH': paths})
    while not (stopped.exists() and (out / 'a.mp4').exists() and (out / 'c.mp4').exists()):
        assert process.poll() is None, 'it ended before it could be killed'
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (left,) = scratch.glob('*.mp4')
    assert not (out / 'b.mp4').exists() and not (out / 'list.csv').exists()
    while Path(f'/proc/{left.stem}').exists():  # it takes its processes along
        time.sleep(0.01)

    write_folder(scratch / '12345')  # of a run that makes frame folders
    summary = prepare(tmp_path / 'in', out, size=48, workers=2)
    assert (summary['kept'], summary['written']) == (2, 1)
    prepare(tmp_path / 'in', tmp_path / 'whole', size=48, workers=1)
    assert tree(out) == tree(tmp_path / 'whole')


def test_settings_stay(tmp_path):
    write(tmp_path / 'in' / 'a.mp4', EVEN[:3])
    write(tmp_path / 'other' / 'a.mp4', EVEN[:3])
    out = tmp_path / 'out'
    prepare(tmp_path / 'in', out, size=32, workers=1)
    before = tree(out)
    for change, text in (
        ({'size': 48}, 'size 32, not 48'),
        ({'quality': 20}, 'quality 18, not 20'),
        ({'gop': 5}, 'gop 12, not 5'),
        ({'fps': 5.0}, 'fps None, not 5.0'),
        ({'format': 'frames'}, 'format video, not frames'),
    ):
        with pytest.raises(BvtamError, match=text):
            prepare(tmp_path / 'in', out, workers=1, **{'size': 32, **change})
    with pytest.raises(BvtamError, match='source'):
        prepare(tmp_path / 'other', out, size=32, workers=1)
    (out / 'prepare.json').write_text('{')
    with pytest.raises(BvtamError, match='damaged'):
        prepare(tmp_path / 'in', out, size=32, workers=1)
    after = tree(out)
    assert {name: after[name] for name in before if name != 'prepare.json'} == {
        name: data for name, data in before.items() if name != 'prepare.json'
    }


@pytest.mark.parametrize(
    'options, text',
    [
        ({'size': 31}, 'size'),
        ({'size': 8}, 'size'),
        ({'format': 'gif'}, 'format'),
        ({'gop': 0}, 'gop'),
        ({'quality': 52}, 'quality'),
        ({'quality': 0, 'format': 'frames'}, 'quality'),
        ({'fps': 0}, 'fps'),
        ({'workers': 0}, 'workers'),
        ({'on_error': 'substitute'}, 'on_error'),
        ({'max_failed': 2}, 'max_failed'),
        ({'time_limit': 0}, 'time_limit'),
    ],
)
def test_options_are_checked(tmp_path, options, text):
    write(tmp_path / 'in' / 'a.mp4', EVEN[:2])
    with pytest.raises(BvtamError, match=text):
        prepare(tmp_path / 'in', tmp_path / 'out', **options)
    assert not list(tmp_path.glob('out/*.mp4'))


def test_the_place_of_the_output_is_checked(tmp_path, monkeypatch):
    video = write(tmp_path / 'in' / 'a.mp4', EVEN[:2])
    for out, text in (
        (tmp_path / 'in', 'lies in the source'),
        (tmp_path / 'in' / 'deep' / 'out', 'lies in the source'),
        (tmp_path, 'holds videos of the source'),
    ):
        with pytest.raises(BvtamError, match=text):
            prepare(tmp_path / 'in', out)
    (tmp_path / 'link').symlink_to(tmp_path / 'in')
    with pytest.raises(BvtamError, match='lies in the source'):
        prepare(tmp_path / 'in', tmp_path / 'link' / 'out')
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'diary.txt').write_text('mine')
    with pytest.raises(BvtamError, match='not empty'):
        prepare(tmp_path / 'in', tmp_path / 'full')
    with pytest.raises(BvtamError, match='cannot be written') as error:
        prepare(tmp_path / 'in', tmp_path / 'full' / 'diary.txt')
    assert '\n' not in str(error.value)
    assert tree(tmp_path / 'full') == {'diary.txt': b'mine'}
    assert tree(tmp_path / 'in') == {'a.mp4': video.read_bytes()}

    give(monkeypatch, [Record(str(tmp_path / 'in' / n)) for n in ('b.mp4', 'b.avi', 'b.avi.mov')])
    with pytest.raises(BvtamError, match=r'b\.avi.* would become b\.avi\.mp4'):
        prepare(tmp_path / 'in', tmp_path / 'out')


def test_a_full_disk_is_said_so(tmp_path):
    pixels = torch.zeros(5, 3, 32, 32, dtype=torch.uint8)
    times = torch.arange(5, dtype=torch.float64)
    with pytest.raises(OSError, match='No space left'):
        write_video(Path('/dev/full'), pixels, times, 5.0, encode.Encoding().coding)


def test_mpeg4_takes_the_place_of_x264(tmp_path, monkeypatch, caplog):
    write(tmp_path / 'in' / 'a.mp4', UNEVEN)
    monkeypatch.setattr(av, 'codecs_available', {'mpeg4'})
    prepare(tmp_path / 'in', tmp_path / 'out', size=64, gop=10, workers=1)
    assert 'libx264' in caplog.text
    pixels, times, keys = decoded(tmp_path / 'out' / 'a.mp4')
    assert times == pytest.approx([float(t) for t in UNEVEN], abs=1 / 60000)
    assert keys == [0, 10, 20]
    assert np.abs(pixels - decoded(tmp_path / 'in' / 'a.mp4')[0].astype(int)).mean() < 4
    assert json.loads((tmp_path / 'out' / 'prepare.json').read_text())['codec'] == 'mpeg4'


def test_a_long_video_needs_little_memory(monkeypatch):
    frames = torch.randint(256, (50, 3, 40, 60), dtype=torch.uint8)
    monkeypatch.setattr(reader, '_CHUNK_BYTES', 8 * 3 * 20 * 30)
    asked, read = [], FrameArray.read_each
    monkeypatch.setattr(FrameArray, 'read_each', lambda *args: asked.append(args[1]) or read(*args))
    pictures = FrameArray(frames).read_in_turn(range(50), lambda frame: encode._resized(frame, 20))
    small = torch.stack(list(pictures)).permute(0, 2, 3, 1).int().numpy()
    assert max(map(len, asked)) == 8
    assert np.abs(small - resized(frames.permute(0, 2, 3, 1).numpy(), 30, 20)).max() <= 1


def _work(item):
    if item == 'crash':
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == 'wrong':
        raise BvtamError('wrong')
    if item == 'wait':
        time.sleep(0.5)
    if item == 'hang':
        watch(0.3)
        time.sleep(60)
    return item.upper()


def test_a_crash_is_laid_to_the_right_video():
    items = ['a', 'wait', 'crash', 'wait', 'b', 'wrong', 'hang', 'c']
    results = list(outcomes(_work, items, 2))
    assert sorted(item for item, _ in results) == sorted(items)
    for item, result in results:
        if item in ('crash', 'hang'):
            assert isinstance(result, Crash)
        elif item == 'wrong':
            assert isinstance(result, BvtamError)
        else:
            assert result == item.upper()


# ---- what was made takes the place of the source ----


def labelled(data, **options):
    """Label name of each video by its stem."""
    records, names = load_records(data, **options)
    return {Path(r.source).stem: names[r.label] if names else r.label for r in records}


@pytest.mark.parametrize('format', ['video', 'frames'])
def test_classes_named_by_numbers_keep_their_names(tmp_path, format):
    for name in ('0', '1', '10', '2'):
        write(tmp_path / 'in' / name / f'of_{name}.mp4', EVEN[:2])
    prepare(tmp_path / 'in', tmp_path / 'out', size=32, workers=1, format=format)
    wanted = labelled(tmp_path / 'in')
    assert wanted == {f'of_{name}': name for name in ('0', '1', '10', '2')}
    listed = tmp_path / 'out' / 'list.csv'
    assert labelled(listed) == labelled(listed, labels=['0', '1', '10', '2']) == wanted
    assert labelled(tmp_path / 'out') == wanted


@pytest.mark.parametrize('format', ['video', 'frames'])
def test_parts_stay_apart(tmp_path, format):
    rows = ['video,label,split']
    for i, split in enumerate(['train', 'val', 'test'] * 2):
        write(tmp_path / 'in' / f'v{i}.mp4', EVEN[:2])
        rows.append(f'v{i}.mp4,{"ab"[i // 3]},{split}')
    (tmp_path / 'in' / 's.csv').write_text('\n'.join(rows))
    prepare(tmp_path / 'in' / 's.csv', tmp_path / 'out', size=32, workers=1, format=format)
    for split in ('train', 'val', 'test'):
        wanted = labelled(tmp_path / 'in' / 's.csv', split=split)
        assert labelled(tmp_path / 'out' / 'list.csv', split=split) == wanted
        if format == 'frames':
            names = ['a', 'b']
            assert labelled(tmp_path / 'out' / f'{split}.txt', labels=names) == wanted


def test_what_is_of_no_source_any_more_is_told(tmp_path, caplog):
    for name in ('a/1.mp4', 'a/2.mp4', 'b/3.mp4'):
        write(tmp_path / 'in' / name, EVEN[:2])
    prepare(tmp_path / 'in', tmp_path / 'out', size=32, workers=1)
    assert not caplog.records
    (tmp_path / 'in' / 'a' / '2.mp4').rename(tmp_path / 'in' / 'b' / '2.mp4')
    prepare(tmp_path / 'in', tmp_path / 'out', size=32, workers=1)
    (message,) = (record.getMessage() for record in caplog.records)
    assert '1 videos are of no source any more' in message and 'a/2.mp4' in message
