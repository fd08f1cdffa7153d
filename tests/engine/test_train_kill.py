"""Runs that are killed, stopped, or shared by two processes, against the same run left alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from contextlib import suppress

import pytest
from support.runs import Clips, Server, make, product, rows

from bvtam.engine import checkpoint
from bvtam.engine.train import Stopped

RICH = (
    'optimizer.name=adamw',
    'regularize.ema=0.9',
    'augment.mixup=0.3',
    'clip_grad=1',
    'accumulate=2',
    'warmup_epochs=1',
    'drop_path=0.1',
    'label_smoothing=0.1',
)
OFTEN = ('save_minutes=0', 'epochs=3')


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp('server') / 'log.txt')
    yield server
    server.close()


def gone(pids):
    """Waits until no process of their groups is left: those that decode end with their parent."""
    until = time.monotonic() + 60
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            while time.monotonic() < until:
                os.killpg(pid, 0)
                time.sleep(0.01)


@pytest.mark.parametrize(
    'settings, world',
    [
        ((*RICH, 'data.workers=0'), 1),
        (('data.workers=2', 'schedule.name=step', 'decay_epochs=1.5'), 1),
        ((*RICH, 'log_every=1'), 2),
    ],
    ids=['one', 'workers', 'two'],
)
@pytest.mark.parametrize('number', [4, pytest.param(10, marks=pytest.mark.slow)])
def test_kills_change_no_bit(server, tmp_path, settings, world, number):
    settings = (*settings, *OFTEN)
    server.run(*settings, out=tmp_path / 'whole', world=world)
    moments, out, kills = random.Random(world), tmp_path / 'out', 0
    while kills < number:
        kill = (signal.SIGKILL, moments.randrange(4), moments.uniform(0, 0.4))
        pids = server.start(*settings, out=out, world=world, kill=kill, alone=True)
        killed = server.wait()[0] == -signal.SIGKILL
        for pid in pids:  # what decodes notices by and by
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        kills += killed
        if not killed:  # it was done before that moment came
            assert product(out) == product(tmp_path / 'whole')
            shutil.rmtree(out)
    server.run(*settings, out=out, world=world)
    assert product(out) == product(tmp_path / 'whole')
    assert len(rows(out)) >= 9
    hidden = [path.name for path in out.iterdir() if path.name.startswith('.')]
    assert hidden in ([], ['.lock'])


def test_what_decodes_ends_with_its_parent(server, tmp_path):
    for seconds in (0, 0.01, 0.1):
        job = {'kill': (signal.SIGKILL, 1, seconds), 'alone': True, 'val': 0}
        pids = server.start('data.workers=2', 'epochs=50', out=tmp_path / 'out', **job)
        assert server.wait() == [-signal.SIGKILL]
        gone(pids)


# ---- signals ----


@pytest.mark.parametrize(
    'number, world, workers',
    [(signal.SIGTERM, 1, 2), (signal.SIGINT, 1, 0), (signal.SIGTERM, 2, 0)],
)
def test_a_signal_stops_the_run_which_goes_on_later(server, tmp_path, number, world, workers):
    """All processes get it, those that decode too, as from a terminal or a scheduler."""
    settings = ('epochs=4', 'log_every=3', f'data.workers={workers}')
    out = tmp_path / 'out'
    pids = server.start(*settings, out=out, world=world, kill=(number, 4, 0), val=0)
    assert server.wait() == [128 + number] * world
    assert f'Stopped: stopped by {number.name} after step' in server.log.read_text()
    gone(pids)
    (kept,) = checkpoint.all_checkpoints(out / 'checkpoints')[-1:]
    state = checkpoint.read_state(kept)
    assert 4 <= state['step'] < 12
    server.run(*settings, out=out, world=world, val=0)
    server.run(*settings, out=tmp_path / 'whole', world=world, val=0)
    names = ('metrics.jsonl', 'last/model.safetensors', 'results.json')
    assert product(out, names) == product(tmp_path / 'whole', names)


def test_a_signal_after_the_last_step_of_an_epoch_is_heard_before_the_evaluation(tmp_path):
    trainer = make('epochs=2', out=tmp_path / 'run', val=Clips(6))
    trainer.progress = lambda done, total: done == 10 and signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Stopped, match='stopped by SIGTERM after step 3') as caught:
        trainer.fit()
    assert caught.value.exit_code == 143
    assert not (tmp_path / 'run' / 'best').exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    make('epochs=2', out=tmp_path / 'run', val=Clips(6)).fit()
    make('epochs=2', out=tmp_path / 'whole', val=Clips(6)).fit()
    assert product(tmp_path / 'run') == product(tmp_path / 'whole')


# ---- two processes ----


def test_two_processes_see_the_batches_of_one(server, tmp_path):
    """9 samples in fours: the last step has one, for which one process has padding samples alone."""
    settings = ('freeze_bn=all', 'accumulate=2', 'epochs=3', 'log_every=1', 'clip_grad=0.5')
    for world in (1, 2):
        out = tmp_path / str(world)
        seen = str(tmp_path / f's{world}')
        server.run(*settings, out=out, world=world, count=9, val=7, seen=seen)
    one, two = rows(tmp_path / '1'), rows(tmp_path / '2')
    assert len(one) == 12 and len({round(row.get('loss', 0), 3) for row in one}) > 6
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
        for name in ('val_top1', 'val_top5', 'val_mean_class_accuracy', 'val_num_videos', 'lr'):
            assert a.get(name) == b.get(name)
    seen = [json.loads((tmp_path / f's2.{rank}').read_text()) for rank in range(2)]
    whole = json.loads((tmp_path / 's1.0').read_text())
    assert sorted(seen[0] + seen[1]) == sorted([*whole, *whole[8::9]])  # the padding samples


def test_what_stops_one_process_stops_both_with_a_line(server, tmp_path):
    (tmp_path / 'file').write_text('')
    server.start(out=tmp_path / 'file', world=2)
    assert server.wait() == [1, 1]
    assert 'file cannot be written: File exists' in server.log.read_text()
    server.start('sync_bn=true', out=tmp_path / 'out', world=2)
    assert server.wait() == [1, 1]
    assert 'run.sync_bn: torch has it on GPUs alone; leave it out' in server.log.read_text()
    server.start(out=tmp_path / 'nan', world=2, bad=3)
    assert server.wait() == [1, 1]
    text = server.log.read_text()
    assert text.count('BvtamError: the loss nan is not finite at step') == 2
    line = text.rstrip().splitlines()[-1]
    assert 'v3.mp4' in line and line.count('.mp4') == 4
    assert not (tmp_path / 'nan' / 'checkpoints').exists()
