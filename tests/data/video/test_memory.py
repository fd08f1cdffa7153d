"""Memory, descriptors, space: decoding takes little of them, and what runs out is told as that."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from support.cli import SAMPLE
from support.videos import png
from torch.utils.data import DataLoader

import bvtam
from bvtam import cli
from bvtam.clip import ClipConfig
from bvtam.data import datasets, failures
from bvtam.data.datasets import SampleError, VideoDataset, collate
from bvtam.data.failures import Failures, machine_error, starting_processes
from bvtam.data.labels import read_labels
from bvtam.data.load import load_records
from bvtam.data.prepare import run as prepare_module
from bvtam.data.records import Record
from bvtam.data.transforms import TrainTransform, read_crops, to_crops
from bvtam.data.video import images, pipes
from bvtam.data.video.file import VideoFile
from bvtam.data.video.folders import FrameFolder
from bvtam.data.video.in_memory import FrameArray
from bvtam.data.video.memory import Budget, prefetch
from bvtam.data.video.open import open_video
from bvtam.data.video.reader import VideoError
from bvtam.errors import BvtamError, MachineError
from bvtam.inference import clips as clips_module
from bvtam.inference.clips import clip_plan, read_clips
from bvtam.inference.extract import extract
from bvtam.inference.predict import predict_many
from bvtam.inference.windows import windows_many

CLIP = ClipConfig(num_frames=4, resize=20, crop_size=16, num_clips=2, num_crops=3)


def pictures(count=8, height=24, width=32):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def folder(path, count=4):
    path.mkdir()
    for number, picture in enumerate(pictures(count), 1):
        Image.fromarray(picture).save(path / f'{number:05d}.png')
    return path


def model():
    torch.manual_seed(0)
    found = bvtam.create_model('bvtam_tiny_8x2', num_classes=3).eval()
    found.clip_config = CLIP
    return found


# ---- frames one by one ----


@pytest.mark.parametrize('kind', ['file', 'folder', 'array', 'tensor'])
def test_frames_one_by_one_are_those_of_a_read(kind, tmp_path):
    array = pictures()
    source = {
        'file': lambda: SAMPLE,
        'folder': lambda: folder(tmp_path / 'frames', 8),
        'array': lambda: array,
        'tensor': lambda: torch.from_numpy(array).permute(0, 3, 1, 2),
    }[kind]()
    reader, indices = open_video(source), [3, 0, 7, 3, 5, 5, 1, 2]
    whole = reader.read(indices)
    shapes, layouts = set(), set()

    def look(frame):
        shapes.add(frame.shape)
        layouts.add(frame.is_contiguous() or frame.is_contiguous(memory_format=torch.channels_last))
        return frame.clone()

    assert torch.equal(torch.cat(reader.read_each(indices, look)), whole)
    assert shapes == {(1, *whole.shape[1:])} and layouts == {True}
    crops = [to_crops(part, CLIP) for part in whole.split(4)]
    assert all(map(torch.equal, read_crops(reader, [indices[:4], indices[4:]], CLIP), crops))
    for crop in ('multi_scale', 'random_resized', 'random', 'center'):
        for colors in ({}, {'color_jitter': 0.5}, {'rand_augment': 2}, {'random_erasing': 0.9}):
            train = TrainTransform(CLIP, crop, flip_labels={0: 1}, **colors)
            seeds = [torch.Generator().manual_seed(3) for _ in range(2)]
            view = train.draw(seeds[0])
            one_by_one = view.finish(torch.cat(reader.read_each(indices, view.crop)), 0)
            pixels, label = train(whole, 0, seeds[1])
            assert torch.equal(one_by_one[0], pixels) and one_by_one[1] == label


def test_one_frame_of_full_size_is_held_at_a_time(monkeypatch):
    alive, most = [], []
    frame_to_crops = partial(to_crops, clip=CLIP)

    class Watched(VideoFile):
        def _read_each(self, indices, function):
            def watched(frame):
                most.append(1 + sum(ref() is not None for ref in alive))
                alive.append(weakref.ref(frame))
                return function(frame)

            return super()._read_each(indices, watched)

    Watched(SAMPLE).read_each(range(20), frame_to_crops)
    assert len(most) == 20 and max(most) == 1


def test_threads_wait_for_a_budget_and_a_giant_has_it_alone():
    budget, lock, held, most = Budget(100), threading.Lock(), [], []

    def work(size):
        with budget.hold(size), budget.hold(size):  # a thread holds but once
            with lock:
                held.append(size)
                most.append(tuple(held))
            threading.Event().wait(0.01)
            with lock:
                held.remove(size)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [30, 40, 1000, 50, 10, 1000, 60, 100, 5]))
    assert all(sum(sizes) <= 100 or 1000 in sizes for sizes in most)
    assert all(sum(sizes) == 1000 for sizes in most if 1000 in sizes)


def test_clips_ahead_are_few_where_they_are_large(monkeypatch):
    made = []

    class Counted(FrameArray):
        def read_each(self, indices, function):
            made.append(self.name)
            return super().read_each(indices, function)

    sources = [Counted(pictures(), name=str(i)) for i in range(20)]
    size = CLIP.num_clips * CLIP.num_crops * 3 * 4 * 16 * 16
    monkeypatch.setattr(clips_module, '_BYTES_AHEAD', 2 * size)
    with ThreadPoolExecutor(8) as pool:
        found = read_clips(pool, 8, sources, clip_plan(CLIP), CLIP, 9.0)
        next(found)
        assert len(made) <= 4
        assert len(list(found)) == 19
    assert prefetch(2, 1 << 20) == 2 and prefetch(2, 300 << 20) == 1 and prefetch(0, 9) is None


# ---- limits ----


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_images_have_the_pixel_limit_of_videos(tmp_path):
    giant = tmp_path / 'giant'
    giant.mkdir()
    for number in range(4):
        (giant / f'{number}.png').write_bytes(png(13000, 13000, b''))
    listed = Failures(2, 1.0)
    good = folder(tmp_path / 'good')
    results = list(predict_many(model(), [giant, good], on_error='skip', failures=listed))
    assert [result['video'] for result in results] == [str(good)]
    assert '0.png has 13000x13000 pixels, more than 67108864' in listed.reasons[str(giant)]
    with pytest.raises(VideoError, match='13000x13000'):
        FrameFolder(giant).read([0])


def test_arrays_have_the_pixel_limit_of_videos():
    one_row = np.zeros((1, 1, 1, 3), np.uint8)
    with pytest.raises(BvtamError, match='frames have 9000x9000 pixels, more than'):
        open_video(np.broadcast_to(one_row, (1, 9000, 9000, 3)))
    with pytest.raises(BvtamError, match='frames have 9000x9000 pixels, more than'):
        open_video(torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(1, 3, 9000, 9000))


@pytest.mark.parametrize('shape', [(20000, 2), (2, 20000)])
def test_narrow_frames_do_not_become_huge(shape):
    clip = ClipConfig(num_frames=2)
    frame = torch.zeros(1, 3, *shape, dtype=torch.uint8)
    with pytest.raises(BvtamError, match='resized to 224 on the shorter side.* crop them first'):
        to_crops(frame, clip)
    assert TrainTransform(clip)(frame, 0, torch.Generator())[0].shape == (3, 1, 224, 224)
    assert to_crops(frame[..., :500], ClipConfig(resize=32, crop_size=32)).shape[-1] == 32


@pytest.mark.timeout(60)
@pytest.mark.parametrize('kind', ['pipe', 'device', 'folder'])
def test_only_regular_files_are_images(kind, tmp_path):
    good, bad = folder(tmp_path / 'good'), folder(tmp_path / 'bad')
    (bad / '00003.png').unlink()
    if kind == 'pipe':
        os.mkfifo(bad / '00003.png')
    elif kind == 'device':
        (bad / '00003.png').symlink_to('/dev/zero')
    else:
        (bad / '00003.png').mkdir()
    listed = Failures(2, 1.0)
    for found in (
        predict_many(model(), [bad, good], on_error='skip', failures=listed),
        windows_many(model(), [bad, good], 1, on_error='skip', failures=Failures(2, 1.0)),
    ):
        assert [result['video'] for result in found] == [str(good)]
    assert f'00003.png is a {kind}; a regular file' in listed.reasons[str(bad)]


@pytest.mark.timeout(60)
def test_lists_and_labels_are_regular_files(tmp_path):
    os.mkfifo(tmp_path / 'list.csv')
    with pytest.raises(BvtamError, match=r'list\.csv is a pipe'):
        load_records(tmp_path / 'list.csv')
    with pytest.raises(BvtamError, match='/dev/zero is a device'):
        read_labels('/dev/zero')


@pytest.mark.timeout(60)
def test_a_pipe_without_an_end_does_not_fill_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(pipes, '_LONGEST', 3 << 20)
    monkeypatch.setattr(pipes.tempfile, 'tempdir', str(tmp_path))
    os.mkfifo(tmp_path / 'pipe')

    def feed():
        with open(tmp_path / 'pipe', 'wb') as file, pytest.raises(BrokenPipeError):
            while True:
                file.write(bytes(1 << 20))

    writer = threading.Thread(target=feed)
    writer.start()
    with pytest.raises(VideoError, match='as if it had no end; --stream reads it as it comes'):
        pipes.copy_pipe(str(tmp_path / 'pipe'), 9.0)
    writer.join()
    assert os.listdir(tmp_path) == ['pipe']


# ---- what runs out ----


def ffmpeg_error(number):
    try:
        av.error.err_check(-number)
    except av.FFmpegError as error:
        return error


@contextmanager
def no_descriptors():
    """Nothing more can be opened in the block."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_no_descriptors_is_no_damage(tmp_path):
    readers = [VideoFile(SAMPLE), FrameFolder(folder(tmp_path / 'frames'))]
    readers[1].files  # noqa: B018 - listed
    for reader in readers:
        with no_descriptors(), pytest.raises(MachineError) as told:
            reader.read([0])
        assert str(told.value).startswith(str(reader.name)) and 'ulimit -n' in str(told.value)
        assert 'damaged' not in str(told.value)
        assert reader.read([0]).ndim == 4  # later


def test_what_the_machine_lacks_stops_every_run(tmp_path, monkeypatch):
    names = [str(tmp_path / f'{i}.mp4') for i in range(3)]
    for name in names:
        Path(name).write_bytes(SAMPLE.read_bytes())
    opened, lacking = av.open, [True]

    def fail(place, *rest, **options):
        if lacking[0] and '1.mp4' in str(place):
            raise ffmpeg_error(errno.EMFILE)
        return opened(place, *rest, **options)

    monkeypatch.setattr(av, 'open', fail)
    listed = Failures(3, 1.0, tmp_path / 'errors.csv')
    with pytest.raises(MachineError, match=r'1\.mp4: no '):
        list(predict_many(model(), names, on_error='skip', failures=listed))
    with pytest.raises(MachineError, match=r'1\.mp4: no '):
        list(windows_many(model(), names, 2, on_error='skip', failures=listed))
    assert not listed and not (tmp_path / 'errors.csv').exists()
    with pytest.raises(MachineError, match=r'1\.mp4: no '):
        extract(model(), names, tmp_path / 'out', on_error='skip', max_failed=1.0)
    assert not (tmp_path / 'out' / 'errors.csv').exists()
    for policy in ('skip', 'substitute', 'raise'):
        data = VideoDataset([Record(name, 0) for name in names], CLIP, on_error=policy)
        with pytest.raises(SampleError, match=r'1\.mp4: no '):
            data[1]
    lacking[0] = False
    assert extract(model(), names, tmp_path / 'out', max_failed=0)['videos'] == 3


def test_prepare_stops_where_the_machine_lacks_something(tmp_path, monkeypatch):
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in' / 'a.mp4').write_bytes(SAMPLE.read_bytes())

    def outcomes(work, items, workers):
        for item in items:
            yield item, MachineError('a.mp4: out of memory')

    monkeypatch.setattr(prepare_module, 'outcomes', outcomes)
    with pytest.raises(MachineError, match='out of memory'):
        prepare_module.prepare(tmp_path / 'in', tmp_path / 'out', on_error='skip', max_failed=1)
    assert not (tmp_path / 'out' / 'errors.csv').exists()


@pytest.mark.parametrize('whose', ['python', 'torch'])
def test_no_memory_is_told_in_one_line_and_skips_no_video(whose):
    class Large(FrameArray):
        def _read(self, indices):
            if whose == 'torch':
                torch.empty(1 << 55, dtype=torch.uint8)
            raise MemoryError

    listed = Failures(1, 1.0)
    with pytest.raises(MachineError, match=r'^mine: out of memory; lower workers or batch_size'):
        video = Large(pictures(), name='mine')
        list(predict_many(model(), [video], on_error='skip', failures=listed))
    assert not listed


def test_what_a_library_refuses_to_a_damaged_file_is_damage(monkeypatch, tmp_path):
    monkeypatch.setattr(av, 'open', lambda *_, **__: (_ for _ in ()).throw(error))
    error = ffmpeg_error(errno.ENOMEM)
    with pytest.raises(VideoError, match='cannot be opened'):
        VideoFile(SAMPLE).read([0])
    monkeypatch.setattr(failures, 'memory_is_short', lambda: True)
    with pytest.raises(MachineError, match='out of memory'):
        VideoFile(SAMPLE).read([0])

    reader = FrameFolder(folder(tmp_path / 'frames'))
    monkeypatch.setattr(Image.Image, 'load', lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(VideoError, match='cannot be read'):
        reader.read([0])
    monkeypatch.setattr(images, 'memory_is_short', lambda: True)
    with pytest.raises(MachineError, match='out of memory'):
        reader.read([0])


@pytest.mark.parametrize('number', [errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ENOMEM])
def test_causes_are_looked_for(number):
    outer = VideoError('a.mp4 is damaged')
    for error in (OSError(number, 'x'), ffmpeg_error(number)):
        if not isinstance(error, MemoryError):
            assert str(machine_error(error, 'a.mp4')).startswith('a.mp4: ')
            outer.__cause__ = error
            assert machine_error(outer) is not None


def test_other_errors_stay_what_they_are():
    for error in (OSError(errno.EIO, 'x'), PermissionError(errno.EACCES, 'x'), RuntimeError('x')):
        assert machine_error(error) is None


def test_a_list_of_failures_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    listed = Failures(9, 1.0, tmp_path / 'errors.csv')

    def full(_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(failures.os, 'fsync', full)
    with pytest.raises(BvtamError, match=r'errors\.csv cannot be written: No space left'):
        listed.add('a.mp4', 'damaged')


@pytest.mark.parametrize('error', [MemoryError(), RuntimeError("x: can't allocate memory: y")])
def test_the_command_line_tells_it_in_one_line(error, monkeypatch, capsys):
    def run():
        raise error

    monkeypatch.setattr(cli, 'app', run)
    monkeypatch.setattr(sys.stdout, 'reconfigure', lambda **_: None, raising=False)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    told = capsys.readouterr().err
    assert stop.value.code == 1 and told.count('\n') == 1 and 'bvtam: out of memory' in told


# ---- shared memory ----


def test_workers_do_without_shared_memory(monkeypatch, tmp_path):
    data = VideoDataset([Record(str(SAMPLE), i) for i in range(3)], CLIP)

    def batches():
        return list(DataLoader(data, 2, collate_fn=collate, num_workers=1))

    wanted = batches()

    def none_left(_):
        raise RuntimeError(
            'unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device'
        )

    monkeypatch.setattr(datasets, 'default_collate', none_left)
    for batch, right in zip(batches(), wanted, strict=True):
        for key in ('clip', 'label', 'index'):
            assert type(batch[key]) is torch.Tensor and torch.equal(batch[key], right[key])
        assert batch['video'] == right['video']
        batch['clip'].add_(1)  # is the receiver's own
    with pytest.raises(RuntimeError, match='unable to allocate'):
        collate([data[0]])


def test_no_shared_memory_at_all_is_told_with_its_size(monkeypatch):
    def none_left():
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(failures.multiprocessing, 'Lock', none_left)
    lacking = pytest.raises(MachineError, match=r'no shared memory is left.* --shm-size')
    with lacking as told, starting_processes(2):
        raise AssertionError
    assert not os.path.isdir('/dev/shm') or '(/dev/shm: ' in str(told.value)
    killed = 'DataLoader worker (pid 7) is killed by'
    lacking = RuntimeError(
        f'{killed} signal: Bus error. It is possible that workers are out of shared memory'
    )
    assert 'shared memory' in str(machine_error(lacking))
    assert 'was killed' in str(machine_error(RuntimeError(f'{killed} x')))


def test_a_giant_image_is_one_line_on_the_command_line(tmp_path):
    (tmp_path / '1.png').write_bytes(png(13000, 13000, b''))
    command = [sys.executable, '-m', 'bvtam', 'predict', str(tmp_path), '--model', 'bvtam_r50_8x2']
    told = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert told.returncode == 1 and told.stderr.count('\n') == 1
    assert 'has 13000x13000 pixels, more than' in told.stderr
