"""The study on real gestures: its arms start as they say, see what they say, and a run goes on."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.videos import write_pictures

import bvtam
from bvtam.engine.setup import freeze_norms

NAME = 'bvtam_tiny_8x2.motion'


@pytest.fixture
def reality(benchmark):
    return benchmark('reality')


@pytest.fixture
def ours():
    return bvtam.create_model(NAME, pretrained=True).eval()


@pytest.fixture
def data(tmp_path):
    """Two parts of two classes, whose clips are dark at one end and bright at the other."""
    for part, count in (('a', 3), ('b', 2)):
        for label in ('left', 'right'):
            for i in range(count):
                ramp = np.linspace(0, 200, 48, dtype=np.uint8) + i
                picture = np.broadcast_to(ramp[None, :, None], (32, 48, 3))
                picture = picture if label == 'left' else picture[:, ::-1]
                write_pictures(tmp_path / 'data' / part / label / f'{i}.mp4', [picture] * 8)
    return tmp_path / 'data'


@pytest.fixture
def run(reality, tmp_path, monkeypatch):
    def call(*words):
        places = ['--out', str(tmp_path / 'out.json'), '--runs', str(tmp_path / 'runs')]
        monkeypatch.setattr(sys, 'argv', ['reality.py', *map(str, words), *places])
        return reality.main()

    return call


def test_arms_start_as_they_say(reality, ours, data, tmp_path):
    learned = {k for k, _ in ours.named_parameters() if not k.startswith('fc.')}
    expected = {
        'all': learned,
        'spatial': {k for k in learned if '.temporal.' not in k},
        'scratch': set(),
    }
    options = SimpleNamespace(recipe='finetune', set=[], weights=None)
    (tmp_path / 'clips').symlink_to(data / 'a')
    for name, arm in reality.ARMS.items():
        if arm:
            job = reality.Job(NAME, '', '', name, 'a', 3, 1, '')
            recipe = reality.recipe_of(job, ours, tmp_path, options)
            model, train_set, _ = reality.build(recipe)
            weights = {k: v for k, v in model.named_parameters() if v.ndim > 1}
            same = {k for k, v in ours.named_parameters() if k in weights and v.equal(weights[k])}
            assert same == {k for k in expected[arm.start] if ours.get_parameter(k).ndim > 1}, name
            assert getattr(model, 'temporal', 'none') == arm.temporal
            assert model.clip_config == ours.clip_config and len(train_set) == 4
            freeze_norms(model.train(), recipe.regularize.freeze_bn)
            norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
            assert {m.training for m in norms} == {arm.start != 'all'}, name


def test_frames_are_seen_one_by_one(reality, ours):
    """Nothing but the set of all frames counts, also where videos are predicted."""
    model = reality.spatial_weights(ours).eval().double()
    clip = torch.randn(1, 3, 16, 32, 32, dtype=torch.float64)
    shuffled, other = clip[:, :, torch.randperm(16)], clip.clone()
    other[:, :, 1] = 0
    with torch.no_grad():
        assert not model(clip).allclose(model(shuffled))
        reality.one_by_one(model)
        torch.testing.assert_close(model(clip), model(shuffled))
        assert not model(clip).allclose(model(other))
    frames = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)
    there, back = (bvtam.predict(model, video)['top'] for video in (frames, frames[::-1]))
    assert [x['label'] for x in there] == [x['label'] for x in back]
    assert [x['score'] for x in there] == pytest.approx([x['score'] for x in back])


def test_as_many_clips_of_each_class_are_drawn_and_few_are_among_more(reality):
    videos = {'tick': list('abcdefgh'), 'star': list('ABCDEFGH')}
    one, five = (reality.drawn(videos, shots, 3) for shots in (1, 5))
    assert {label: len({*found}) for label, found in five.items()} == {'tick': 5, 'star': 5}
    assert all({*one[label]} < {*five[label]} < {*videos[label]} for label in videos)
    assert reality.drawn(videos, 5, 4) != five
    assert {k: sorted(v) for k, v in reality.drawn(videos, 100, 0).items()} == videos


def test_jobs_are_there_once_and_the_cheapest_first(reality, ours):
    videos = {label: ['x'] * 9 for label in reality.GESTURES}
    parts = {'a': videos, 'b': {label: found[:5] for label, found in videos.items()}}
    options = SimpleNamespace(
        recipe='finetune',
        set=['epochs=2'],
        train=None,
        shots=[reality.ALL, 5, 1],
        seeds=[0, 1],
        arms=['tam_scratch', 'tam', 'probe', 'zero_shot'],
    )
    jobs = reality.jobs(options, parts, {NAME: (ours, 'hash')})
    assert len({*jobs}) == len(jobs)
    arms = [job.arm for job in jobs]
    assert arms.count('tam') == arms.count('tam_scratch') == 2 * (3 + 2)
    assert arms.count('probe') == 2 * 2 + 1 + 2 + 1  # all clips of a part once
    assert arms[:9] == ['zero_shot'] + 8 * ['probe']
    assert [(job.seed, job.shots) for job in jobs[9:]] == sorted(
        (job.seed, job.shots) for job in jobs[9:]
    )
    assert {job.weights for job in jobs if job.arm == 'tam_scratch'} == {''}
    assert {(job.train, job.shots) for job in jobs[1:]} == {
        *(('a', n) for n in (1, 5, 9)),
        *(('b', n) for n in (1, 5)),
    }


def test_zero_shot_adds_the_classes_of_a_gesture(reality, monkeypatch):
    given = {'left': 0.2, 'swipe_left': 0.2, 'right': 0.3, 'up': 0.1, 'down': 0.1, 'star': 0.1}
    model = SimpleNamespace(label_names=[*given])
    monkeypatch.setattr(reality, 'scores', lambda _, videos: ((label, given) for label in videos))
    swipes = {label: ['x'] for label in reality.SWIPES}
    expected = {label: [int(label == 'left'), 1] for label in swipes}
    found = reality.zero_shot(model, {'a': swipes, 'b': swipes | {'star': ['x']}})
    assert found['swipes'] == {'a': expected, 'b': expected}
    assert found['right'] == {'a': expected, 'b': expected | {'star': [0, 1]}}
    found = reality.zero_shot(model, {'a': swipes | {'tick': ['x']}})  # a class is lacking
    assert found == {'swipes': {'a': expected}, 'right': {'a': None}}


def test_logistic_regression_is_at_its_optimum(reality):
    x, y = torch.randn(30, 6, dtype=torch.float64), torch.arange(30) % 3
    x[:, 0] += 2 * y
    logits = reality.logistic_regression(x, y)
    z = (x - x.mean(0)) / x.std(0, correction=0)
    # there, weights are what the errors of the probabilities add up to
    errors = F.one_hot(y, 3) - logits(x).softmax(1)
    again = z @ (z.T @ errors)
    torch.testing.assert_close(logits(x) - logits(x)[:1], again - again[:1], atol=1e-3, rtol=1e-3)
    assert errors.sum(0).abs().max() < 1e-3


def test_a_study_is_measured_once_and_drawn(run, reality, data, tmp_path, monkeypatch, capsys):
    small = ['clip={num_frames: 4, resize: 32, crop_size: 32}', 'epochs=1', 'data.workers=0']
    words = [data, '--models', NAME, '--train', 'a', '--seeds', '0', '--shots', '1', 'all']
    words += ['--set', *small, '--arms']
    run(*words, 'zero_shot', 'probe', 'frame')
    with monkeypatch.context() as patch:
        patch.setattr(reality, 'measure', lambda *_: pytest.fail('it was there'))
        run(*words, 'zero_shot', 'probe')
        run(*words, 'tsn', '--minutes', '-1')
    assert '2 results are left' in capsys.readouterr().out
    with monkeypatch.context() as patch:  # stopped after the training of the first
        patch.setattr(reality, 'scores', lambda *_: sys.exit('stopped'))
        with pytest.raises(SystemExit, match='stopped'):
            run(*words, 'tsn')
    run(*words, 'tsn')
    rows = reality.load(tmp_path / 'out.json')
    assert [(row['arm'], row['shots']) for row in rows] == [
        ('zero_shot', 0),
        *((arm, shots) for arm in ('probe', 'frame', 'tsn') for shots in (1, 3)),
    ]
    assert all(n == 2 for row in rows[1:] for _, n in row['right']['b'].values())
    assert rows[0]['right'] == rows[0]['swipes'] and {*rows[0]['right']} == {'a', 'b'}
    assert rows[-1]['clip'] == '4 x 32²' and str(data) not in rows[-1]['command']
    assert rows[-2]['train_seconds'] is None and rows[-1]['train_seconds'] > 0
    assert [path.name[:8] for path in (tmp_path / 'runs').iterdir()] == ['features']
    assert '| `tsn`' not in capsys.readouterr().out.splitlines()[-1]
    figure = tmp_path / 'out.png'
    assert figure.exists()
    with pytest.raises(SystemExit, match='docs/results.md is of other results'):
        run('--check')
    reality.figure(rows[:1], figure)
    with pytest.raises(SystemExit, match='out.png is of other results'):
        run('--check')


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ([], 'DATA: no such folder; DATA holds PART/LABEL/VIDEO'),
        (['nowhere'], 'nowhere: no such folder'),
        (['DATA', '--train', 'c'], '--train: .* has no c, only a, b'),
        (['DATA/a'], 'left holds no class folders'),
        (['DATA', '--weights', 'x'], '--weights is for one model'),
        (['DATA', '--models', 'bvtam_r50_8x2.motion', '--weights', 'RUN'], 'is a bvtam_tiny_8x2'),
    ],
)
def test_bad_input_is_one_line(run, data, ours, tmp_path, words, message):
    bvtam.save_pretrained(ours, tmp_path / 'run')
    places = {'DATA': str(data), 'RUN': str(tmp_path / 'run')}
    with pytest.raises(SystemExit, match=message) as error:
        run(*(word.replace('DATA', places['DATA']).replace('RUN', places['RUN']) for word in words))
    assert '\n' not in str(error.value)


def test_figure_and_docs_are_of_the_results(reality):
    rows = reality.load()
    assert rows
    reality.check(rows, reality.RESULTS.with_suffix('.png'))
