"""The study of the bounds of strokes: what sees frames one by one cannot tell a clip from its reverse."""

import json

import pytest
import torch

import bvtam
from bvtam.data.motion.clips import MotionClips
from bvtam.data.transforms import normalize


@pytest.fixture
def bounds(benchmark):
    return benchmark('bounds')


def test_a_model_of_frames_gives_a_clip_and_its_reverse_the_same_scores(bounds):
    data = MotionClips(16, 32, 'stroke')
    there, back = (data.label_names.index(name) for name in ('star', 'star_reversed'))
    clips = [data.render([5], [label])[0] for label in (there, back)]
    torch.manual_seed(0)
    for name, temporal in bounds.SEES.items():
        model = bvtam.create_model('bvtam_tiny_8x2', num_classes=16, temporal=temporal)
        model = model.double().eval()
        if name == 'frame':
            bounds.one_by_one(model)
        with torch.inference_mode():
            a, b = (model(normalize(clip, model.clip_config).double()) for clip in clips)
        different = ((a - b).abs().max() / a.abs().max()).item()
        assert (different < 1e-9) == (name == 'frame'), (name, different)


def test_the_page_has_a_section_once_there_are_results(bounds, benchmark, tmp_path, monkeypatch):
    tables = benchmark('tables')
    monkeypatch.setattr(bounds, 'RESULTS', tmp_path / 'bounds.json')
    assert tables.bounds_section() == ''
    row = {'sees': 'frame', 'temporal': 'none', 'clips': 16000, 'test_clips': 2000}
    bounds.RESULTS.write_text(json.dumps([row | {'top1': 48.25, 'bound': 50.0}]))
    lines = tables.bounds_section().splitlines()
    assert lines[0] == '## The bounds of strokes'
    assert lines[-1] == '| one frame | `none` | 16,000 | 2,000 | 48.2 | 50 |'
