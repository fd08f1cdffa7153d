"""Checkpoints: whole or not there."""

from __future__ import annotations

import errno
import shutil

import pytest
import torch
from torch import nn

from bvtam.engine import checkpoint
from bvtam.errors import BvtamError


def save(folder, step, keep=3, value=1.0):
    tensors = {'model': {'weight': torch.full((3, 2), value)}, 'optimizer': {'weight.m': torch.ones(3, 2)}}  # fmt: skip
    return checkpoint.save(folder, step, tensors, {'step': step, 'best': {}}, keep)


def test_newest_whole_and_only_so_many(tmp_path):
    for step in (3, 20, 100):
        save(tmp_path, step, keep=2, value=step)
    assert [p.name for p in checkpoint.all_checkpoints(tmp_path)] == [
        'step-00000020',
        'step-00000100',
    ]
    newest = checkpoint.newest(tmp_path)
    assert checkpoint.read_state(newest) == {'step': 100, 'best': {}}
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


def test_no_space_left_leaves_the_earlier_ones(tmp_path, monkeypatch):
    first = save(tmp_path, 1)
    before = {p.name: p.read_bytes() for p in first.iterdir()}

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(checkpoint, 'sync', full)
    with pytest.raises(
        BvtamError, match='step-00000002 cannot be written: No space left on device'
    ):
        save(tmp_path, 2, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ['step-00000001']
    assert {p.name: p.read_bytes() for p in first.iterdir()} == before


@pytest.mark.parametrize('kind', [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimizer_goes_on_where_it_was(tmp_path, kind):
    settings = {'momentum': 0.9} if kind is torch.optim.SGD else {}
    runs = []
    for cut in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        optimizer = kind(net.parameters(), lr=0.1, **settings)
        for step in range(6):
            if cut and step == 3:
                tensors = {'model': net.state_dict(), 'optimizer': checkpoint.optimizer_tensors(net, optimizer)}  # fmt: skip
                path = checkpoint.save(tmp_path, step, tensors, {}, 1)
                net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
                optimizer = kind(net.parameters(), lr=0.1, **settings)
                net.load_state_dict(checkpoint.read_tensors(path, 'model'))
                checkpoint.load_optimizer(
                    net, optimizer, checkpoint.read_tensors(path, 'optimizer')
                )
            x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
        runs.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.equal(*runs)
