import io
import sys
import tarfile
from pathlib import Path

import pytest
from support.grey import same, which, write_grey
from torch.utils.data import DataLoader

from bvtam import BvtamError
from bvtam.clip import ClipConfig
from bvtam.data import hub_datasets
from bvtam.data.datasets import SampleError, collate
from bvtam.data.hub_datasets import from_hub_dataset, webdataset_clips
from bvtam.data.records import Record
from bvtam.data.transforms import TrainTransform

CLIP = ClipConfig(num_frames=4, resize=24, crop_size=16)


@pytest.fixture(scope='session')
def records(tmp_path_factory):
    root = tmp_path_factory.mktemp('external')
    for video in range(5):
        write_grey(root / f'{video}.mp4', video)
    return [Record(str(root / f'{video}.mp4'), video % 2) for video in range(5)]


# ---- the library datasets ----


class Table:
    """What `from_hub_dataset` uses of a `datasets.Dataset`."""

    def __init__(self, features, rows):
        self.features, self.rows, self.column_names = features, rows, list(features)

    def select_columns(self, names):
        return Table(
            {n: self.features[n] for n in names}, [{n: r[n] for n in names} for r in self.rows]
        )

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def test_rows_with_paths_and_bytes(records):
    content = Path(records[2].source).read_bytes()
    rows = [
        {'video': {'path': records[1].source, 'bytes': None}, 'label': 1, 'other': object()},
        {'video': {'path': 'far/away.mp4', 'bytes': content}, 'label': 0, 'other': object()},
        {'video': {'path': None, 'bytes': content}, 'label': None, 'other': object()},
        {'video': records[3].source, 'label': 1, 'other': object()},
        {'video': {'path': 'far/bad.mp4', 'bytes': b'bad' * 99}, 'label': 0, 'other': object()},
        {'video': None, 'label': 0, 'other': object()},
        {'video': records[3].source, 'label': 'run', 'other': object()},
    ]
    table = Table(dict.fromkeys(('video', 'label', 'other')), rows)
    dataset = from_hub_dataset(table, CLIP, on_error='skip')
    assert len(dataset) == 7 and dataset.label_names is None
    found = [dataset[i] for i in range(4)]
    assert [which(s['clip'][0])[0][0] for s in found] == [1, 2, 2, 3]
    assert [s['label'] for s in found] == [1, 0, -1, 1]
    assert [s['video'] for s in found][1:3] == ['far/away.mp4', 'row 2']
    [(video, reason)] = dataset[4]['failed']
    assert video == 'far/bad.mp4' and 'far/bad.mp4' in reason and '/tmp' not in reason
    assert dataset[5]['failed'][0][0] == 'row 5'
    with pytest.raises(BvtamError, match='class_encode_column'):
        dataset[6]
    assert from_hub_dataset(table, CLIP, label_column=None)[6]['label'] == -1
    with pytest.raises(
        BvtamError, match="no column 'vide', only video, label, other; did you mean"
    ):
        from_hub_dataset(table, CLIP, video_column='vide')
    with pytest.raises(BvtamError, match='streamed'):
        from_hub_dataset(iter(rows), CLIP)


def test_real_hub_dataset(records):
    library = pytest.importorskip('datasets')
    content = Path(records[2].source).read_bytes()
    videos = [records[0].source, {'path': None, 'bytes': content}]
    features = library.Features(
        video=library.Video(), label=library.ClassLabel(names=['walk', 'run'])
    )
    table = library.Dataset.from_dict({'video': videos, 'label': [0, 1]}, features=features)
    for form in ('torch', 'numpy', 'pandas'):
        assert from_hub_dataset(table.with_format(form), CLIP)[1]['label'] == 1
    dataset = from_hub_dataset(table, CLIP)
    assert dataset.label_names == ['walk', 'run']
    loader = DataLoader(dataset, batch_size=2, num_workers=1, collate_fn=collate)
    [batch] = loader
    assert [which(clip[0])[0][0] for clip in batch['clip']] == [0, 2]
    assert batch['label'].tolist() == [0, 1]


# ---- the library webdataset ----


@pytest.fixture(scope='session')
def shards(records, tmp_path_factory):
    """Four tar files with 3 samples each; sample s holds video s % 5."""
    library = pytest.importorskip('webdataset')
    root = tmp_path_factory.mktemp('shards')
    for shard in range(4):
        with library.TarWriter(str(root / f'{shard:02d}.tar')) as writer:
            for number in range(3 * shard, 3 * shard + 3):
                video = Path(records[number % 5].source).read_bytes()
                sample = {'__key__': f'clip{number}', 'mp4': video}
                labels = {'cls': number}, {'json': {'label': number, 'more': 'x'}}
                writer.write(sample | labels[number % 2])
    return root


def urls(shards):
    return str(shards / '{00..03}.tar')


def test_shards_in_order(shards):
    samples = list(webdataset_clips(urls(shards), CLIP))
    assert [s['label'] for s in samples] == list(range(12))
    assert [which(s['clip'][0])[0][0] for s in samples] == [i % 5 for i in range(12)]
    assert samples[4]['video'] == str(shards / '01.tar/clip4.mp4')
    assert len({s['index'] for s in samples}) == 12


def test_workers_give_every_sample_once(shards):
    three = [str(shards / f'{i:02d}.tar') for i in range(3)]
    dataset = webdataset_clips(three, CLIP, train=TrainTransform(CLIP), seed=1)
    dataset.set_epoch(1)
    alone = {sample['label']: sample for sample in dataset}
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    samples = list(loader)
    assert sorted(s['label'] for s in samples) == list(range(9))
    assert [s['label'] for s in samples] == [s['label'] for s in loader]  # the same order again
    assert all(same(sample, alone[sample['label']]) for sample in samples)


def test_processes_share_the_shards(shards, monkeypatch):
    dataset = webdataset_clips(urls(shards), CLIP, train=TrainTransform(CLIP))
    monkeypatch.setenv('WORLD_SIZE', '2')
    found = []
    for rank in '01':
        monkeypatch.setenv('RANK', rank)
        found.append({sample['label'] for sample in dataset})
    assert len(found[0]) == len(found[1]) == 6 and found[0] | found[1] == set(range(12))


def test_epochs_of_shards_are_shuffled(shards):
    dataset = webdataset_clips(urls(shards), CLIP, train=TrainTransform(CLIP))

    def epoch(number):
        dataset.set_epoch(number)
        return [(sample['label'], sample['frames']) for sample in dataset]

    first, second = epoch(0), epoch(1)
    assert first == epoch(0) != second
    orders = [[label for label, _ in samples] for samples in (first, second)]
    assert orders[0] != orders[1] != list(range(12)) and sorted(orders[1]) == list(range(12))
    assert dict(first) != dict(second)  # other frames too
    dataset.shuffle = 0  # shards are in a random order, but what is in them is not
    labels = [label for label, _ in epoch(0)]
    groups = [labels[i : i + 3] for i in range(0, 12, 3)]
    assert groups != sorted(groups) == [[i, i + 1, i + 2] for i in range(0, 12, 3)]


def write_tar(path, files):
    with tarfile.open(path, 'w') as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_shards_with_faults(records, tmp_path):
    path = str(tmp_path / 'faults.tar')
    video = Path(records[0].source).read_bytes()
    files = {
        'a.mp4': video, 'a.cls': b'run',
        'b.mp4': b'bad' * 99, 'b.cls': b'0',
        'c.cls': b'1',
        'd.MP4': video, 'd.cls': b'jump',
        'e.v2.mp4': video, 'e.cls': b'1',
        'f.mp4': video,
    }  # fmt: skip
    write_tar(path, files)
    names = ['walk', 'run']
    samples = list(webdataset_clips(path, CLIP, labels=names, on_error='skip'))
    assert [s['label'] for s in samples if s['clip'] is not None] == [1, 1]
    failed = [failure for s in samples for failure in s['failed']]
    assert [video.rpartition('/')[2] for video, _ in failed] == ['b.mp4', 'c', 'd', 'f']
    assert 'b.mp4' in failed[0][1] and 'no video' in failed[1][1] and 'no label' in failed[2][1]
    # Substituted by those that follow in the stream, and the last one by none.
    rest = list(webdataset_clips([path], CLIP, labels=names, on_error='substitute'))
    assert [len(s['failed']) for s in rest] == [0, 3, 1] and rest[2]['clip'] is None
    assert [f for s in rest for f in s['failed']] == failed
    with pytest.raises(SampleError, match=r'faults\.tar/b\.mp4'):
        list(webdataset_clips([path], CLIP, labels=names))


def test_names_with_dots_and_several_videos_of_a_key(records, tmp_path):
    path = str(tmp_path / 'dots.tar')
    video = Path(records[0].source).read_bytes()
    files = {
        'clip_1.5s.mp4': video, 'clip_1.5s.cls': b'1',
        'clip_1.7s.mp4': video, 'clip_1.7s.cls': b'0', 'clip_1.9s.cls': b'0',
        'take.left.mp4': video, 'take.right.mp4': video, 'take.cls': b'2',
        'two.mp4': video, 'two.webm': video, 'two.json': b'{"label": 3}',
        'v1.2.3.mp4': video, 'v1.2.json': b'{"label": 4}',
        'none.a.mp4': video, 'none.b.cls': b'1',
    }  # fmt: skip
    write_tar(path, files)
    samples = list(webdataset_clips(path, CLIP, on_error='skip'))
    read = {s['video'].rpartition('/')[2]: s['label'] for s in samples if s['clip'] is not None}
    assert read == {
        'clip_1.5s.mp4': 1, 'clip_1.7s.mp4': 0, 'take.left.mp4': 2, 'take.right.mp4': 2,
        'two.mp4': 3, 'two.webm': 3, 'v1.2.3.mp4': 4,
    }  # fmt: skip
    failed = {v.rpartition('/')[2]: reason for s in samples for v, reason in s['failed']}
    assert [*failed] == ['clip_1.9s.cls', 'none.a.mp4', 'none.b.cls']
    assert 'no video' in failed['clip_1.9s.cls'] and 'no label' in failed['none.a.mp4']
    assert len({s['index'] for s in samples}) == len(samples) == 10


def test_shards_that_cannot_be_read(shards, tmp_path):
    cut, whole = tmp_path / 'cut.tar', shards / '01.tar'
    # In the plain format, whose end Python sees wherever a header is wrong.
    with tarfile.open(whole) as old, tarfile.open(cut, 'w', format=tarfile.USTAR_FORMAT) as new:
        for member in old:
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member))
    content = cut.read_bytes()
    header = content.index(b'clip4.mp4')  # a multiple of 512
    gone = str(tmp_path / 'gone.tar')
    damaged = content[:header] + b'?' * 100 + content[header + 100 :]
    lengths = (header + 1500, header, header + 200, 0)
    for broken in (*(content[:length] for length in lengths), damaged):
        cut.write_bytes(broken)
        samples = list(webdataset_clips([str(cut), gone, str(whole)], CLIP, on_error='skip'))
        assert [s['label'] for s in samples if s['clip'] is not None][-3:] == [3, 4, 5]
        failed = dict(failure for s in samples for failure in s['failed'])
        assert failed[f'{cut}/'].startswith(f'{cut} cannot be read: ')
        assert 'No such file' in failed[f'{gone}/']
    with pytest.raises(SampleError, match=r'gone\.tar cannot be read'):
        list(webdataset_clips([gone], CLIP))
    with pytest.raises(BvtamError, match='no shard'):
        webdataset_clips([], CLIP)


@pytest.mark.parametrize(
    ('name', 'call'),
    [
        ('webdataset', lambda: webdataset_clips('x.tar', CLIP)),
        ('datasets', lambda: from_hub_dataset('owner/name', CLIP)),
    ],
)
def test_a_missing_library_is_named(monkeypatch, name, call):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BvtamError, match=rf"needs {name}: pip install 'bvtam\[data\]'"):
        call()


def test_the_old_name_of_the_module_warns_and_works():
    with pytest.warns(
        DeprecationWarning, match=r'bvtam\.data\.external is bvtam\.data\.hub_datasets'
    ):
        from bvtam.data import external
    assert external.from_hub_dataset is hub_datasets.from_hub_dataset
    assert external.webdataset_clips is hub_datasets.webdataset_clips
