"""`bvtam bench` on nets that are quick; what it measures is not tested, what it says of it is."""

import json
from dataclasses import replace

import pytest
from support.cli import run

from bvtam.deploy import bench
from bvtam.errors import BvtamError

ROW = {
    'model', 'library', 'frames', 'size', 'batch', 'gmacs', 'ms_per_clip', 'ms_low', 'ms_high',
    'clips_per_second', 'peak_mib', 'share_of_matmul', 'top1', 'views',
}  # fmt: skip


def test_own_nets_and_a_peer(tmp_path, monkeypatch):
    peer = bench.PEERS['resnet50 per frame']
    monkeypatch.setitem(bench.PEERS, 'resnet50 per frame', replace(peer, size=64))
    result = bench.bench(['bvtam_tiny_8x2'], ['resnet50 per frame'], batch_sizes=[1, 2], rounds=2)
    rows = result['rows']
    assert [(r['model'], r['batch']) for r in rows] == [
        (name, batch) for batch in (1, 2) for name in ('bvtam_tiny_8x2', 'resnet50 per frame')
    ]
    assert all(r.keys() == ROW for r in rows)
    assert all(0 < r['ms_low'] <= r['ms_per_clip'] <= r['ms_high'] for r in rows)
    own, peer = rows[:2]
    assert own['top1'] is None and peer['top1'] == 68.8
    assert peer['gmacs'] == pytest.approx(8 * 4.09 * (64 / 224) ** 2, rel=0.02)
    assert own['gmacs'] < 2 and bench._published('tsm_resnet50_f8')[0] == 71.2
    bench.save(result, tmp_path)
    assert json.loads((tmp_path / 'bench.json').read_text()) == result
    assert (tmp_path / 'bench.md').read_text().count('\n') == 4 + len(rows)
    assert (tmp_path / 'bench.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    'precision',
    ['fp32', pytest.param('bf16', marks=pytest.mark.slow)],  # minutes, where the CPU lacks it
)
def test_the_command(capfd, precision):
    code, out, err = run(
        capfd, 'bench', 'bvtam_tiny*', '--peers', 'none', '--rounds', 1, '--precision', precision
    )
    assert code == 0, err
    assert '`bvtam_tiny_8x2`' in out and precision in out


def test_what_cannot_be_timed():
    for options, message in (
        ({'names': ['bvtam_r50_8x3']}, 'unknown model .*; did you mean'),
        ({'names': ['blresnet50'], 'peers': []}, 'blresnet50 takes single images'),
        ({'peers': ['s4d']}, "no peer 's4d'; did you mean s3d"),
        ({'precision': 'fp8'}, 'precision must be one of fp32, bf16'),
        ({'rounds': 0}, 'must be 1 or more'),
    ):
        with pytest.raises(BvtamError, match=message):
            bench.bench(**options)
