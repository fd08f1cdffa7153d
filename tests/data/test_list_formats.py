import pytest
import torch
from support.cli import SAMPLE

from bvtam import BvtamError, ClipConfig
from bvtam.data import list_formats
from bvtam.data.datasets import VideoDataset
from bvtam.data.list_formats import FORMATS, Row, formats, list_format
from bvtam.data.load import load_records


@pytest.fixture
def segments(monkeypatch, tmp_path):
    """A list of a format of our own, {video: [[start, end, label], ...]}, for `segments`."""
    monkeypatch.setattr(list_formats, 'FORMATS', [*FORMATS])

    @list_format('segments', '`{clips: ...}`', lambda file: 'clips' in file.json, json=True)
    def rows(file):
        for video, parts in file.json['clips'].items():
            for start, end, label in parts:
                yield Row(f'{file.path}, {video}', [video], label, start=start, end=end)

    (tmp_path / 'a.mp4').symlink_to(SAMPLE)
    path = tmp_path / 'list.json'
    path.write_text('{"clips": {"a": [[0, 1, "run"], [1, 2.5, "jump"], [3, 4, "run"]]}}')
    return path


def test_a_format_is_added_in_one_place(segments):
    records, names = load_records(segments)
    assert names == ['jump', 'run'] and [record.label for record in records] == [1, 0, 1]
    clips = VideoDataset(records, ClipConfig(num_frames=4, resize=20, crop_size=16))
    assert clips[1]['frames'] == [29, 39, 48, 58]  # of the seconds 1 to 2.5, at 25 a second
    assert clips[1]['clip'].dtype == torch.uint8


def test_a_list_that_no_format_recognises(tmp_path):
    (tmp_path / 'x.json').write_text('{"videos": {}}')
    with pytest.raises(BvtamError, match=r'x\.json is no list of a known format') as error:
        load_records(tmp_path / 'x.json')
    assert all(form in str(error.value) for form in formats())
