"""`evaluate` against plain numpy counts of what `predict` says, by one process and by several."""

from __future__ import annotations

import csv
import json
import logging
import multiprocessing
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from support.models import Notes
from support.videos import blocks, write_pictures
from torch import nn
from torch.utils.data import Dataset

from bvtam.clip import ClipConfig
from bvtam.data.datasets import ImageDataset, SampleError, VideoDataset
from bvtam.data.load import load_records
from bvtam.data.records import Record
from bvtam.data.transforms import TrainTransform
from bvtam.engine.counts import Counts
from bvtam.engine.evaluate import evaluate
from bvtam.errors import BvtamError
from bvtam.inference.predict import predict

CLIP = ClipConfig(num_frames=4, resize=32, crop_size=24, num_clips=2, num_crops=3)
NAMES = [f'act {i}' for i in range(7)]
SIZES = (3, 2, 4, 1, 2, 0, 1)  # videos of each class: 13, which no number of processes divides


class Probe(nn.Module):
    """Seven linear scores of all values of a clip: any other frame, order or crop changes them."""

    def __init__(self, names=NAMES, clip=CLIP, num_classes=7):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shape = (num_classes, 3, clip.num_frames, clip.crop_size, clip.crop_size)
        self.weight = nn.Parameter(torch.randn(shape, generator=generator) / 40)
        self.norm = nn.BatchNorm3d(3)
        self.clip_config, self.label_names, self.num_classes = clip, names, num_classes
        self.pretrained_cfg, self.input_kind = {'architecture': 'probe'}, 'clip'
        self.modes, self.sizes = Notes(), Notes()

    def forward(self, x):
        self.sizes.append(len(x))
        self.modes.append((self.training, torch.is_grad_enabled(), x.dtype))
        return torch.einsum('bcthw,kcthw->bk', x, self.weight)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Class folders of videos of 8 frames of 48 x 32, each of other random blocks; one is damaged."""
    root = tmp_path_factory.mktemp('videos')
    random = np.random.default_rng(1)
    for name, size in zip(NAMES, SIZES, strict=True):
        for number in range(size):
            path = root / 'good' / name / f'{number}.mp4'
            write_pictures(path, (blocks(random, 32, 48) for _ in range(8)), 8)
    (root / 'broken.mp4').write_bytes(b'no video' * 100)
    return root


@pytest.fixture(scope='module')
def records(folder):
    return load_records(folder / 'good', labels=NAMES)[0]


@pytest.fixture(scope='module')
def broken(folder):
    return Record(str(folder / 'broken.mp4'), 1)


@pytest.fixture(scope='module')
def scores(records):
    """(videos, 7) probabilities, from `predict`."""
    rows = []
    for record in records:
        top = predict(Probe(), record.source, topk=7)['top']
        rows.append([row['score'] for row in sorted(top, key=lambda row: row['index'])])
    return np.array(rows)


def oracle(scores, labels, names=NAMES):
    """The numbers of the report, video by video."""
    matrix, top5 = np.zeros((len(names), len(names)), int), 0
    for row, label in zip(scores, labels, strict=True):
        ranking = sorted(range(len(row)), key=lambda i: (-row[i], i))
        matrix[label, ranking[0]] += 1
        top5 += label in ranking[:5]
    own = [
        100 * matrix[i, i] / matrix[i].sum() if matrix[i].sum() else None for i in range(len(names))
    ]
    return {
        'num_videos': len(labels),
        'top1': pytest.approx(100 * matrix.trace() / len(labels), abs=1e-9),
        'top5': pytest.approx(100 * top5 / len(labels), abs=1e-9),
        'mean_class_accuracy': pytest.approx(np.mean([a for a in own if a is not None]), abs=1e-9),
        'per_class': [
            {
                'label': names[i],
                'index': i,
                'num_videos': matrix[i].sum(),
                'correct': matrix[i, i],
                'accuracy': own[i],
            }
            for i in range(len(names))
        ],
        'most_confused': sorted(
            (
                {
                    'label': names[i],
                    'predicted': names[j],
                    'num_videos': matrix[i, j],
                    'share': 100 * matrix[i, j] / matrix[i].sum(),
                }
                for i in range(len(names))
                for j in range(len(names))
                if i != j and matrix[i, j]
            ),
            key=lambda pair: -pair['num_videos'],
        )[:10],
    }


def part(result, expected):
    return {key: result[key] for key in expected}


# ---- counts ----


def test_counts_are_those_of_an_oracle():
    random = np.random.default_rng(0)
    scores = random.integers(1, 5, (200, 9)) / 8  # few values: most rows have ties
    labels = random.integers(0, 7, 200)  # no video of class 8, and one of class 7
    labels[0], scores[0, 7] = 7, 1
    names = [str(i) for i in range(9)]
    expected = oracle(scores, labels, names)
    expected = {key: expected[key] for key in ('num_videos', 'top1', 'top5', 'mean_class_accuracy')}
    for size in (1, 7, 200):
        counts = Counts(9)
        for i in range(0, 200, size):
            counts.update(torch.tensor(scores[i : i + size]), torch.tensor(labels[i : i + size]))
        result = counts.result()
        assert part(result, expected) == expected
        loss = -np.log(scores[np.arange(200), labels]).mean()
        assert result['loss'] == pytest.approx(loss, abs=1e-6)
        assert counts.reduce().result() == result  # one process


def test_top5_of_few_classes_is_all_of_them():
    counts = Counts(3)
    counts.update(torch.tensor([[0.2, 0.3, 0.5]] * 2), torch.tensor([0, 2]))
    assert (counts.result()['top1'], counts.result()['top5']) == (50, 100)


def test_counts_refuse_what_they_cannot_count():
    counts, one = Counts(3), torch.tensor([0])
    with pytest.raises(BvtamError, match=r'scores \(1, 4\) and labels \(1,\) must be \(B, 3\)'):
        counts.update(torch.ones(1, 4), one)
    for label in (-1, 3):
        with pytest.raises(BvtamError, match=f'label {label} is outside the 3 classes'):
            counts.update(torch.ones(1, 3), torch.tensor([label]))
    with pytest.raises(BvtamError, match='not finite'):
        counts.update(torch.tensor([[0.0, float('nan'), 1.0]]), one)
    with pytest.raises(BvtamError, match='no video could be evaluated'):
        counts.result()


# ---- one process ----


@pytest.mark.parametrize('batch_size', [1, 3, 8, 30])
def test_evaluate_counts_what_predict_says(records, scores, batch_size):
    model = Probe()
    result = evaluate(model, records, batch_size=batch_size, workers=0)
    expected = oracle(scores, [record.label for record in records])
    assert list(result) == [
        'model', 'num_failed', 'num_videos', 'loss', 'top1', 'top5', 'mean_class_accuracy', 'views',
        'per_class', 'most_confused',
    ]  # fmt: skip
    assert part(result, expected) == expected
    assert 0 < result['top1'] < result['top5'] < 100  # or the test could not tell
    assert (result['model'], result['num_failed']) == ('probe', 0)
    assert result['views'] == {'num_clips': 2, 'num_crops': 3}
    # Six views of each video; whole videos where they fit, else parts of one.
    assert max(model.sizes) == {1: 1, 3: 3, 8: 6, 30: 30}[batch_size]
    assert sum(model.sizes) == 6 * 13


def test_the_scores_of_a_video_are_those_of_predict(records, scores):
    seen = []

    class Spy(Counts):
        def update(self, scores, labels, losses=None):
            seen.append(scores)
            super().update(scores, labels, losses)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('bvtam.engine.evaluate.Counts', Spy)
        evaluate(Probe(), records, batch_size=12, workers=0)
    assert np.abs(torch.cat(seen).numpy() - scores).max() < 1e-5  # rounding: batches of other sizes


def test_the_loss_is_the_mean_cross_entropy_of_views_and_videos(records):
    model, losses = Probe(), []
    for sample in VideoDataset(records, CLIP):
        pixels = sample['clip'].double().numpy() / 255
        shape = (1, 3, 1, 1, 1)
        views = (pixels - np.reshape(CLIP.mean, shape)) / np.reshape(CLIP.std, shape)
        logits = np.einsum('bcthw,kcthw->bk', views, model.weight.detach().double().numpy())
        losses.append(np.log(np.exp(logits).sum(1)) - logits[:, sample['label']])
    assert np.shape(losses) == (13, 6)
    for batch_size in (1, 30):  # a part of one video, five videos
        loss = evaluate(model, records, batch_size=batch_size, workers=0)['loss']
        assert loss == pytest.approx(np.mean(losses), abs=1e-5)


def test_other_views_and_datasets(records):
    model = Probe()
    one = evaluate(model, records, num_clips=1, num_crops=1, workers=0)
    assert one['views'] == {'num_clips': 1, 'num_crops': 1} and sum(model.sizes) == 13
    # A dataset for training, which substitutes, is evaluated on its test views, and left as it was.
    dataset = VideoDataset(
        records, replace(CLIP, num_clips=1, num_crops=1), train=TrainTransform(CLIP),
        on_error='substitute',
    )  # fmt: skip
    assert evaluate(model, dataset, workers=0) == one
    assert dataset.read.train is not None and dataset.on_error == 'substitute'
    six = evaluate(model, dataset, num_clips=2, num_crops=3, workers=0)
    assert six == evaluate(model, records, workers=0)
    with pytest.raises(BvtamError, match=r'clip.num_crops must be one of 1, 3, 5, 10, not 4'):
        evaluate(model, records, num_crops=4)


class Listed(Dataset):
    """Samples as they are; `label` is 1 where the process that makes it has one thread."""

    def __init__(self, clips, label_names=None):
        self.clips, self.label_names = clips, label_names

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, index):
        clip, threads = self.clips[index], torch.get_num_threads()
        failed = [] if clip is not None else [(f'video {index}', 'lost')]
        label = int(threads == 1)
        return {'clip': clip, 'label': label, 'index': index, 'video': str(index), 'failed': failed}


def test_clips_of_any_dataset_by_worker_processes(tmp_path):
    torch.manual_seed(5)
    pixels = torch.randint(0, 256, (5, 3, 4, 24, 24), dtype=torch.uint8)
    threads, state, done = torch.get_num_threads(), torch.get_rng_state(), []
    torch.set_num_threads(2)
    try:
        result = evaluate(
            Probe(), Listed([*pixels[:2], None, *pixels[2:]]), batch_size=4, max_failed=0.5,
            progress=lambda *counts: done.append(counts),
        )  # fmt: skip
        with pytest.raises(SampleError, match='video 2: lost'):
            evaluate(Probe(), Listed([*pixels[:2], None]), on_error='raise', workers=0)
        with pytest.raises(BvtamError, match=r'has 1 views .* not num_clips \* num_crops = 6'):
            evaluate(Probe(), Listed(pixels), num_clips=2, num_crops=3, workers=0)
    finally:
        torch.set_num_threads(threads)
    assert [row['num_videos'] for row in result['per_class']] == [0, 5, 0, 0, 0, 0, 0]
    assert result['num_failed'] == 1 and done == [(0, 6), (4, 6), (6, 6)]
    assert torch.equal(torch.get_rng_state(), state)


def test_an_image_net_on_images(tmp_path, records):
    class ImageProbe(Probe):
        def forward(self, x):
            return torch.einsum('bchw,kchw->bk', x, self.weight[:, :, 0])

    model = ImageProbe(clip=replace(CLIP, num_frames=1, num_clips=1, num_crops=1))
    model.input_kind = 'image'
    random, images, logits = np.random.default_rng(2), [], []
    for i in range(6):
        picture = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f'{i}.png')
        images.append(Record(str(tmp_path / f'{i}.png'), i))
        view = (picture[4:28, 4:28] / 255 - np.array(CLIP.mean)) / np.array(CLIP.std)
        logits.append(np.einsum('hwc,kchw->k', view, model.weight[:, :, 0].detach().numpy()))
    expected = oracle(np.array(logits), range(6))
    for data in (images, ImageDataset(images, model.clip_config)):
        assert part(evaluate(model, data, workers=0), expected) == expected
    with pytest.raises(BvtamError, match='probe takes single images: evaluate it on an ImageData'):
        evaluate(model, VideoDataset(records, CLIP), workers=0)


def test_the_model_is_left_as_it_came(records):
    model = Probe().train().bfloat16()
    model.norm.eval()
    evaluate(model, records[:2], workers=0, device='cpu')
    assert set(model.modes) == {(False, False, torch.bfloat16)}
    assert model.training and not model.norm.training
    assert model.weight.requires_grad and not model.weight.is_inference()
    model.forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        evaluate(model, records[:2], workers=0)
    assert model.training and not model.norm.training


def test_damaged_videos(records, broken, tmp_path, caplog):
    data, out = [*records[:5], broken, *records[5:]], tmp_path / 'report'
    with caplog.at_level(logging.WARNING, 'bvtam'):
        result = evaluate(Probe(), data, workers=0, out=out)
    assert result == evaluate(Probe(), records, workers=0) | {'num_failed': 1}
    text = f'1 of 14 videos failed and are not counted, listed in {out / "errors.csv"}'
    assert text in caplog.text
    with (out / 'errors.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['video'] for row in rows] == [broken.source] and 'opened' in rows[0]['reason']
    with pytest.raises(SampleError, match=r'broken\.mp4 cannot be opened'):
        evaluate(Probe(), data, workers=2, on_error='raise')
    assert not multiprocessing.active_children()
    with pytest.raises(BvtamError, match=r'1 of 14 videos failed, more than .* \(max_failed\)'):
        evaluate(Probe(), data, workers=0, max_failed=0.05)
    with pytest.raises(BvtamError, match='no video could be evaluated'):
        evaluate(Probe(), [broken], workers=0, max_failed=1)


# ---- labels ----


def test_labels_in_another_order_are_matched_by_name(records, caplog):
    names = NAMES[3:] + NAMES[:3]
    moved = [replace(record, label=names.index(NAMES[record.label])) for record in records]
    with caplog.at_level(logging.INFO, 'bvtam'):
        result = evaluate(Probe(), moved, label_names=names, workers=0)
    assert result == evaluate(Probe(), records, label_names=NAMES, workers=0)
    assert caplog.text.count('in another order: matched by name') == 1


def test_labels_that_do_not_fit(records):
    names = [*NAMES[:3], 'x', 'y', 'z', "it's"]
    for own, given, message in (
        (NAMES, names, "of the data 'x', 'y', 'z' and 1 more are none of probe"),
        (NAMES, NAMES[:6], "labels of probe 'act 6' are none of the data"),
        (NAMES, [*NAMES, 'act 0'], 'is there twice'),
        (None, ['a', 'b'], 'the data has 2 label names, but probe has 7 classes'),
    ):
        with pytest.raises(BvtamError, match=message):
            evaluate(Probe(own), records, label_names=given)
    with pytest.raises(BvtamError, match="labels of the data 'a' are none of probe"):
        evaluate(Probe(), Listed([None], label_names=['a']))
    for label, what in ((7, 'its label 7 is none'), (-1, 'it has no label')):
        wrong = [records[0], replace(records[1], label=label)]
        with pytest.raises(BvtamError, match=rf'1\.mp4: {what} of the 7 classes of probe'):
            evaluate(Probe(None), wrong)
    clip = torch.zeros(3, 4, 24, 24, dtype=torch.uint8)
    with pytest.raises(BvtamError, match='of the 1 classes of probe'):
        evaluate(Probe(None, num_classes=1), Listed([clip]), workers=1)


def test_what_evaluate_cannot_do_says_so(records, tmp_path, monkeypatch):
    def error(data=records, model=None, **options):
        with pytest.raises(BvtamError) as info:
            evaluate(model or Probe(), data, workers=options.pop('workers', 0), **options)
        assert '\n' not in str(info.value)
        return str(info.value)

    model = Probe()
    model.num_classes = 0
    assert 'probe has no classifier (num_classes=0)' in error(model=model)
    model = Probe()
    model.clip_config = None
    assert 'probe has no clip_config' in error(model=model)
    assert 'probe has 7 classes but 2 label names' in error(model=Probe(NAMES[:2]))
    model = Probe()
    model.weight.data[3, 0, 0, 0, 0] = float('nan')
    assert 'probe gave scores that are not finite' in error(model=model)

    assert 'on_error must be one of skip, raise' in error(on_error='substitute')
    assert 'batch_size must be from 1 to' in error(batch_size=0)
    assert 'workers must be from' in error(workers=-1)
    assert 'max_failed must be a share from 0 to 1' in error(max_failed=2)
    assert "device 'nowhere' cannot be used" in error(device='nowhere')
    assert 'evaluate needs records' in error(str(tmp_path))
    assert 'at least one video' in error([])
    (tmp_path / 'file').touch()
    assert 'file cannot be written' in error(out=tmp_path / 'file')
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    assert "out needs matplotlib: pip install 'bvtam[train]'" in error(out=tmp_path / 'new')
    assert not (tmp_path / 'new').exists()


# ---- the report ----


def test_the_report(records, tmp_path, recwarn):
    names = ['$x_{', 'a,b', '"', *NAMES[3:]]  # none of which means anything
    out = tmp_path / 'deep' / 'report'
    result = evaluate(Probe(names), records, workers=0, out=out)
    assert json.loads((out / 'results.json').read_text()) == result
    with (out / 'per_class.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {key: '' if value is None else str(value) for key, value in row.items()}
        for row in result['per_class']
    ]
    assert sorted(path.name for path in out.iterdir()) == [
        'confusion.png', 'per_class.csv', 'results.json',
    ]  # fmt: skip
    before = {path: path.read_bytes() for path in out.iterdir()}
    evaluate(Probe(names), records, workers=0, out=out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert not recwarn.list


def test_the_picture_shows_shares_and_the_names_of_few_classes(tmp_path, records):
    def picture(count, name, data):
        model = Probe([f'{name} {i}' for i in range(count)], num_classes=count)
        evaluate(model, data, num_clips=1, num_crops=1, workers=0, out=tmp_path)
        return (tmp_path / 'confusion.png').read_bytes()

    few = picture(40, 'a', records[:6])
    assert picture(40, 'b', records[:6]) != few
    assert picture(40, 'a', records[:6] + records[:3]) == few  # all of class 0 twice: in percent
    assert picture(40, 'a', records[:5]) != few
    many = picture(41, 'a', records[:6])
    assert picture(41, 'b', records[:6]) == many
    picture(400, 'a', records[:6])
    with Image.open(tmp_path / 'confusion.png') as image:
        assert min(image.size) > 3 * 400


# ---- many processes ----


def run_rank(rank, folder, records, broken):
    """One of three processes; first all of them, then two. Each writes what it saw."""
    torch.set_num_threads(1)
    sys.modules[evaluate.__module__]._GATHER_EVERY = 2  # batches, of which each process has up to 7
    seen, warnings = {}, []
    logging.getLogger('bvtam').addFilter(lambda record: warnings.append(record.getMessage()))

    def error(**options):
        try:
            evaluate(Probe(), workers=0, **options)
        except BvtamError as raised:
            return [type(raised).__name__, str(raised)]

    for world in (3, 2):
        if rank >= world:
            break
        store = f'file://{folder}/store{world}'
        dist.init_process_group('gloo', init_method=store, rank=rank, world_size=world)
        for size in (1, 3, 8):
            out = f'{folder}/out{world}.{rank}' if size == 3 else None
            data = [*records[:4], broken, *records[4:]]
            result = evaluate(Probe(), data, batch_size=size, workers=0, out=out)
            seen[f'{world}.{size}'] = result
        seen[f'{world}.warnings'] = warnings[:]
        seen[f'{world}.few'] = evaluate(Probe(), records[:2], workers=0)
        seen[f'{world}.raise'] = error(records_or_dataset=data, on_error='raise')
        seen[f'{world}.max'] = error(records_or_dataset=data, max_failed=0.05)
        seen[f'{world}.out'] = error(records_or_dataset=data, out=f'{folder}/file/out')
        dist.destroy_process_group()
    with open(f'{folder}/{rank}.json', 'w') as file:
        json.dump(seen, file)


def test_any_number_of_processes_counts_the_same(records, broken, tmp_path):
    (tmp_path / 'file').touch()
    multiprocessing.set_forkserver_preload(['bvtam.engine.evaluate'])  # imported once for all
    torch.multiprocessing.start_processes(
        run_rank, (str(tmp_path), records, broken), nprocs=3, start_method='forkserver'
    )
    seen = [json.loads((tmp_path / f'{rank}.json').read_text()) for rank in range(3)]

    alone = evaluate(Probe(), records, workers=0)
    alone |= {'num_failed': 1, 'loss': pytest.approx(alone['loss'], abs=1e-6)}
    few = evaluate(Probe(), records[:2], workers=0)
    few['loss'] = pytest.approx(few['loss'], abs=1e-6)
    for world in (3, 2):
        for size in (1, 3, 8):
            results = [seen[rank][f'{world}.{size}'] for rank in range(world)]
            assert all(result == results[0] for result in results)
            assert results[0] == alone
        out = tmp_path / f'out{world}.0'
        assert not (tmp_path / f'out{world}.1').exists()
        assert json.loads((out / 'results.json').read_text()) == seen[0][f'{world}.3']
        with (out / 'errors.csv').open(newline='') as file:
            assert [row['video'] for row in csv.DictReader(file)] == [broken.source]
        assert len(os.listdir(out)) == 4
        for rank in range(world):
            told = seen[rank]
            # Of each evaluation, which video failed and how many did, once.
            assert bool(told[f'{world}.warnings']) == (rank == 0)
            assert told[f'{world}.few'] == few  # one process of three has none
            kind, text = told[f'{world}.raise']
            own = rank == 4 % world  # the damaged video is the fifth
            assert kind == ('SampleError' if own else 'BvtamError')
            assert 'broken.mp4 cannot be opened' in text
            assert own or f'process {4 % world} of {world} stopped: SampleError' in text
            assert '1 of 14 videos failed' in told[f'{world}.max'][1]
            assert 'out cannot be written' in told[f'{world}.out'][1]
