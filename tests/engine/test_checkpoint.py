"""Checkpoints: whole or not there."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch

from bvtam.engine import checkpoint
from bvtam.errors import BvtamError

COUNTS = dict.fromkeys(('epoch', 'steps_done', 'metrics_bytes'), 0)
TABLES = {key: {} for key in ('best', 'last', 'failed', 'scaler', 'data')}
STATE = {**COUNTS, **TABLES, 'lr': 0.1, 'pending': [], 'groups': []}


def save(folder, step, keep=3, value=1.0):
    tensors = {'model': {'weight': torch.full((3, 2), value)}, 'optimizer': {'weight.m': torch.ones(3, 2)}}  # fmt: skip
    return checkpoint.save(folder, step, tensors, STATE | {'step': step}, keep)


def test_newest_whole_and_only_so_many(tmp_path):
    for step in (3, 20, 100):
        save(tmp_path, step, keep=2, value=step)
    names = [p.name for p in checkpoint.all_checkpoints(tmp_path)]
    assert names == ['step-00000020', 'step-00000100']
    newest = checkpoint.newest(tmp_path)
    assert checkpoint.read_state(newest) == STATE | {'step': 100}
    assert checkpoint.read_tensors(newest, 'model')['weight'].unique().tolist() == [100.0]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith('.')]
    save(tmp_path, 100, value=7)  # a resumed run may reach the same step again
    assert checkpoint.read_tensors(newest, 'model')['weight'].unique().tolist() == [7.0]


def test_cut_at_any_byte_it_is_passed_over(tmp_path, caplog):
    save(tmp_path, 1)
    whole = save(tmp_path, 2)
    for path in sorted(whole.iterdir()):
        data = path.read_bytes()
        ends = range(len(data)) if path.name == 'state.json' else range(0, len(data), 7)
        for end in ends:
            path.write_bytes(data[:end])
            found = checkpoint.newest(tmp_path)
            assert found.name == 'step-00000001', (path.name, end)
        assert 'is damaged' in caplog.text
        path.write_bytes(data)
    assert checkpoint.newest(tmp_path) == whole
    for path in sorted(whole.iterdir()):  # a flipped bit, and a missing file
        data = bytearray(path.read_bytes())
        if path.suffix == '.safetensors':
            data[-1] ^= 1
            path.write_bytes(data)
            assert checkpoint.newest(tmp_path).name == 'step-00000001'
            data[-1] ^= 1
            path.write_bytes(data)
        path.rename(tmp_path / 'aside')
        assert checkpoint.newest(tmp_path).name == 'step-00000001'
        (tmp_path / 'aside').rename(path)
    shutil.rmtree(tmp_path / 'step-00000001')
    shutil.rmtree(whole)
    assert checkpoint.newest(tmp_path) is None


@pytest.mark.parametrize(
    ('key', 'values'),
    [
        *((key, ['1', 1.5, -1, None, [], True]) for key in (*COUNTS, 'step')),
        ('lr', ['0.1', None, float('inf')]),
        ('pending', [{}, ['1'], [[]], 1]),
        *((key, [[], {'val_loss': '1'}, {'step': 1}]) for key in ('best', 'last')),
        ('failed', [[], {'a.mp4': 1}]),
        *((key, [[], 1]) for key in ('scaler', 'data')),
        ('groups', [{}, [1]]),
        ('files', [{}, [], {'model.safetensors': 1, 'optimizer.safetensors': 2}]),
    ],
)
def test_a_state_of_wrong_types_is_told_in_one_line(tmp_path, key, values):
    folder = save(tmp_path, 1)
    state = json.loads((folder / 'state.json').read_text())
    whole = json.dumps(state)
    for value in values:
        (folder / 'state.json').write_text(json.dumps(state | {key: value}))
        with pytest.raises(BvtamError, match=f'is damaged .*{key}'):
            checkpoint.read_state(folder)
    (folder / 'state.json').write_text(whole.replace(f'"{key}"', '"other"'))
    with pytest.raises(BvtamError, match=f'lacks {key}'):
        checkpoint.read_state(folder)
    for text in ('[' * 100_000, '[]', '1', ''):
        (folder / 'state.json').write_text(text)
        with pytest.raises(BvtamError, match='is damaged'):
            checkpoint.read_state(folder)


@pytest.mark.timeout(20)
@pytest.mark.parametrize('name', ['/dev/zero', '../outside', 'pipe', 'optimizer.safetensors'])
def test_nothing_but_its_own_files_is_read(tmp_path, name):
    folder = save(tmp_path, 1)
    (tmp_path / 'outside').touch()
    os.mkfifo(folder / 'pipe')
    state = json.loads((folder / 'state.json').read_text())
    if name in state['files']:
        (folder / name).unlink()
        (folder / name).symlink_to('/dev/zero')
    (folder / 'state.json').write_text(json.dumps(state | {'files': state['files'] | {name: ''}}))
    with pytest.raises(BvtamError, match='is damaged'):
        checkpoint.read_state(folder)
    (folder / 'state.json').unlink()
    os.mkfifo(folder / 'state.json')
    with pytest.raises(BvtamError, match='is a pipe'):
        checkpoint.read_state(folder)
