"""The command line as a user runs it: results on stdout, one line on stderr, exit codes."""

import json
import os
import subprocess
import sys

import pytest
from support.cli import SAMPLE, run

import bvtam
from bvtam import cli


def test_list(capfd):
    code, out, _ = run(capfd, 'list', 'bvtam_r50_*')
    assert code == 0
    assert out.split() == [f'bvtam_r50_{k}x2' for k in (8, 16, 24, 32)]
    code, out, _ = run(capfd, 'list', '--json')
    assert json.loads(out) == bvtam.list_models()
    code, out, _ = run(capfd, 'list', 'bvtam_r50*', '--pretrained', '--json')
    rows = json.loads(out)
    assert code == 0 and [r['name'] for r in rows] == bvtam.list_pretrained('bvtam_r50*')
    assert {r['name'].partition('.')[2]: r['from'] for r in rows} == {
        'motion': 'here', 'ssv1_ibm': 'convert by hand', 'ssv2_ibm': 'convert by hand'
    }  # fmt: skip
    assert rows[1]['top1'] == 46.4
    code, out, _ = run(capfd, 'list', 'tsm*', '--pretrained')
    assert code == 0 and 'download' in out and '74.1' in out and 'mit-han-lab' in out


def test_info(capfd, tmp_path):
    zoo = bvtam.save_pretrained(
        bvtam.create_model('bvtam_tiny_8x2', num_classes=3), tmp_path / 'zoo'
    )
    code, out, _ = run(capfd, 'info', 'bvtam_r50_8x2', '--json')
    facts = json.loads(out)
    assert code == 0
    assert facts['params'] == 25_020_142 and facts['clip']['num_frames'] == 16
    assert facts['options']['temporal'] == 'tam' and facts['input'] == '(B, 3, T, H, W)'
    code, out, _ = run(capfd, 'info', f'local-dir:{zoo}', '--json')
    facts = json.loads(out)
    assert facts['options']['width'] == 16 and facts['options']['layers'] == [2, 2, 2, 2]
    assert facts['options']['num_classes'] == facts['num_classes'] == 3
    assert facts['weights'] == {'from': 'here', 'folder': str(zoo)}
    code, out, _ = run(capfd, 'info', 'bvtam_r50_8x2.ssv1_ibm', '--json')
    facts = json.loads(out)
    assert facts['weights'] == {
        'bvtam_r50_8x2.motion': 'here',
        'bvtam_r50_8x2.ssv1_ibm': 'convert by hand',
        'bvtam_r50_8x2.ssv2_ibm': 'convert by hand',
    }
    assert facts['published']['metrics'][0]['top1'] == 46.4
    code, out, _ = run(capfd, 'info', f'local-dir:{zoo}')
    assert code == 0 and 'bvtam_tiny_8x2' in out and 'clip.num_frames' in out


def test_flops(capfd):
    args = ('flops', 'bvtam_r50_8x2', '--frames', 16, '--size', 224, '--num-classes', 174)
    code, out, _ = run(capfd, *args, '--json')
    assert code == 0
    costs = json.loads(out)
    assert list(costs) == ['model', 'num_frames', 'size', 'num_classes', 'conv_macs', 'linear_macs',
                           'params', 'executed_macs']  # fmt: skip
    assert costs['conv_macs'] == 23_848_452_096
    small = ('flops', 'bvtam_tiny_8x2', '--size', 64)
    macs = json.loads(run(capfd, *small, '--json')[1])['conv_macs']
    code, out, _ = run(capfd, *small)
    assert code == 0 and f'{macs:,}' in out


@pytest.mark.parametrize(
    ('args', 'code', 'words'),
    [
        (['info', 'bvtam_r50_8x'], 1, 'did you mean bvtam_r50_8x2'),
        (['info', 'owner/repo'], 1, 'hf-hub:owner/repo'),
        (['predict', SAMPLE, '--model', 'local-dir:nowhere'], 1, 'nowhere'),
        (['predict', SAMPLE, '--model', 'bvtam_r101_8x2'], 1, 'bvtam convert'),
        (['flops', 'bvtam_tiny_8x2', '--frames', '5'], 1, 'T=5'),
        (['flops', 'blresnet5'], 1, 'blresnet50'),
        (['convert', 'nowhere.pth'], 1, 'nowhere.pth'),
        (['convert', 'nowhere.pth', '--option', 'alpha'], 2, 'KEY=VALUE'),
        (['flops'], 2, '--check'),
        (['flops', 'bvtam_tiny_8x2', '--frames', '0'], 2, '--frames'),
        (['convert', 'nowhere.pth', '--name', 'bvtam_tiny_8x2.../evil'], 1, 'a tag is of letters'),
        (['convert', 'nowhere.pth', '--option', 'alpha=4'], 1, 'follows from the weights'),
        (['verify', 'bvtam_r50_8x2.ssv1_ibm'], 1, 'ibm.box.com/v/st2stv1-bLVNet-TAM-50-f8x2'),
        (['push', 'nowhere', 'alice/zoo'], 1, 'nowhere'),
        (['flops', 'bvtam_tiny_8x2', '--frmaes', '4'], 2, '--frames'),
    ],
)
def test_bad_calls(capfd, args, code, words):
    got, out, err = run(capfd, *args)
    assert (got, out) == (code, '')
    assert words in err and 'Traceback' not in err
    if code == 1:
        assert len(err.splitlines()) == 1


def test_a_fresh_process_predicts_with_what_was_converted(capfd, tmp_path):
    import torch
    from support import textbook

    model = textbook.BLVNet(blocks=(2, 2, 2, 2), width=16, num_classes=4)
    state = {f'baseline_model.{n}': t for n, t in model.state_dict().items()}
    torch.save(state, tmp_path / 'file.pth')
    code, out, err = run(capfd, 'convert', tmp_path / 'file.pth', '--json')
    assert code == 0, err
    assert json.loads(out)['architecture'] == 'bvtam_tiny_8x2'
    command = [sys.executable, '-m', 'bvtam', 'predict', str(SAMPLE), '--json']
    command += ['--model', 'bvtam_tiny_8x2.converted']
    env = os.environ | {'OMP_NUM_THREADS': '1'}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)[0]['top']) == 4


def test_help_does_without_torch():
    command = [sys.executable, '-X', 'importtime', '-m', 'bvtam', '--help']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and 'predict' in done.stdout
    imported = {line.rpartition('|')[2].strip() for line in done.stderr.splitlines()}
    assert 'bvtam.cli' in imported and not imported & {'torch', 'timm', 'numpy'}


def test_help_of_every_command(capfd):
    for command in cli.app.registered_commands:
        name = command.name or command.callback.__name__
        code, out, _ = run(capfd, name, '--help')
        reports = name != 'demo'  # it opens a page
        assert code == 0 and ('--json' in out) == reports
