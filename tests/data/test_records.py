import os

import pytest
from support.data_sets import touch

from bvtam import BvtamError
from bvtam.data.records import find_videos


@pytest.fixture
def tree(tmp_path):
    touch(tmp_path, 'b.MP4', 'a/c.webm', 'a/deep/d.mkv', 'a/notes.txt', 'a/thumbnail.jpg')
    touch(tmp_path, 'frames/00001.JPG', 'frames/00002.jpg', '.hidden.mp4', '.git/e.mp4')
    return tmp_path


def test_folders_are_searched_and_sorted(tree):
    found = [os.path.relpath(video, tree) for video in find_videos([tree])]
    assert found == ['a/c.webm', 'a/deep/d.mkv', 'b.MP4', 'frames']


def test_sources_keep_their_order_and_come_once(tree, monkeypatch):
    monkeypatch.chdir(tree)
    sources = ['b.MP4', 'http://host/x.mp4?y=1', 'a', './b.MP4', '-', str(tree / 'a/c.webm'), '-']
    expected = ['b.MP4', 'http://host/x.mp4?y=1', 'a/c.webm', 'a/deep/d.mkv', '-']
    assert find_videos(sources) == expected
    assert find_videos(['a/notes.txt']) == ['a/notes.txt']  # asked for by name
    assert find_videos(['.hidden.mp4']) == ['.hidden.mp4']


def test_patterns(tree, monkeypatch):
    monkeypatch.chdir(tree)
    assert find_videos(['a/*']) == ['a/c.webm', 'a/deep/d.mkv']
    assert find_videos(['**/*.mkv']) == ['a/deep/d.mkv']
    assert find_videos(['fr*']) == ['frames']
    touch(tree, 'clip[1].mp4')
    assert find_videos(['clip[1].mp4']) == ['clip[1].mp4']


def test_links_to_a_folder_above_end(tree):
    (tree / 'a' / 'loop').symlink_to(tree)
    assert len(find_videos([tree])) == 4


@pytest.mark.parametrize('source', ['nothing.mp4', '*.avi', 'empty', 'a/*.txt'])
def test_a_source_without_videos_is_named(tree, monkeypatch, source):
    monkeypatch.chdir(tree)
    (tree / 'empty').mkdir()
    with pytest.raises(BvtamError) as error:
        find_videos(['b.MP4', source])
    assert str(error.value).startswith(source)
