import os
import shutil
from collections import Counter

import pytest
from support.data_sets import short, touch, write_text

from bvtam import BvtamError
from bvtam.data.load import load_images, load_records
from bvtam.data.records import Record

# ---- class folders ----


def test_folders_with_parts(tmp_path):
    touch(tmp_path, 'train/run/1.mp4', 'train/Jump/2.avi', 'train/run/x/3.mp4', 'train/readme.txt')
    touch(tmp_path / 'validation', 'run/4/00001.jpg', 'run/4/00002.jpg', '.x/5.mp4')
    records, names = load_records(tmp_path, 'train')
    assert names == ['Jump', 'run']  # as torchvision sorts them: capitals first
    assert short(records, tmp_path / 'train') == [
        ('Jump/2.avi', 0),
        ('run/1.mp4', 1),
        ('run/x/3.mp4', 1),
    ]
    val, val_names = load_records(tmp_path, 'val')
    assert val_names == names and short(val, tmp_path) == [('validation/run/4', 1)]
    assert load_records(tmp_path)[0] == records + val
    with pytest.raises(BvtamError, match='no folder test'):
        load_records(tmp_path, 'test')


def test_given_labels_set_the_order(tmp_path):
    touch(tmp_path, 'a/1.mp4', 'b/2.mp4')
    records, names = load_records(tmp_path, labels=['b', 'none', 'a'])
    assert names == ['b', 'none', 'a'] and [r.label for r in records] == [2, 0]
    with pytest.raises(BvtamError, match=r'b is none of the 2 labels'):
        load_records(tmp_path, labels=['a', 'c'])


def test_a_class_may_be_called_train(tmp_path):
    touch(tmp_path, 'train/1.mp4', 'train/2.mp4', 'bus/1.mp4', 'bus/2.mp4')
    records, names = load_records(tmp_path)
    assert names == ['bus', 'train'] and [r.label for r in records] == [0, 0, 1, 1]


def test_other_folders_beside_parts_are_told(tmp_path, caplog):
    touch(tmp_path, 'train/a/1.mp4', 'test/a/2.mp4', 'extra/b/3.mp4')
    assert short(load_records(tmp_path, 'train')[0], tmp_path) == [('train/a/1.mp4', 0)]
    assert '1 files and folders are left out' in caplog.text and 'extra/' in caplog.text


def test_files_of_a_class_that_are_no_videos_are_told(tmp_path, caplog):
    touch(tmp_path, 'a/1.mp4', 'a/2.gif', 'a/3.VOB', 'b/4.mp4', 'b/x/5.mp4.part')
    assert [r.label for r in load_records(tmp_path)[0]] == [0, 0, 0, 1]
    (message,) = (record.getMessage() for record in caplog.records)
    assert '1 files and folders' in message and message.endswith('b/x/5.mp4.part')


def test_a_test_part_without_labels(tmp_path):
    touch(tmp_path, 'train/a/1.mp4', 'val/a/2.mp4', 'test/3.mp4', 'test/4.mp4')
    records, names = load_records(tmp_path, 'test')
    assert short(records, tmp_path) == [('test/3.mp4', -1), ('test/4.mp4', -1)] and names == ['a']
    assert len(load_records(tmp_path)[0]) == 4


@pytest.mark.parametrize(
    ('files', 'message'),
    [
        (['a/1.mp4', 'b/readme.txt'], 'class folder .*/b holds no video'),
        (['a/1.mp4', 'b/1.jpg'], 'class folder .*/b holds images'),
        (['a/1.mp4', '2.mp4'], 'beside class folders'),
        (['train/1.mp4', 'val/2.mp4'], 'train holds no class folders'),
        (['train/a/1.mp4', 'val/a/1.mp4', 'valid/a/1.mp4'], 'mean the same'),
    ],
)
def test_wrong_folders(tmp_path, files, message):
    touch(tmp_path, *files)
    with pytest.raises(BvtamError, match=message):
        load_records(tmp_path)


def test_videos_without_labels(tmp_path):
    touch(tmp_path, '1.mp4', '2.mp4')
    one, two = (Record(str(tmp_path / name)) for name in ('1.mp4', '2.mp4'))
    assert load_records(tmp_path) == ([one, two], None)
    assert load_records(tmp_path / '1.mp4') == ([one], None)
    touch(tmp_path / 'f', 'v1/1.jpg', 'v2/1.jpg')
    assert short(load_records(tmp_path / 'f')[0], tmp_path) == [('f/v1', -1), ('f/v2', -1)]
    with pytest.raises(BvtamError, match='no class folders'):
        load_records(tmp_path / 'f' / 'v1', 'train')


def test_images(tmp_path):
    touch(tmp_path, 'train/cat/1.JPEG', 'train/dog/2.png', 'val/cat/3.jpg')
    records, names = load_images(tmp_path, 'train')
    assert names == ['cat', 'dog']
    assert short(records, tmp_path) == [('train/cat/1.JPEG', 0), ('train/dog/2.png', 1)]


# ---- the split ----


def test_split_of_each_class(tmp_path):
    counts = {'a': 2, 'b': 3, 'c': 10, 'd': 33}
    for name, count in counts.items():
        touch(tmp_path / 'one', *(f'{name}/{i}.mp4' for i in range(count)))
    root = tmp_path / 'one'
    train, val = (load_records(root, split, val_share=0.25)[0] for split in ('train', 'val'))
    assert sorted(train + val, key=lambda r: r.source) == load_records(root)[0]
    # Python rounds 2.5 to 2.
    assert Counter(r.label for r in val) == {0: 1, 1: 1, 2: 2, 3: 8}
    other = load_records(root, 'val', val_share=0.25, seed=1)[0]
    assert Counter(r.label for r in other) == Counter(r.label for r in val) and other != val
    # The same wherever the folder lies, in a list too, and in whichever order it comes.
    moved = shutil.copytree(root, tmp_path / 'two' / 'three')
    assert short(load_records(moved, 'val', val_share=0.25)[0], moved) == short(val, root)
    paths = [
        f'{os.path.relpath(r.source, root)} {r.label}' for r in reversed(load_records(root)[0])
    ]
    file = write_text(tmp_path / 'list.txt', '\n'.join(paths))
    listed = load_records(file, 'val', root=root, val_share=0.25)[0]
    assert sorted(short(listed, root)) == sorted(short(val, root))
    # A class more changes nothing for the others.
    touch(root, '0/1.mp4', '0/2.mp4')
    more = load_records(root, 'val', val_share=0.25)[0]
    assert [r.source for r in more][1:] == [r.source for r in val]


def test_a_tiny_or_huge_share_leaves_both_parts_a_video(tmp_path):
    touch(tmp_path, *(f'a/{i}.mp4' for i in range(5)))
    for share, expected in ((0.01, 1), (0.99, 4), (0, 0), (1, 5)):
        val = load_records(tmp_path, 'val', val_share=share)[0]
        train = load_records(tmp_path, 'train', val_share=share)[0]
        assert (len(val), len(train)) == (expected, 5 - expected)
    with pytest.raises(BvtamError, match='val_share'):
        load_records(tmp_path, 'val', val_share=1.5)


def test_parts_of_a_video_stay_together(tmp_path):
    touch(tmp_path, *(f'{i}.mp4' for i in range(6)))
    rows = [f'{i % 6}.mp4,x,{i},{i + 1}' for i in range(30)]
    file = write_text(tmp_path / 'list.csv', 'video,label,start,end\n' + '\n'.join(rows))
    train, val = (load_records(file, split)[0] for split in ('train', 'val'))
    assert len(train) == 25 and len(val) == 5
    assert not {r.source for r in train} & {r.source for r in val}


def test_a_class_with_one_video_cannot_be_split(tmp_path):
    touch(tmp_path, 'a/1.mp4', 'a/2.mp4', 'lonely/1.mp4')
    assert len(load_records(tmp_path)[0]) == 3
    with pytest.raises(BvtamError, match="class 'lonely' has one video"):
        load_records(tmp_path, 'train')
    with pytest.raises(BvtamError, match='no test'):
        load_records(tmp_path, 'test')
    with pytest.raises(BvtamError, match='split must be one of'):
        load_records(tmp_path, 'eval')
