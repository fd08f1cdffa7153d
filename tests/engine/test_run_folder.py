"""Folders of runs that others made, that failed at once, or whose data have moved."""

import os
import shutil

import pytest
from support.runs import Clips, make, rows

from bvtam.data.records import paths_and_sizes
from bvtam.errors import BvtamError


def tree(folder):
    return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file() and p.name != '.lock'}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp('run') / 'out'
    make(out=out, val=Clips(4)).fit()
    return out


LINKS = ['.lock', 'metrics.jsonl', 'recipe.yaml', 'results.json', 'curves.png', 'errors.csv']
LINKS += ['best', 'last', 'checkpoints', 'tensorboard', 'checkpoints/step-00000007']


@pytest.mark.parametrize('name', LINKS)
def test_nothing_is_written_through_a_link(whole, tmp_path, name):
    out = tmp_path / 'out'
    shutil.copytree(whole, out)
    precious = tmp_path / 'precious'
    precious.mkdir()
    (precious / 'state.json').write_text('mine')
    path = out / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(precious if '.' not in name else precious / 'state.json')
    with pytest.raises(BvtamError, match=f'{path.name} is a symbolic link'):
        make(out=out, val=Clips(4)).fit()
    assert {p.name: p.read_text() for p in precious.iterdir()} == {'state.json': 'mine'}


@pytest.mark.timeout(60)
def test_a_pipe_is_not_waited_for(whole, tmp_path):
    out = tmp_path / 'out'
    shutil.copytree(whole, out)
    (out / 'metrics.jsonl').unlink()
    os.mkfifo(out / 'metrics.jsonl')
    with pytest.raises(BvtamError, match='metrics.jsonl is neither file nor folder'):
        make(out=out, val=Clips(4)).fit()


def test_a_checkpoint_of_another_model_is_told_in_one_line(whole, tmp_path):
    out, other = tmp_path / 'out', tmp_path / 'other'
    shutil.copytree(whole, out)
    make('model_options={width: 16, layers: [2, 2, 2, 1], drop_rate: 0}', out=other).fit()
    shutil.rmtree(out / 'checkpoints')
    for state in (other / 'checkpoints').glob('*/state.json'):
        text = state.read_text()
        state.write_text(text.replace('"data": {', '"data": {"other": 1, '))
    shutil.copytree(other / 'checkpoints', out / 'checkpoints')
    with pytest.raises(BvtamError, match='is not of this run'):
        make(out=out).fit()


def test_a_run_without_a_checkpoint_does_not_block_the_corrected_command(tmp_path):
    out = tmp_path / 'out'
    with pytest.raises(ValueError, match='even'):  # bLVNet takes pairs of frames
        make(out=out, data=Clips(frames=3)).fit()
    assert (out / 'recipe.yaml').exists()
    make('lr=0.03', out=out).fit('never')
    assert rows(out)[-1]['step'] == 6
    assert 'lr: 0.03' in (out / 'recipe.yaml').read_text()
    with pytest.raises(BvtamError, match='holds a run with another recipe'):
        make('lr=0.04', out=out).fit()


def test_data_are_known_by_what_they_are_and_not_by_where(tmp_path, monkeypatch):
    folder = tmp_path / 'data'
    for label in 'ab':
        (folder / label).mkdir(parents=True)
        (folder / label / 'x.mp4').write_text(label)
    (folder / 'frames').mkdir()
    (folder / 'frames' / '1.jpg').write_text('four')
    names = ['a/x.mp4', 'b/x.mp4', 'frames']

    def found(base):
        return paths_and_sizes([f'{base}{name}' for name in names])

    wanted = [('a/x.mp4', 1), ('b/x.mp4', 1), ('frames', 4)]
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'link').symlink_to('data')
    spelled = ['data/', './data//', f'{folder}/', '../' + tmp_path.name + '/data/', 'link/']
    assert [found(base) for base in spelled] == [wanted] * len(spelled)
    folder.rename(tmp_path / 'moved')
    assert found('moved/') == wanted
    (tmp_path / 'moved' / 'a' / 'x.mp4').write_text('longer')
    assert found('moved/')[0] == ('a/x.mp4', 6)
    assert paths_and_sizes(['https://host/a.mp4']) == [('https://host/a.mp4', -1)]
    assert paths_and_sizes([]) == []
