"""The commands about videos and training, as a user types them."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from safetensors.torch import load_file
from support.cli import run
from support.videos import write_pictures

import bvtam
from bvtam import cli
from bvtam.data.video.reader import VideoError
from bvtam.inference import render

LABELS = ['left', 'right [red]', 'up', 'down', 'still :smile:']


@pytest.fixture(scope='module')
def zoo(tmp_path_factory):
    """A zoo folder of a tiny model whose first answer is class 1."""
    model = bvtam.create_model(
        'bvtam_tiny_8x2', num_classes=5, width=8, layers=(2, 2, 2, 1), drop_rate=0
    )
    model.fc.bias.data[1] = 9.0
    model.label_names = LABELS
    model.clip_config = replace(model.clip_config, num_frames=8, resize=36, crop_size=32)
    return bvtam.save_pretrained(model, tmp_path_factory.mktemp('zoo') / 'zoo')


def write(path, seed=0):
    """A video of 12 frames, 25 a second, of random grey levels."""
    levels = np.random.default_rng(seed).integers(0, 256, 12)
    return write_pictures(path, (np.full((48, 64, 3), level, np.uint8) for level in levels))


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    """Four good videos with names that are not plain, in two folders."""
    folder = tmp_path_factory.mktemp('corpus')
    names = ['one/a.mp4', 'one/b c.mp4', 'two/a.mp4', 'two/[ü] 100%.mp4']
    for seed, name in enumerate(names):
        write(folder / name, seed=seed)
    return folder


@pytest.fixture
def damaged(corpus, tmp_path):
    """The same, and a file that is no video."""
    folder = tmp_path / 'damaged'
    folder.mkdir()
    for path in corpus.rglob('*.mp4'):
        os.link(path, folder / f'{path.parent.name} {path.name}')
    (folder / 'bad.mp4').write_text('this is no video\n' * 9)
    return folder


def videos(out):
    return [result['video'] for result in json.loads(out)]


def num_frames(path):
    with av.open(f'file:{path}') as container:
        return sum(1 for _ in container.decode(video=0))


# ---- predict ----


def test_predict_prints_what_the_library_returns(capfd, zoo, corpus):
    path = corpus / 'one' / 'a.mp4'
    options = ('--clips', 2, '--crops', 3, '--topk', 2)
    code, out, err = run(capfd, 'predict', path, '--model', zoo, *options, '--json')
    assert (code, err) == (0, '')
    (result,) = json.loads(out)
    model = bvtam.create_model(f'local-dir:{zoo}', pretrained=True)
    expected = bvtam.predict(model, path, topk=2, num_clips=2, num_crops=3)
    scores = [row.pop('score') for row in result['top']]
    assert scores == pytest.approx([row.pop('score') for row in expected['top']], abs=1e-6)
    assert list(result) == ['video', 'model', 'frames', 'top']
    assert result == expected and len(result['frames']) == 2 * 8
    assert result['top'][0] == {'label': 'right [red]', 'index': 1}

    code, out, err = run(capfd, 'predict', path, '--model', zoo, *options)
    title, head, first, _ = out.splitlines()
    assert (code, err, title, head.split()) == (0, '', str(path), ['label', 'index', 'score'])
    assert first.split() == ['right', '[red]', '1', f'{scores[0]:.4f}']


def test_predict_takes_files_folders_and_globs_each_video_once(capfd, zoo, corpus, monkeypatch):
    monkeypatch.chdir(corpus)
    sources = ('two/[[]*.mp4', 'one', 'one/a.mp4', 'two')
    code, out, _ = run(capfd, 'predict', *sources, '--model', zoo, '--json')
    names = ['two/[ü] 100%.mp4', 'one/a.mp4', 'one/b c.mp4', 'two/a.mp4']
    assert code == 0 and videos(out) == names


def test_predict_reads_a_stream_once_also_for_the_annotated_copy(capfd, zoo, corpus, tmp_path):
    ours, theirs = os.pipe()
    os.write(theirs, (corpus / 'one' / 'a.mp4').read_bytes())  # fits into the pipe
    os.close(theirs)
    stdin = os.dup(0)
    os.dup2(ours, 0)
    try:
        args = ('predict', '-', '--model', zoo, '--save', tmp_path / 'out', '--json')
        code, out, err = run(capfd, *args)
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)
        os.close(ours)
    assert (code, err) == (0, '') and json.loads(out)[0]['frames'] == [0, 2, 3, 5, 6, 8, 9, 11]
    assert num_frames(tmp_path / 'out' / 'stdin.mp4') == 12


def test_predict_by_windows(capfd, zoo, corpus):
    paths = [corpus / 'one' / 'a.mp4', corpus / 'two' / 'a.mp4']
    args = ('predict', *paths, '--model', zoo, '--every', 0.16)
    code, out, _ = run(capfd, *args, '--length', 0.24, '--json')
    results = json.loads(out)
    assert code == 0 and [r['video'] for r in results] == list(map(str, paths))
    for result in results:
        times = [(w['start'], w['end']) for w in result['windows']]
        assert times == [pytest.approx(t) for t in [(0, 0.24), (0.16, 0.40), (0.32, 0.48)]]
        assert all(len(w['top']) == 5 and w['top'][0]['index'] == 1 for w in result['windows'])
    code, out, _ = run(capfd, *args)
    lines = out.splitlines()
    assert code == 0 and lines[1].split() == ['start', 'end', 'label', 'index', 'score']
    assert [line.split()[:2] for line in lines[2:5]] == [
        ['0.00', '0.16'], ['0.16', '0.32'], ['0.32', '0.48'],
    ]  # fmt: skip


def test_predict_draws_one_video_into_files(capfd, zoo, corpus, tmp_path):
    pytest.importorskip('matplotlib')
    path, new = corpus / 'two' / '[ü] 100%.mp4', tmp_path / 'new'
    args = ('predict', path, '--model', zoo, '--every', 0.24, '--timeline', new / 'time.png')
    code, _, err = run(capfd, *args, '--save', new / 'copy.GIF')
    assert (code, err) == (0, '')
    assert (new / 'time.png').read_bytes()[:4] == b'\x89PNG'
    assert (new / 'copy.GIF').read_bytes()[:3] == b'GIF' and num_frames(new / 'copy.GIF') == 5
    code, _, err = run(capfd, 'predict', path, '--model', zoo, '--save', new / 'copy.mp4')
    assert (code, err) == (0, '') and num_frames(new / 'copy.mp4') == 12


def test_predict_draws_several_videos_into_a_folder_like_theirs(capfd, zoo, corpus, tmp_path):
    out = tmp_path / 'out'
    code, _, err = run(capfd, 'predict', corpus, '--model', zoo, '--save', out)
    assert (code, err) == (0, '')
    found = {str(path.relative_to(out)) for path in out.rglob('*.mp4')}
    assert found == {str(path.relative_to(corpus)) for path in corpus.rglob('*.mp4')}


def test_names_of_what_is_drawn_differ_as_the_videos_do():
    stems = cli.predict._stems(['/data/a.mp4', '/data/sub/a.mp4', '/data/v1.5.mp4'])
    assert list(stems.values()) == ['a', 'sub/a', 'v1.5']
    assert list(cli.predict._stems(['x/a.mp4', 'x/a.avi']).values()) == ['a.mp4', 'a.avi']
    outer = cli.predict._stems(['x/a.mp4', '../x/a.mp4'])
    assert outer['../x/a.mp4'] == 'x/a' and outer['x/a.mp4'].endswith('/x/a')
    urls = ['https://one.org/a/v.mp4?id=1', 'https://one.org/a/v.mp4?id=2', 'https://two.org/v.mp4']
    names = list(cli.predict._stems(urls).values())
    assert len(set(names)) == 3 and not any(Path(name).is_absolute() for name in names)


def test_predict_skips_and_lists_what_cannot_be_read(capfd, zoo, damaged, tmp_path):
    errors = tmp_path / 'errors.csv'
    args = ('predict', damaged, '--model', zoo, '--json', '--errors', errors, '--on-error', 'skip')
    code, out, err = run(capfd, *args, '--max-failed', 0.2)
    assert code == 0 and len(videos(out)) == 4
    lines = err.splitlines()
    assert len(lines) == 2 and 'bad.mp4 failed' in lines[0]
    assert lines[1] == f'1 of 5 videos failed, listed in {errors}'
    with errors.open() as file:
        (row,) = csv.DictReader(file)
    assert row['video'] == str(damaged / 'bad.mp4') and row['reason']

    code, out, err = run(capfd, *args, '--max-failed', 0.1)
    assert (code, out) == (1, '') and 'max_failed' in err.splitlines()[-1]
    code, out, err = run(capfd, 'predict', damaged, '--model', zoo, '--json')
    assert (code, out) == (1, '') and len(err.splitlines()) == 1 and 'bad.mp4' in err


def test_damage_that_only_the_annotated_copy_meets(capfd, zoo, corpus, tmp_path, monkeypatch):
    save = render.save_annotated

    def fails(result, video, path, **options):
        if video.endswith('one/a.mp4'):
            raise VideoError(f'{video} is damaged')
        save(result, video, path, **options)

    monkeypatch.setattr(render, 'save_annotated', fails)
    args = ('predict', corpus, '--model', zoo, '--save', tmp_path / 'out', '--json')
    code, out, err = run(capfd, *args, '--on-error', 'skip', '--max-failed', 0.25)
    assert code == 0 and len(videos(out)) == 4 and '1 of 4 videos failed' in err
    assert len(list((tmp_path / 'out').rglob('*.mp4'))) == 3
    code, out, err = run(capfd, *args)
    assert (code, out, len(err.splitlines())) == (1, '', 1)


def test_names_of_any_bytes_are_printed_in_one_line(capfd, zoo, tmp_path):
    name = b'\xff \x1b[31m\n.mp4'
    write(tmp_path / 'video.mp4').rename(tmp_path / os.fsdecode(name))
    code, out, _ = run(capfd, 'predict', tmp_path, '--model', zoo, '--topk', 1)
    assert code == 0 and out.splitlines()[0] == f'{tmp_path}/\\udcff \\x1b[31m\\n.mp4'
    code, out, _ = run(capfd, 'predict', tmp_path, '--model', zoo, '--json')
    assert code == 0 and os.fsencode(videos(out)[0]) == os.fsencode(tmp_path) + b'/' + name


# ---- what is not right ----


@pytest.mark.parametrize(
    ('args', 'code', 'words'),
    [
        ('predict GOOD MORE --model ZOO --save copy.mp4', 2, '--save must be a folder'),
        ('predict GOOD --model ZOO --save copy.avi', 2, 'end in .mp4 or .gif'),
        ('predict GOOD --model ZOO --timeline time.png', 2, 'give --every'),
        ('predict GOOD --model ZOO --length 2', 2, 'give --every'),
        ('predict GOOD --model ZOO --on-error substitute', 2, '--on-error'),
        ('predict GOOD --model ZOO --topk many', 2, '--topk'),
        ('predict', 2, 'VIDEO'),
        ('predict GOOD --model ZOO --topk 0', 1, 'topk'),
        ('predict GOOD --model ZOO --crops 4', 1, '1, 3, 5, 10'),
        ('predict GOOD --model ZOO --every 0', 1, 'every'),
        ('predict GOOD nowhere.mp4 --model ZOO', 1, 'nowhere.mp4'),
        ('predict nowhere/*.mp4 --model ZOO', 1, 'nowhere/*.mp4'),
        ('predict GOOD --model nowhere/zoo', 1, 'nowhere/zoo'),
        ('predict GOOD --model ZOO --save GOOD', 1, 'another name'),
        ('predict GOOD --model ZOO --save /proc/none/copy.mp4', 1, '/proc/none/copy.mp4'),
        ('extract GOOD --model ZOO', 2, '--out'),
        ('extract GOOD --model ZOO --out x --what frame', 2, '--what'),
        ('extract GOOD --model ZOO --out x --what window', 1, 'length'),
        ('extract GOOD --model ZOO --out x --stage layer9', 1, 'layer4'),
        ('extract GOOD --model ZOO --out CORPUS', 1, 'name a new folder'),
        ('eval ZOO', 2, '--data'),
        ('eval ZOO --data CORPUS --split all', 2, '--split'),
        ('eval ZOO --data nowhere', 1, 'nowhere'),
        ('eval ZOO --data CORPUS', 1, 'one is none of the 5 labels'),
        ('prepare CORPUS', 2, 'OUT'),
        ('prepare CORPUS x --count 5', 2, '--count is for motion'),
        ('prepare motion x --on-error skip', 2, '--on-error is not for motion'),
        ('prepare motion x --count 3', 1, 'count must be'),
        ('prepare CORPUS x --size 0', 1, 'size must be'),
        ('prepare motion x --size 0', 1, 'size must be'),
        ('prepare CORPUS CORPUS/x', 1, 'name a folder outside'),
        ('prepare nowhere x', 1, 'nowhere'),
        ('train quicc --data CORPUS', 1, 'quick'),
        ('train nowhere.yaml --data CORPUS', 1, 'nowhere.yaml'),
        ('train --data CORPUS learning=3', 1, "unknown setting 'learning'"),
        ('train --data CORPUS epochs=many', 1, 'schedule.epochs must be a whole number'),
        ('train --data nowhere', 1, 'nowhere'),
        ('train quick', 1, '--data DIR'),
        ('train --data CORPUS --resume maybe', 2, '--resume'),
    ],
)
def test_bad_calls(capfd, zoo, corpus, tmp_path, monkeypatch, args, code, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('COLUMNS', '200')
    known = {'ZOO': zoo, 'CORPUS': corpus, 'GOOD': corpus / 'one/a.mp4', 'MORE': corpus / 'two'}
    args = [re.sub('[A-Z]{3,}', lambda match: str(known[match[0]]), arg) for arg in args.split()]
    got, out, err = run(capfd, *args)
    assert got == code and words in err and 'Traceback' not in err
    if code == 1:
        # Of `--save GOOD`, only known once there is something to save.
        assert len(err.splitlines()) == 1 and err.startswith('bvtam: ')
    assert code == 1 or out == ''
    assert not any(path.is_file() for path in tmp_path.rglob('*'))


# ---- extract, eval, prepare, train ----


def test_extract_and_again(capfd, zoo, damaged, tmp_path):
    out = tmp_path / 'new' / 'features'
    args = ('extract', damaged, '--model', zoo, '--out', out, '--shard-size', 2)
    args += ('--dtype', 'float16', '--max-failed', 0.2)
    code, text, err = run(capfd, *args, '--json')
    expected = {'out': str(out), 'videos': 5, 'rows': 4, 'failed': 1, 'shards': 3}
    assert code == 0 and json.loads(text) == expected
    assert len(err.splitlines()) == 1 and 'bad.mp4 failed' in err
    tensors = load_file(sorted(out.glob('*.safetensors'))[-1])
    assert tensors['features'].shape == (1, 256) and tensors['features'].element_size() == 2
    assert 'bad.mp4' in (out / 'errors.csv').read_text()

    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
    code, text, err = run(capfd, *args)
    assert (code, err) == (0, '')
    found = dict(line.split() for line in text.splitlines())
    assert found == {key: str(value) for key, value in expected.items()}
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
    shards = [path for path in before if path.suffix == '.safetensors']
    assert all(before[path] == after[path] for path in shards) and before.keys() == after.keys()
    code, _, err = run(capfd, *args, '--stage', 2)
    assert code == 1 and len(err.splitlines()) == 1 and 'stage' in err


def labelled(folder, counts):
    for seed, (label, count) in enumerate(counts.items()):
        for i in range(count):
            write(folder / label / f'{i}.mp4', seed=10 * seed + i)
    return folder


def test_eval(capfd, zoo, tmp_path):
    pytest.importorskip('matplotlib')
    counts = dict.fromkeys(LABELS, 1) | {'right [red]': 2}
    data, out = labelled(tmp_path / 'data', counts), tmp_path / 'new' / 'report'
    args = ('eval', zoo, '--data', data, '--workers', 0)
    code, text, err = run(capfd, *args, '--out', out, '--json')
    assert (code, err) == (0, '')
    result = json.loads(text)  # every answer is class 1
    assert result['num_videos'] == 6 and result['top1'] == pytest.approx(100 * 2 / 6)
    assert result['mean_class_accuracy'] == pytest.approx(20)
    assert result['views'] == {'num_clips': 1, 'num_crops': 1}
    assert json.loads((out / 'results.json').read_text()) == result
    names = {path.name for path in out.iterdir()}
    assert names == {'results.json', 'per_class.csv', 'confusion.png'}
    code, text, _ = run(capfd, *args, '--clips', 2, '--crops', 3)
    rows = dict(line.split() for line in text.splitlines())
    assert code == 0 and rows['model'] == 'bvtam_tiny_8x2' and rows['top1'] == '33.33'
    assert (rows['num_videos'], rows['num_clips'], rows['num_crops']) == ('6', '2', '3')


def test_eval_of_parts(capfd, zoo, tmp_path):
    data = tmp_path / 'data'
    labelled(data / 'train', dict.fromkeys(LABELS, 1))
    labelled(data / 'val', {'right [red]': 2, 'up': 1})
    args = ('eval', zoo, '--data', data, '--workers', 0, '--json')
    for options, videos, top1 in (((), 3, 200 / 3), (('--split', 'train'), 5, 20)):
        code, text, _ = run(capfd, *args, *options)
        result = json.loads(text)
        assert (code, result['num_videos']) == (0, videos)
        assert result['top1'] == pytest.approx(top1)
    code, _, err = run(capfd, *args, '--split', 'test')
    assert code == 1 and len(err.splitlines()) == 1 and 'no folder test' in err


def test_prepare_and_again(capfd, tmp_path):
    data = labelled(tmp_path / 'data', {'x': 1, 'y': 1})
    out = tmp_path / 'new' / 'small'
    args = ('prepare', data, out, '--size', 32, '--workers', 1)
    code, text, err = run(capfd, *args, '--json')
    result = json.loads(text)
    assert (code, err) == (0, '') and (result['written'], result['kept']) == (2, 0)
    with av.open(str(out / 'x' / '0.mp4')) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.frames) == (42, 32, 12)
    code, text, err = run(capfd, *args)
    rows = dict(line.split() for line in text.splitlines())
    assert (code, err) == (0, '') and (rows['written'], rows['kept']) == ('0', '2')


def test_prepare_motion(capfd, tmp_path):
    args = ('prepare', 'motion', tmp_path / 'out', '--family', 'order', '--count', 60, '--size', 16)
    code, text, err = run(capfd, *args, '--json')
    assert (code, err) == (0, '')
    assert json.loads(text) == {'out': str(tmp_path / 'out'), 'videos': 84, 'classes': 12}
    assert len(list((tmp_path / 'out' / 'train').rglob('*.mp4'))) == 60


def test_train_lists_recipes_and_settings(capfd):
    code, out, _ = run(capfd, 'train', '--settings')
    assert code == 0 and out.startswith('recipes: ') and 'finetune' in out.splitlines()[0]
    assert re.search(r'^optimizer\.lr +0\.01 +learning rate', out, re.MULTILINE)
    code, out, _ = run(capfd, 'train', '--settings', '--json')
    document = json.loads(out)
    assert code == 0 and 'finetune' in document['recipes']
    row = {'setting': 'schedule.epochs', 'default': 50, 'help': 'passes over the training set'}
    assert row in document['settings']


# ---- terminals, pipes, signals ----


class Terminal(io.TextIOWrapper):
    """A stream that takes itself for a terminal."""

    def __init__(self):
        super().__init__(io.BytesIO(), 'utf-8', write_through=True)

    def isatty(self):
        return True

    @property
    def text(self):
        return self.buffer.getvalue().decode()


@pytest.mark.parametrize('both', [True, False])
def test_lines_come_above_the_bar_and_results_on_stdout(capfd, zoo, damaged, monkeypatch, both):
    screen = Terminal()
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setenv('COLUMNS', '200')
    monkeypatch.setattr(sys, 'stderr', screen)
    if both:
        monkeypatch.setattr(sys, 'stdout', screen)
    args = ('--model', zoo, '--topk', 1, '--on-error', 'skip', '--max-failed', 0.2)
    code, out, _ = run(capfd, 'predict', damaged, *args)
    assert code == 0 and '━━━' in screen.text
    # A line break, or the bar that was there erased.
    begin = r'(?:\n|\x1b\[2K)(?:\x1b\[[0-9;]*m)*'
    (path,) = damaged.glob('one a.mp4')
    assert re.search(begin + re.escape(f'{damaged}/bad.mp4 failed: '), screen.text)
    assert bool(re.search(begin + re.escape(str(path)), screen.text)) == both
    assert len(out.splitlines()) == (0 if both else 3 * 4)
    assert screen.text.endswith('1 of 5 videos failed\n')


def test_interrupted_in_one_line_and_taken_up_again(capfd, zoo, corpus, tmp_path, monkeypatch):
    @contextmanager
    def impatient(what):
        yield lambda done, total: signal.raise_signal(signal.SIGINT) if done == 2 else None

    args = ('extract', corpus, '--model', zoo, '--out', tmp_path / 'out', '--shard-size', 1)
    # A shell's background job, as a nightly test may be, is started with this signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(cli.videos, 'bar', impatient)
            assert run(capfd, *args) == (130, '', 'bvtam: interrupted\n')
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(list((tmp_path / 'out').glob('*.safetensors'))) == 2
    code, out, _ = run(capfd, *args, '--json')
    assert code == 0 and json.loads(out)['videos'] == 4


def test_a_reader_that_has_read_enough_ends_it_quietly():
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONUNBUFFERED'}
    command = [sys.executable, '-m', 'bvtam', 'list']
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=env, text=True) as process:
        process.stdout.close()
        assert (process.wait(100), process.stderr.read()) == (1, '')
