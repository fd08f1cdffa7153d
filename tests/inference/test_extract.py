"""`extract` against decoding and model calls of its own, and against SIGKILL."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from support.models import Notes
from support.videos import blocks, write_pictures
from torch import nn

import bvtam
from bvtam.clip import ClipConfig
from bvtam.data.video.reader import VideoError
from bvtam.errors import BvtamError
from bvtam.inference import clips as clips_module
from bvtam.inference.extract import extract, local_device
from bvtam.inference.shards import iter_features, load_features

FPS = 10
CLIP = ClipConfig(num_frames=4, resize=32, crop_size=32, num_clips=2, num_crops=3)
SHARD = 'shard-00000-of-00001.safetensors'  # where there is one alone
LENGTHS = {'a': 17, 'b': 9, 'c': 26, 'd': 3, 'e': 12}  # frames of the videos of the small corpus


def write_video(path, num_frames, size=(48, 32), seed=0):
    """Frames of random blocks, each one another."""
    values, (width, height) = np.random.default_rng(seed), size
    write_pictures(path, (blocks(values, height, width) for _ in range(num_frames)), FPS)


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp('corpus')
    for seed, (name, num_frames) in enumerate(LENGTHS.items()):
        write_video(folder / f'{name}.mp4', num_frames, seed=seed)
    return folder


@pytest.fixture(scope='module')
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp('many')
    for i in range(200):
        write_video(folder / f'{i:03}.mp4', 8, size=(32, 32), seed=i)
    return folder


class Small(nn.Module):
    """The least that `extract` needs of a net."""

    num_classes = 2

    def __init__(self, clip=CLIP):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(5, 3, 1, 4, 4, generator=generator) / 4)
        self.norm = nn.BatchNorm3d(3)
        self.clip_config = clip
        self.batches = Notes()

    def forward_features(self, x):
        self.batches.append((len(x), self.training, torch.is_grad_enabled(), x.dtype))
        return torch.nn.functional.conv3d(x, self.weight, stride=(1, 4, 4)).relu()

    def forward_head(self, x, pre_logits=False):
        assert pre_logits
        return x.mean((2, 3, 4))


def real(name='bvtam_tiny_8x2', clip=CLIP, **options):
    """A net of the zoo with norms that fit its weights, so that its features differ by clip."""
    model = bvtam.create_model(name, **options).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            module.momentum = 1.0
    with torch.no_grad():
        model(torch.randn(8, 3, 4, 32, 32))
    model.clip_config = clip
    return model.eval()


def views(path, clip_indices, lefts=(0, 8, 16)):
    """(crops, C, T, 32, 32) of each clip, without any of the package's code."""
    with av.open(str(path)) as container:
        frames = np.stack([f.to_ndarray(format='rgb24') for f in container.decode(video=0)])
    frames = (frames / 255 - np.array(CLIP.mean)) / np.array(CLIP.std)
    frames = torch.from_numpy(frames).float().permute(3, 0, 1, 2)
    return [torch.stack([frames[:, c, :, x : x + 32] for x in lefts]) for c in clip_indices]


def uniform(num_frames, count=4):
    """The two test clips of a video: the middles of its parts, and one frame later."""
    if num_frames <= count:
        return [[i * num_frames // count for i in range(count)]] * 2
    tick = num_frames / count
    return [
        [
            min(int(tick / 2 + shift + tick * i), ((i + 1) * num_frames - 1) // count)
            for i in range(count)
        ]
        for shift in (0, 1)
    ]


def pooled(model):
    """The row of a clip: its pooled features, averaged over the crops."""

    def rows(x):
        features = model.forward_head(model.forward_features(x), pre_logits=True)
        return features.mean(0, keepdim=True), [range(4)]

    return rows


def folder_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check_rows(folder, corpus, clips_of, rows_of):
    """`clips_of(num_frames)` -> frames of clips; `rows_of(views)` -> (R, D) and their places."""
    found = load_features(folder)
    assert list(found) == [str(corpus / f'{name}.mp4') for name in LENGTHS]
    for name, num_frames in LENGTHS.items():
        clips = clips_of(num_frames)
        rows, frames = [], []
        for clip, pixels in zip(clips, views(corpus / f'{name}.mp4', clips), strict=True):
            with torch.no_grad():
                features, places = rows_of(pixels)
            rows.append(features)
            frames += [[clip[i] for i in place] for place in places]
        got = found[str(corpus / f'{name}.mp4')]
        torch.testing.assert_close(got.features.float(), torch.cat(rows), atol=1e-4, rtol=1e-4)
        assert got.frames.tolist() == frames
        torch.testing.assert_close(got.times, torch.tensor(frames, dtype=torch.float64) / FPS)
    every = torch.cat([rows.features for rows in found.values()])
    assert (every - every.mean(0)).abs().max() > 0.1  # the oracle can tell one from another
    return found


@pytest.mark.parametrize('file_format', ['safetensors', 'parquet'])
def test_a_row_is_a_test_clip_averaged_over_its_crops(corpus, tmp_path, file_format):
    if file_format == 'parquet':
        pytest.importorskip('pyarrow')
    model, out = real(), tmp_path / 'out'
    summary = extract(
        model, corpus, out, format=file_format, shard_size=2, batch_size=3, max_failed=0
    )
    assert summary == {'out': str(out), 'videos': 5, 'rows': 10, 'failed': 0, 'shards': 3}
    names = [f'shard-0000{k}-of-00003.{file_format}' for k in range(3)]
    assert sorted(p.name for p in out.iterdir()) == ['extract.json', *names]
    found = check_rows(out, corpus, uniform, pooled(model))
    assert [tuple(rows.features.shape) for rows in found.values()] == [(2, 512)] * 5
    a = found[str(corpus / 'a.mp4')].features
    assert (a[0] - a[1]).abs().max() > 0.02
    assert [rows.video for rows in iter_features(out)] == list(found)

    half = tmp_path / 'half'
    extract(model, corpus, half, format=file_format, dtype='float16', batch_size=64)
    halves = load_features(half)
    for video, rows in found.items():
        assert halves[video].features.dtype == torch.float16
        got = halves[video].features.float()
        torch.testing.assert_close(got, rows.features, atol=2e-4, rtol=1e-3)


def test_shards_can_be_read_with_the_formats_own_tools(corpus, tmp_path):
    safetensors_torch = pytest.importorskip('safetensors.torch')
    extract(Small(), [str(corpus / 'c.mp4'), corpus / 'a.mp4'], tmp_path / 'out')
    tensors = safetensors_torch.load_file(tmp_path / 'out' / 'shard-00000-of-00001.safetensors')
    rows = load_features(tmp_path / 'out')
    assert tensors['video'].tolist() == [0, 0, 1, 1]
    names = [str(corpus / 'a.mp4'), str(corpus / 'c.mp4')]
    assert tensors['features'].equal(torch.cat([rows[name].features for name in names]))

    parquet = pytest.importorskip('pyarrow.parquet')
    extract(Small(), corpus, tmp_path / 'table', format='parquet', shard_size=4)
    table = parquet.read_table(tmp_path / 'table' / 'shard-00000-of-00002.parquet')
    assert table.column_names == ['video', 'features', 'frames', 'times']
    names = [str(corpus / f'{name}.mp4') for name in 'abcd' for _ in range(2)]
    assert table['video'].to_pylist() == names
    first = table['features'].to_pylist()[0]
    np.testing.assert_allclose(first, rows[names[0]].features[0], rtol=1e-6)


def test_a_row_is_a_window(corpus, tmp_path):
    """0.8 s every 0.5 s, at 10 frames a second: 8 frames, then on by 5, the rest in the last one."""
    model = real()

    def windows(num_frames):
        starts = [0]
        while starts[-1] + 8 < num_frames:
            starts.append(starts[-1] + 5)
        if len(starts) > 1 and num_frames - starts[-1] < 4:
            starts.pop()
        lengths = [*[8] * (len(starts) - 1), num_frames - starts[-1]]
        return [
            [start + (int(n / 8 + n / 4 * i) if n > 4 else i * n // 4) for i in range(4)]
            for start, n in zip(starts, lengths, strict=True)
        ]

    out = tmp_path / 'out'
    extract(model, [corpus], out, what='window', length=0.8, every=0.5, batch_size=4, workers=3)
    found = check_rows(out, corpus, windows, pooled(model))
    assert [len(rows.features) for rows in found.values()] == [3, 2, 5, 1, 2]

    extract(model, corpus, tmp_path / 'side_by_side', what='window', length=0.8)
    rows = load_features(tmp_path / 'side_by_side')[str(corpus / 'c.mp4')]
    assert rows.frames[:, 0].tolist() == [1, 9, 17]


@pytest.mark.parametrize('stage', ['pooled', 'layer2', 0])
def test_a_row_is_a_pair_of_frames(corpus, tmp_path, stage):
    model = real()

    def pairs(x):
        if stage == 'pooled':
            maps = model.forward_features(x)
        else:
            maps = model.forward_intermediates(x)[1][{'layer2': 2, 0: 0}[stage]]
        return maps.mean((0, 3, 4)).T, [(0, 1), (2, 3)]

    extract(model, corpus, tmp_path, what='pair', stage=stage, batch_size=5)
    check_rows(tmp_path, corpus, uniform, pairs)


def test_a_row_of_a_resnet_is_a_frame_at_the_stage(corpus, tmp_path):
    model = real('tsm_resnet50_f8', backbone='resnet10t')
    extract(model, corpus, tmp_path / 'frames', what='pair', stage='layer3')

    def frames(x):
        maps = model.forward_intermediates(x)[1][3]
        return maps.mean((0, 3, 4)).T, [[i] for i in range(4)]

    def clip(x):
        return frames(x)[0].mean(0, keepdim=True), [range(4)]

    check_rows(tmp_path / 'frames', corpus, uniform, frames)
    # By its number, and the mean over time for a clip.
    extract(model, corpus, tmp_path / 'clips', stage=3)
    check_rows(tmp_path / 'clips', corpus, uniform, clip)
    settings = json.loads((tmp_path / 'clips' / 'extract.json').read_text())
    assert settings['stage'] == 'backbone.layer3'

    pooling = real('tam_resnet18_f8', temporal_pool=True)
    extract(pooling, corpus, tmp_path / 'pooling', what='pair', stage='layer2')

    def pairs(x):
        return pooling.forward_intermediates(x)[1][2].mean((0, 3, 4)).T, [(0, 1), (2, 3)]

    check_rows(tmp_path / 'pooling', corpus, uniform, pairs)


def test_the_net_is_left_as_it_came_and_runs_in_its_precision(corpus, tmp_path):
    model = Small().train().bfloat16()
    model.norm.eval()
    extract(model, corpus, tmp_path / 'out', batch_size=4, shard_size=5)
    assert {batch[1:] for batch in model.batches} == {(False, False, torch.bfloat16)}
    assert model.training and not model.norm.training
    # One blank clip that shows the shape, then 10 clips of three crops in fours, across videos.
    assert [batch[0] for batch in model.batches] == [1, 12, 12, 6]


# Killed and restarted


def work(folder, out, die_at='', call=0):
    """What the processes below do; `die_at` is a function of `os` whose n-th call is the last."""
    torch.set_num_threads(1)
    if die_at:
        calls, function = [], getattr(os, die_at)

        def die(*args):
            calls.append(args)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args)

        setattr(os, die_at, die)
    model = Small(replace(CLIP, num_crops=1))
    extract(model, folder, out, shard_size=8, batch_size=3, workers=2, max_failed=1)


@pytest.fixture(scope='module')
def start(corpus, tmp_path_factory):
    """Starts `work` in a process forked from one that has all imported: kills land in the work."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['bvtam.inference.extract', 'pytest', __name__])

    def start(*args):
        process = context.Process(target=work, args=args)
        process.start()
        return process

    finish(start(corpus, tmp_path_factory.mktemp('warm')))
    return start


def finish(process):
    process.join(60)
    assert process.exitcode == 0


@pytest.fixture(scope='module')
def uninterrupted(start, many, tmp_path_factory):
    """The folder of a run that nobody kills, and how long it took, in seconds."""
    folder = tmp_path_factory.mktemp('uninterrupted')
    begun = time.monotonic()
    finish(start(many, folder / 'out'))
    return folder_bytes(folder / 'out'), time.monotonic() - begun


def test_ten_kills_neither_lose_nor_repeat_a_video(start, many, uninterrupted, tmp_path):
    expected, seconds = uninterrupted
    out, moments, kills = tmp_path / 'out', random.Random(0), 0
    for shards in sorted(moments.sample(range(20), 10)):  # of 25: some are always left
        process = start(many, out)
        while process.is_alive() and len(list(out.glob('shard-*'))) < shards:
            time.sleep(0.002)
        process.join(moments.uniform(0, seconds / 25))  # somewhere in the shard after these
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills >= 8, kills
    finish(start(many, out))
    assert folder_bytes(out) == expected
    rows = list(iter_features(out))
    assert [row.video for row in rows] == sorted(map(str, many.iterdir()))
    assert all(len(row.features) == 2 for row in rows)


@pytest.mark.parametrize('die_at', ['fsync', 'replace'])
def test_killed_on_the_way_to_the_disk(start, corpus, tmp_path, die_at):
    folder = tmp_path / 'videos'
    folder.mkdir()
    for path in corpus.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / 'broken.mp4').write_bytes(b'no video' * 100)
    finish(start(folder, tmp_path / 'whole'))
    out = tmp_path / 'out'
    there = []
    # The second run dies at the shard, after the settings; the third, which finds these, at the list.
    for call in (1, 2, 2):
        process = start(folder, out, die_at, call)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        names = sorted(path.name for path in out.iterdir())
        assert [name.endswith('.tmp') for name in names] == [True] + [False] * len(there)
        assert names[1:] == there
        there.append(['extract.json', SHARD, 'errors.csv'][len(there)])
    finish(start(folder, out))
    assert folder_bytes(out) == folder_bytes(tmp_path / 'whole')
    assert 'errors.csv' in folder_bytes(out)


def test_two_runs_on_one_folder_do_not_harm_each_other(start, many, uninterrupted, tmp_path):
    out = tmp_path / 'out'
    for process in [start(many, out) for _ in range(2)]:
        finish(process)
    assert folder_bytes(out) == uninterrupted[0]


def test_a_file_taken_for_a_leftover_is_written_again(corpus, tmp_path, monkeypatch):
    fsync, taken = os.fsync, []

    def clean_up(descriptor):
        fsync(descriptor)
        leftovers = list((tmp_path / 'out').glob('.*.tmp'))
        if len(taken) < 2:
            taken.extend(leftovers)
            for path in leftovers:
                path.unlink()

    monkeypatch.setattr(os, 'fsync', clean_up)
    extract(Small(), corpus, tmp_path / 'out')
    assert len(taken) == 2
    assert len(load_features(tmp_path / 'out')) == 5


def test_ranks_share_the_work_and_the_folder_is_the_same(corpus, tmp_path, monkeypatch):
    (tmp_path / 'broken.mp4').write_bytes(b'no video' * 100)
    sources = [corpus, tmp_path / 'broken.mp4']
    options = {'shard_size': 1, 'max_failed': 0.2}
    extract(Small(), sources, tmp_path / 'one', **options)
    monkeypatch.setenv('WORLD_SIZE', '2')
    calls = []
    for rank in ('1', '0'):
        monkeypatch.setenv('RANK', rank)
        seen = []
        extract(
            Small(), sources, tmp_path / 'two', shard='env', **options,
            progress=lambda done, total, seen=seen: seen.append((done, total)),
        )  # fmt: skip
        calls.append(seen)
        if rank == '1':
            names = sorted(path.name[:11] for path in (tmp_path / 'two').glob('shard*'))
            assert names == ['shard-00001', 'shard-00003', 'shard-00005']
            with pytest.raises(BvtamError, match=r'two has 3 of its 6 shards: run the same extr'):
                load_features(tmp_path / 'two')
            assert len(load_features(tmp_path / 'two', partial=True)) == 3
    assert folder_bytes(tmp_path / 'two') == folder_bytes(tmp_path / 'one')
    for seen in calls:
        assert seen == sorted(seen) and seen[0] == (0, 3) and seen[-1] == (3, 3)

    for rank, world_size in (('2', '2'), ('x', '2'), ('-1', '2')):
        monkeypatch.setenv('RANK', rank)
        monkeypatch.setenv('WORLD_SIZE', world_size)
        with pytest.raises(BvtamError, match=f'RANK={rank} and WORLD_SIZE=2'):
            extract(Small(), sources, tmp_path / 'three', shard='env')


def test_a_share_is_dealt_where_it_is_asked_for(corpus, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('WORLD_SIZE', '2')
    # A worker that was given its own videos extracts them all, and is told of the other way.
    assert extract(Small(), corpus, tmp_path / 'own')['videos'] == 5
    assert "extracts all of its 5 videos: shard='env' would" in caplog.text
    with caplog.at_level('INFO', 'bvtam'):
        extract(Small(), corpus, tmp_path / 'two', shard_size=1, shard='env')
    assert 'takes every shard k with k % 2 = 1' in caplog.text
    assert extract(Small(), corpus, tmp_path / 'two', shard_size=1, shard=(0, 2))['videos'] == 5
    for wrong in ((2, 2), (0, 0), (-1, 2), ('0', '2'), 'all', 1):
        with pytest.raises(BvtamError, match=r"shard must be \(rank, world_size\), 'env' or None"):
            extract(Small(), corpus, tmp_path / 'two', shard=wrong)


# Videos that fail


@pytest.fixture
def damaged(corpus, tmp_path):
    """The corpus and two files that are no videos, of which one sorts into its middle."""
    folder = tmp_path / 'damaged'
    folder.mkdir()
    for path in corpus.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / 'bb.mp4').write_bytes(b'no video' * 100)
    (folder / 'f.mp4').write_bytes(b'')
    return folder


def test_failed_videos_are_listed_and_the_others_are_whole(corpus, damaged, tmp_path):
    out = tmp_path / 'out'
    summary = extract(Small(), damaged, out, shard_size=6, max_failed=0.3)
    assert summary == {'out': str(out), 'videos': 7, 'rows': 10, 'failed': 2, 'shards': 2}
    with (out / 'errors.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert [(row['video'], row['shard'][:11]) for row in rows] == [
        (str(damaged / 'bb.mp4'), 'shard-00000'),
        (str(damaged / 'f.mp4'), 'shard-00001'),
    ]
    assert all(len(row['reason']) > 5 for row in rows)
    found = load_features(out)
    assert [len(row.features) for row in found.values()] == [2, 2, 0, 2, 2, 2, 0]
    assert found[str(damaged / 'f.mp4')].features.shape == (0, 5)

    extract(Small(), corpus, tmp_path / 'sound')
    sound = load_features(tmp_path / 'sound')
    for name in LENGTHS:
        got = found[str(damaged / f'{name}.mp4')].features
        torch.testing.assert_close(got, sound[str(corpus / f'{name}.mp4')].features)

    # The list is made from the shards; a video is tried again without the shard.
    before = folder_bytes(out)
    (out / 'errors.csv').unlink()
    extract(Small(), damaged, out, shard_size=6, max_failed=0.3)
    assert folder_bytes(out) == before
    (damaged / 'f.mp4').write_bytes((corpus / 'a.mp4').read_bytes())
    (out / rows[1]['shard']).unlink()
    assert extract(Small(), damaged, out, shard_size=6, max_failed=0.3)['failed'] == 1
    assert len(load_features(out)[str(damaged / 'f.mp4')].features) == 2


def test_too_many_failures_stop_the_run_with_their_list(damaged, tmp_path):
    out = tmp_path / 'out'
    for _ in range(2):
        with pytest.raises(BvtamError, match='2 of 7 videos failed'):
            extract(Small(), damaged, out, shard_size=4, max_failed=0.2)
        assert len(list(out.glob('shard*'))) == 1  # the first is finished
        lines = (out / 'errors.csv').read_text().splitlines()
        assert [line.split(',')[0][-6:] for line in lines[1:]] == ['bb.mp4', '/f.mp4']
    assert extract(Small(), damaged, out, shard_size=4, max_failed=0.3)['failed'] == 2
    with pytest.raises(VideoError, match=r'bb\.mp4'):
        extract(Small(), damaged, tmp_path / 'strict', on_error='raise')
    assert not list((tmp_path / 'strict').glob('shard*'))


def test_a_video_that_fails_in_its_middle_leaves_no_rows(corpus, tmp_path, monkeypatch):
    open_video = clips_module.open_video

    def breaking(source, *options):
        reader = open_video(source, *options)
        read_each = reader.read_each

        def read_or_fail(indices, function):
            if source.endswith('c.mp4') and max(indices) > 20:
                raise VideoError(f'{source} ends in noise')
            return read_each(indices, function)

        reader.read_each = read_or_fail
        return reader

    monkeypatch.setattr(clips_module, 'open_video', breaking)
    monkeypatch.setattr(clips_module, '_FRAMES_A_READ', 4)
    options = {'what': 'window', 'length': 0.8, 'every': 0.5, 'batch_size': 2}
    extract(Small(), corpus, tmp_path, **options, max_failed=0.2)
    found = load_features(tmp_path)
    assert [len(row.features) for row in found.values()] == [3, 2, 0, 1, 2]
    assert 'ends in noise' in (tmp_path / 'errors.csv').read_text()


def test_decoding_stays_a_few_reads_ahead():
    running, most, lock = 0, 0, threading.Lock()

    def job(i):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        return i

    taken = []
    with ThreadPoolExecutor(3) as pool:
        for i in clips_module._ahead(pool, 4, job, iter(range(50))):
            time.sleep(0.002)
            with lock:
                running -= 1
            taken.append(i)
    assert taken == list(range(50))
    assert 2 <= most <= 5


# What a user can put right


def test_another_call_on_a_folder_is_refused_and_changes_nothing(corpus, tmp_path):
    out = tmp_path / 'out'
    extract(Small(), corpus, out, shard_size=2)
    before = folder_bytes(out)
    other = Small()
    with torch.no_grad():
        other.weight[0, 0, 0, 0, 0] += 1
    calls = (
        (Small(), {'what': 'pair'}, "out was made with what 'clip', not 'pair'"),
        (Small(), {'shard_size': 3}, 'out was made with shard_size 2, not 3'),
        (Small(), {'dtype': 'float16'}, "dtype 'float32', not 'float16'"),
        (Small(replace(CLIP, num_crops=1)), {}, "'num_crops': 3"),
        (other, {}, 'weights_sha256'),
        (Small().bfloat16(), {}, "precision 'float32', not 'bfloat16'|weights_sha256"),
        (Small(), {'resume': False}, r'extract\.json is there: name a new folder'),
    )
    for model, options, message in calls:
        with pytest.raises(BvtamError, match=message):
            extract(model, corpus, out, **{'shard_size': 2, **options})
    with pytest.raises(BvtamError, match='num_videos 5, not 1'):
        extract(Small(), corpus / 'a.mp4', out, shard_size=2)
    assert folder_bytes(out) == before
    # What changes no value may differ.
    extract(Small(), corpus, out, shard_size=2, batch_size=1, workers=1, max_failed=0)
    assert folder_bytes(out) == before

    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'errors.csv').write_text('mine')
    with pytest.raises(BvtamError, match=r'mine holds other files and no extract\.json'):
        extract(Small(), corpus, tmp_path / 'mine')
    assert folder_bytes(tmp_path / 'mine') == {'errors.csv': b'mine'}


def test_a_second_run_that_began_at_the_same_moment_stops(corpus, tmp_path):
    out = tmp_path / 'out'

    def other_run(done, total):
        text = (out / 'extract.json').read_text()
        (out / 'extract.json').write_text(text.replace('"clip"', '"pair"'))

    with pytest.raises(BvtamError, match="out was made with what 'pair', not 'clip'"):
        extract(Small(), corpus, out, progress=other_run)
    assert not list(out.glob('shard*'))


def test_damaged_shards_and_settings_are_named(corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'extract\.json is missing'):
        load_features(tmp_path / 'nowhere')
    out = tmp_path / 'out'
    extract(Small(), corpus, out)
    whole = (out / SHARD).read_bytes()
    (out / SHARD).write_bytes(whole[:100])
    with pytest.raises(BvtamError, match=f'{SHARD} is damaged .*: delete it and run the same'):
        load_features(out)
    with pytest.raises(BvtamError, match=f'{SHARD} is damaged'):
        extract(Small(), corpus, out)
    (out / SHARD).unlink()
    extract(Small(), corpus, out)
    assert (out / SHARD).read_bytes() == whole
    for text in ('', '[]', '{"num_videos": 5, "shard_size": 0, "format": "safetensors"}'):
        (out / 'extract.json').write_text(text)
        with pytest.raises(BvtamError, match=r'extract\.json is damaged'):
            load_features(out)


def test_wrong_options_and_nets_are_one_line(corpus, tmp_path):
    image = Small()
    image.input_kind = 'image'
    features_only = bvtam.create_model('bvtam_tiny_8x2', features_only=True)
    features_only.clip_config = CLIP
    unpooled = bvtam.create_model('bvtam_tiny_8x2', num_classes=0, global_pool='')
    unpooled.clip_config = CLIP
    overflowing, broken = Small(), Small()
    with torch.no_grad():
        overflowing.weight.mul_(1e5)
        broken.weight[0, 0, 0, 0, 0] = float('nan')
    needs_length = "what='window' needs length, in seconds"
    for model, options, message in (
        (image, {}, 'Small takes single images; extract needs a video model'),
        (Small(None), {}, 'Small takes single images'),
        (features_only, {}, 'has no head; extract needs a model without features_only'),
        (unpooled, {}, r"bvtam_tiny_8x2 does not pool \(global_pool=''\); name a stage"),
        (real(), {'stage': 'layer9'}, "no stage 'layer9'; did you mean layer.*; give pooled, stem"),
        (real(), {'stage': 5}, "has no stage '5'.* or a number from 0 to 4"),
        (Small(), {'what': 'video'}, "what must be one of clip, window, pair, not 'video'"),
        (Small(), {'format': 'npz'}, "format must be one of safetensors, parquet, not 'npz'"),
        (Small(), {'dtype': 'int8'}, "dtype must be one of float32, float16, not 'int8'"),
        (Small(), {'on_error': 'substitute'}, "skip, raise, not 'substitute'"),
        (Small(), {'batch_size': 0}, 'batch_size must be from 1 to 10000, not 0'),
        (Small(), {'max_failed': 2}, 'max_failed must be a share from 0 to 1, not 2'),
        (Small(), {'what': 'window'}, needs_length),
        (Small(), {'length': 2.0}, needs_length),
        (Small(), {'every': 2.0}, needs_length),
        (Small(), {'what': 'window', 'length': 0.0}, 'length must be at least 0.001 seconds'),
        (Small(), {'what': 'window', 'length': 1.0, 'every': -1.0}, 'every must be at least'),
        (Small(), {'what': 'window', 'length': float('nan')}, 'length must be at least'),
        (broken, {}, 'Small gave features that are not finite; its weights may be damaged'),
        (overflowing, {'dtype': 'float16'}, r"features up to .* need dtype='float32'"),
    ):
        with pytest.raises(BvtamError, match=message):
            extract(model, corpus, tmp_path / 'out', **options)
        assert not list((tmp_path / 'out').glob('shard*'))
        if (tmp_path / 'out').exists():  # the last two fail at work
            (tmp_path / 'out' / 'extract.json').unlink()


def test_parquet_without_pyarrow_names_the_extra(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
    with pytest.raises(BvtamError, match=r"needs pyarrow: pip install 'bvtam\[parquet\]'"):
        extract(Small(), corpus, tmp_path / 'out', format='parquet')
    assert not (tmp_path / 'out').exists()


def test_local_device_is_the_accelerator_of_this_rank(monkeypatch):
    monkeypatch.setattr(torch.accelerator, 'is_available', lambda: False)
    assert local_device() == torch.device('cpu')
    monkeypatch.setattr(torch.accelerator, 'is_available', lambda: True)
    monkeypatch.setattr(torch.accelerator, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.accelerator, 'current_accelerator', lambda: torch.device('cuda'))
    assert local_device() == torch.device('cuda', 0)
    monkeypatch.setenv('LOCAL_RANK', '3')
    assert local_device() == torch.device('cuda', 1)


def test_it_goes_on_where_the_data_are_spelled_otherwise_or_moved(corpus, tmp_path, monkeypatch):
    data = tmp_path / 'data'
    shutil.copytree(corpus, data)
    monkeypatch.chdir(tmp_path)
    extract(Small(), 'data', 'whole', shard_size=1, workers=1)
    names = [rows.video for rows in iter_features('whole')]
    for spelled in ('data/', './data', str(data), '../' + tmp_path.name + '/data', 'moved'):
        shutil.copytree('whole', 'part')
        (sorted(Path('part').glob('shard-*'))[-1]).unlink()
        if spelled == 'moved':
            data.rename('moved')
        extract(Small(), spelled, 'part', shard_size=1, workers=1)
        assert [rows.video for rows in iter_features('part')] == names
        shutil.rmtree('part')
    sorted(Path('moved').rglob('*.mp4'))[0].rename('moved/other.mp4')
    with pytest.raises(BvtamError, match='videos_sha256'):
        extract(Small(), 'moved', 'whole', shard_size=1, workers=1)
