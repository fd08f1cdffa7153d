"""Recipes, folders of embeddings, prepared data and weights that came from somebody else."""

import json
import os

import pytest
import yaml
from safetensors.torch import save_file

import bvtam
from bvtam.data.motion.clips import MotionClips
from bvtam.data.motion.files import write_videos
from bvtam.data.prepare.run import prepare
from bvtam.engine.recipe import Recipe
from bvtam.engine.settings import read_yaml
from bvtam.errors import BvtamError, shown
from bvtam.files import replaced
from bvtam.hub.convert import convert
from bvtam.inference.shards import iter_features
from bvtam.weights import zoo


def nested(levels, width=10):
    """Tables whose aliases stand for width ** levels values."""
    lines = ['a0: &a0 [x]']
    for i in range(1, levels + 1):
        lines.append(f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * width)}]')
    return '\n'.join(lines)


def test_aliases_are_taken_where_they_stand_for_little():
    assert read_yaml('a: &x {b: 1}\nc: {<<: *x, d: 2}') == {'a': {'b': 1}, 'c': {'b': 1, 'd': 2}}
    assert len(read_yaml(nested(2))['a2']) == 10


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (nested(6), 'aliases stand for more'),
        ('a: &a [*a]', 'aliases stand for more'),
        ('a: &a {<<: [*a, *a]}', 'aliases stand for more'),
        ('a: ' + '[' * 1000, 'nested too deeply'),
        ('a: ' + 'x' * 300_000, 'characters'),
        ('lr: 0x' + 'f' * 5000, 'lr'),
        ('optimizer: {lr: ' + '9' * 400 + '}', 'optimizer.lr must be a number'),
        ('optimizer: {lr: ' + '9' * 5000 + '}', 'cannot be read as YAML'),
        ('optimizer: {lr: 1e999}', 'optimizer.lr must be'),
        ('run: {seed: [' + 'x, ' * 5000 + ']}', 'run.seed must be a whole number'),
    ],
    ids=range(10),
)
def test_a_recipe_that_grows_is_one_short_line(tmp_path, monkeypatch, text, message):
    made = []
    construct = yaml.SafeLoader.construct_object

    def counted(self, node, deep=False):
        made.append(node)
        return construct(self, node, deep)

    monkeypatch.setattr(yaml.SafeLoader, 'construct_object', counted)
    (tmp_path / 'theirs.yaml').write_text(text)
    with pytest.raises(BvtamError, match=message) as caught:
        Recipe.load(tmp_path / 'theirs.yaml')
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 1100
    assert len(made) < 20_000


def test_values_are_shown_short():
    assert len(shown(['x' * 10_000] * 10_000)) < 1000
    assert shown(16**5000) == 'a int' or len(shown(16**5000)) < 200


@pytest.fixture
def embeddings(tmp_path):
    import torch

    folder = tmp_path / 'embeddings'
    folder.mkdir()
    settings = {'format': 'safetensors', 'num_videos': 1, 'shard_size': 1, 'prefix': ''}
    (folder / 'extract.json').write_text(json.dumps(settings))
    tensors = {
        key: torch.zeros(2, 3, dtype=kind)
        for key, kind in (
            ('features', torch.float32),
            ('frames', torch.int64),
            ('times', torch.float64),
        )
    }
    head = {'videos': ['a.mp4'], 'rows': [2], 'failed': {}}

    def write(**changes):
        text = json.dumps(head | changes)
        save_file(tensors, folder / 'shard-00000-of-00001.safetensors', metadata={'shard': text})
        return folder

    return write, settings


@pytest.mark.timeout(30)
def test_embeddings_of_others_are_checked(embeddings):
    write, settings = embeddings
    assert [rows.video for rows in iter_features(write())] == ['a.mp4']
    wrong = [{'rows': [3]}, {'rows': ['2']}, {'rows': [-1]}, {'rows': [1, 1]}, {'videos': 'a'}]
    for changes in [*wrong, {'videos': [1]}, {'failed': []}, {'failed': {'a': 1}}]:
        with pytest.raises(BvtamError, match='is damaged'):
            list(iter_features(write(**changes)))
    shard = write() / 'shard-00000-of-00001.safetensors'
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(BvtamError, match='is damaged .*a pipe'):
        list(iter_features(shard.parent))
    for key, value in {'num_videos': 10**12, 'shard_size': 1.5, 'format': '/../../x'}.items():
        (shard.parent / 'extract.json').write_text(json.dumps(settings | {key: value}))
        with pytest.raises(BvtamError, match='extract.json is damaged'):
            list(iter_features(shard.parent))


@pytest.mark.timeout(60)
@pytest.mark.parametrize('name', ['.prepare', 'prepare.json', 'a', 'a/x.mp4'])
def test_prepare_neither_writes_through_links_nor_empties_them(tmp_path, name):
    (tmp_path / 'source' / 'a').mkdir(parents=True)
    (tmp_path / 'source' / 'a' / 'x.mp4').touch()
    precious = tmp_path / 'precious'
    precious.mkdir()
    (precious / 'thesis').write_text('mine')
    out = tmp_path / 'out'
    (out / name).parent.mkdir(parents=True)
    (out / 'prepare.json').touch()
    (out / name).unlink(missing_ok=True)
    (out / name).symlink_to(precious)
    with pytest.raises(BvtamError, match=f'{os.path.basename(name)} is a symbolic link'):
        prepare(tmp_path / 'source', out)
    assert [path.name for path in precious.iterdir()] == ['thesis']


def test_motion_clips_are_not_written_through_links(tmp_path):
    clips = MotionClips(num_frames=2, size=16, length=2)
    (tmp_path / 'precious').mkdir()
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / clips.split).symlink_to(tmp_path / 'precious')
    with pytest.raises(BvtamError, match='is a symbolic link'):
        list(write_videos(clips, tmp_path / 'out', 2))
    assert not list((tmp_path / 'precious').iterdir())


def test_weights_that_this_user_may_not_read_are_not_called_damaged(tmp_path, monkeypatch):
    folder = bvtam.save_pretrained(bvtam.create_model('bvtam_tiny_8x2'), tmp_path / 'model')

    def refused(path):
        raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr('bvtam.models._checks.open_regular', refused)
    with pytest.raises(BvtamError, match='has not permitted it') as caught:
        bvtam.create_model(f'local-dir:{folder}', pretrained=True)
    assert 'damaged' not in str(caught.value)


@pytest.mark.timeout(30)
def test_a_pipe_for_a_list_of_hashes_is_not_waited_for(tmp_path):
    folder = bvtam.save_pretrained(bvtam.create_model('bvtam_tiny_8x2'), tmp_path / 'model')
    (folder / zoo.SUMS).unlink()
    os.mkfifo(folder / zoo.SUMS)
    with pytest.raises(BvtamError, match='SHA256SUMS cannot be read'):
        zoo.check_hashes(folder)


def test_a_folder_that_was_being_replaced_is_told_of(tmp_path):
    (tmp_path / '.model.0123.old').mkdir()
    assert replaced(tmp_path / 'model') == tmp_path / '.model.0123.old'
    with pytest.raises(FileNotFoundError, match=r'rename .*\.model\.0123\.old to it'):
        zoo.read_config(tmp_path / 'model')


def test_a_checkpoint_of_another_hash_is_not_read(tmp_path, monkeypatch):
    (tmp_path / 'file.pth').write_bytes(b'anything')
    monkeypatch.setattr('bvtam.hub.convert.read_checkpoint', lambda path: pytest.fail('read'))
    with pytest.raises(BvtamError, match=r'has SHA-256 .*, not 00: nothing was loaded'):
        convert(tmp_path / 'file.pth', sha256='00')
