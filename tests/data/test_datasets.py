import multiprocessing

import pytest
import torch
from PIL import Image
from support.grey import FRAMES, SIDE, level, same, which, write_grey
from torch.utils.data import DataLoader

from bvtam import BvtamError
from bvtam.clip import ClipConfig
from bvtam.data.datasets import ImageDataset, SampleError, VideoDataset, collate
from bvtam.data.load import load_images
from bvtam.data.records import Record
from bvtam.data.sampling import sample_seed, train_indices
from bvtam.data.transforms import TrainTransform, to_crops
from bvtam.data.video.open import open_video
from bvtam.engine.data import Draw

CLIP = ClipConfig(num_frames=4, resize=24, crop_size=16)


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
    """Five videos and a frame folder, in two classes, and a file that is no video."""
    root = tmp_path_factory.mktemp('videos')
    for video in range(5):
        path = root / 'ab'[video % 2] / f'{video}.mp4'
        path.parent.mkdir(exist_ok=True)
        write_grey(path, video)
    (root / 'frames').mkdir()
    for frame in range(FRAMES):
        Image.new('L', (SIDE, SIDE), level(0, frame)).save(root / 'frames' / f'{frame + 1:05d}.png')
    (root / 'broken.mp4').write_bytes(b'no video' * 100)
    return root


@pytest.fixture(scope='session')
def records(folder):
    return [Record(str(folder / 'ab'[v % 2] / f'{v}.mp4'), v % 2) for v in range(5)]


@pytest.fixture(scope='session')
def broken(folder):
    return Record(str(folder / 'broken.mp4'), 1)


# ---- one sample ----


def test_a_training_sample_is_that_of_its_seed(records):
    transform = TrainTransform(CLIP, crop='random', color_jitter=0.2)
    dataset = VideoDataset(records, CLIP, train=transform, offsets='segment', seed=7)
    dataset.set_epoch(3)
    for index, record in enumerate(records):
        generator = torch.Generator().manual_seed(sample_seed(7, 3, index))
        frames = train_indices(FRAMES, 4, generator, offsets='segment')
        reader = open_video(record.source)
        clip, label = transform(reader.read(frames), record.label, generator)
        expected = {'clip': clip, 'label': label, 'index': index, 'video': record.source}
        assert same(dataset[index], expected | {'frames': frames, 'failed': []})
    assert dataset[0]['clip'].shape == (3, 4, 16, 16) and dataset[0]['clip'].dtype == torch.uint8


def test_epochs_differ_and_come_again(records):
    dataset = VideoDataset(records, CLIP, train=TrainTransform(CLIP))

    def epoch(number):
        dataset.set_epoch(number)
        return [sample['frames'] for sample in dataset]

    first, second = epoch(0), epoch(1)
    assert len(first) == 5 and first != second and epoch(0) == first


def test_a_sample_that_comes_again_in_an_epoch_has_other_views(records):
    dataset = VideoDataset(records, CLIP, train=TrainTransform(CLIP))
    assert same(dataset[Draw(1, 0)], dataset[1])
    assert len({(*dataset[Draw(1, times)]['frames'],) for times in range(9)}) > 1
    assert dataset[Draw(1, 3)]['index'] == 1


@pytest.mark.parametrize('num_clips', [1, 5])
def test_test_views_are_clip_major(records, num_clips):
    # At T = 20 three clips are read at a time; with V <= T all are the same.
    for frames, expected in ((2, [1, 5]), (20, [i * FRAMES // 20 for i in range(20)])):
        clip = ClipConfig(
            num_frames=frames, resize=24, crop_size=16, num_clips=num_clips, num_crops=3
        )
        sample = VideoDataset(records, clip)[3]
        assert sample['clip'].shape == (3 * num_clips, 3, frames, 16, 16)
        assert sample['label'] == 1 and len(sample['frames']) == num_clips * frames
        chunks = [sample['frames'][i : i + frames] for i in range(0, num_clips * frames, frames)]
        assert chunks[(num_clips - 1) // 2] == [2, 6] if frames == 2 else chunks[0] == expected
        for number, indices in enumerate(chunks):
            pictures = open_video(records[3].source).read(indices)
            views = sample['clip'][3 * number : 3 * number + 3]
            assert torch.equal(views, to_crops(pictures, clip))
            assert which(views[1]) == [(3, i) for i in indices]


def test_parts_of_videos(records, folder):
    source = records[1].source
    clip = ClipConfig(num_frames=2, resize=24, crop_size=16)

    def frames(**part):
        sample = VideoDataset([Record(source, **part)], clip)[0]
        assert which(sample['clip'][0]) == [(1, i) for i in sample['frames']]
        return sample['frames']

    # Frame i appears at i/4 s. Two segments of the range, and the middle of each.
    assert frames() == [2, 6]
    for rounding in (-1e-9, 0, 1e-9):
        assert frames(start=0.5 + rounding) == [3, 6]  # frames 2 to 7
        assert frames(end=1.0 + rounding) == [1, 3]  # 0 to 3
    assert frames(start=0.6, end=1.3) == [3, 5]  # 3 to 5
    assert frames(start=0.5, end=0.75) == [2, 2]
    transform = TrainTransform(clip)
    dataset = VideoDataset([Record(source, start=0.5, end=1.5)], clip, train=transform)
    drawn = set()
    for epoch in range(20):
        dataset.set_epoch(epoch)
        drawn |= set(dataset[0]['frames'])
    assert drawn == {2, 3, 4, 5}
    for start, end in ((2.0, 3.0), (0.55, 0.7)):
        with pytest.raises(SampleError, match=r'1\.mp4: no frame appears from .* lasts 2 s'):
            VideoDataset([Record(source, start=start, end=end)], clip)[0]

    sample = VideoDataset([Record(str(folder / 'frames'), first=3, last=6)], clip)[0]
    assert which(sample['clip'][0]) == [(0, 3), (0, 5)]  # images 3 to 6 are frames 2 to 5
    sample = VideoDataset([Record(str(folder / 'frames'), last=4)], clip)[0]
    assert which(sample['clip'][0]) == [(0, 1), (0, 3)]


def test_images(tmp_path):
    for name, grey in (('a', 50), ('b', 200)):
        (tmp_path / name).mkdir()
        Image.new('L', (40, 30), grey).save(tmp_path / name / '1.png')
    (tmp_path / 'b' / '2.jpg').write_bytes(b'no image')
    records, _ = load_images(tmp_path)
    dataset = ImageDataset(records, CLIP, on_error='skip')
    for sample, grey in zip((dataset[0], dataset[1]), (50, 200), strict=True):
        assert torch.equal(sample['clip'], torch.full((1, 3, 1, 16, 16), grey, dtype=torch.uint8))
        assert sample['frames'] == [0]
    assert dataset[2]['clip'] is None and dataset[2]['failed'][0][0].endswith('2.jpg')
    train = ImageDataset(records, CLIP, train=TrainTransform(CLIP))
    assert train[1]['clip'].shape == (3, 1, 16, 16)


# ---- videos that cannot be read ----


def test_raise_names_the_video(records, broken):
    dataset = VideoDataset([records[0], broken], CLIP)
    assert dataset[0]['failed'] == []
    with pytest.raises(SampleError, match=r'broken\.mp4'):
        dataset[1]
    gone = Record(str(broken.source) + '.gone')
    with pytest.raises(SampleError, match=r'broken\.mp4\.gone'):
        VideoDataset([gone], CLIP)[0]
    for records, options in (([], {}), ([gone], {'on_error': 'ignore'})):
        with pytest.raises(BvtamError):
            VideoDataset(records, CLIP, **options)


def test_skip_gives_no_clip(records, broken):
    sample = VideoDataset([records[0], broken], CLIP, on_error='skip')[1]
    assert sample['clip'] is None and sample['label'] == 1 and sample['index'] == 1
    assert sample['video'] == broken.source
    [(video, reason)] = sample['failed']
    assert video == broken.source and 'cannot be opened' in reason


def test_substitute_draws_another(records, broken):
    mixed = [broken, *records]
    dataset = VideoDataset(mixed, CLIP, train=TrainTransform(CLIP), on_error='substitute')
    taken = set()
    for epoch in range(12):
        dataset.set_epoch(epoch)
        sample = dataset[0]
        assert same(sample, dataset[0])  # the same one again
        assert sample['index'] == 0 and {v for v, _ in sample['failed']} == {broken.source}
        [video] = {video for video, _ in which(sample['clip'])}
        assert sample['video'] == records[video].source and sample['label'] == records[video].label
        taken.add(video)
    assert len(taken) > 2
    assert dataset[2]['failed'] == []
    with pytest.raises(SampleError, match='10 videos in a row failed'):
        VideoDataset([broken], CLIP, on_error='substitute')[0]


def test_time_limit_reaches_the_reader(records, monkeypatch):
    seen = []

    def opened(source, time_limit):
        seen.append(time_limit)
        return open_video(source)

    monkeypatch.setattr('bvtam.data.records.open_video', opened)
    VideoDataset(records, CLIP, time_limit=2.5)[0]
    assert seen == [2.5]


# ---- batches and workers ----


def test_collate(records, broken):
    dataset = VideoDataset([records[0], broken, records[3]], CLIP, on_error='skip')
    batch = collate([dataset[i] for i in range(3)])
    assert torch.equal(batch['clip'], torch.stack([dataset[0]['clip'], dataset[2]['clip']]))
    assert batch['label'].tolist() == [0, 1] and batch['index'].tolist() == [0, 2]
    assert batch['label'].dtype == batch['index'].dtype == torch.int64
    assert batch['video'] == [records[0].source, records[3].source]
    assert batch['failed'] == dataset[1]['failed']
    empty = collate([dataset[1]])
    assert empty['clip'] is None and len(empty['label']) == 0 and len(empty['failed']) == 1


@pytest.mark.parametrize(('method', 'workers'), [('fork', 2), ('spawn', 1)])
def test_workers_give_the_same_samples(records, broken, method, workers):
    dataset = VideoDataset(
        [*records, broken], CLIP, train=TrainTransform(CLIP), on_error='substitute'
    )
    loader = DataLoader(
        dataset,
        batch_size=2,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=True,
        multiprocessing_context=multiprocessing.get_context(method),
    )
    seen = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)  # while the workers live
        batches = list(loader)
        expected = [collate([dataset[i], dataset[i + 1]]) for i in (0, 2, 4)]
        assert all(map(same, batches, expected)) and len(batches) == 3
        seen.append(torch.cat([batch['clip'] for batch in batches]))
    assert not torch.equal(*seen)


def test_an_error_out_of_a_worker_is_one_line(broken):
    with pytest.raises(SampleError) as here:
        VideoDataset([broken], CLIP)[0]
    loader = DataLoader(VideoDataset([broken], CLIP), num_workers=1, collate_fn=collate)
    with pytest.raises(SampleError) as error:
        next(iter(loader))
    assert str(error.value) == str(here.value)
