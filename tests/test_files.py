"""Files and folders are written whole, whatever is in their place and whenever killed; only regular
files are read."""

import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bvtam import files
from bvtam.errors import BvtamError
from bvtam.factory import create_model
from bvtam.files import (
    append_own,
    atomic_file,
    atomic_folder,
    open_regular,
    read_regular,
    refuse_links,
    write_file,
)
from bvtam.hub.publish import save_pretrained


def mode(path):
    return oct(stat.S_IMODE(Path(path).stat().st_mode))


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_modes_are_those_of_a_plain_file(tmp_path, umask):
    plain = tmp_path / 'plain'
    plain.touch()
    write_file(tmp_path / 'a.txt', 'text')
    with atomic_file(tmp_path / 'b.safetensors') as new:  # a library may put its own file there
        safetensors.torch.save_file({'x': torch.zeros(1)}, new)
    folder = save_pretrained(create_model('bvtam_tiny_8x2', num_classes=2), tmp_path / 'model')
    made = [tmp_path / 'a.txt', tmp_path / 'b.safetensors', *folder.iterdir()]
    assert {mode(path) for path in made} == {mode(plain)}
    assert mode(folder) == oct(0o777 & ~umask)


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path):
    path = tmp_path / 'a'
    path.touch()
    path.chmod(0o640)
    write_file(path, 'new')
    assert (path.read_text(), mode(path)) == ('new', '0o640')


def test_a_link_is_replaced_and_not_written_through(tmp_path):
    (tmp_path / 'precious').write_text('mine')
    (tmp_path / 'link').symlink_to('precious')
    write_file(tmp_path / 'link', 'new')
    assert (tmp_path / 'precious').read_text() == 'mine'
    assert (tmp_path / 'link').read_text() == 'new' and not (tmp_path / 'link').is_symlink()


@pytest.mark.timeout(20)
def test_only_a_file_of_its_own_is_appended_to(tmp_path):
    (tmp_path / 'precious').write_text('mine')
    (tmp_path / 'link').symlink_to('precious')
    os.mkfifo(tmp_path / 'pipe')
    for name in ('link', 'pipe'):
        with pytest.raises(OSError, match=name):
            append_own(tmp_path / name)
        with pytest.raises(BvtamError, match=name):
            refuse_links(tmp_path, ['precious', 'missing', name])
    refuse_links(tmp_path, ['precious', 'missing'])
    with append_own(tmp_path / 'precious') as file:
        file.write(b'!')
    assert (tmp_path / 'precious').read_text() == 'mine!'


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the block that it leaves runs (see `fill`)."""


def fill(folder, text):
    with atomic_folder(folder) as new:
        (new / 'a').write_text(text)
        (new / 'b').write_text(text)


def content(folder):
    return {path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize('exchange', [True, False], ids=['swap', 'two renames'])
@pytest.mark.parametrize('step', range(8))
def test_killed_at_any_step_the_next_save_finds_a_whole_folder(
    tmp_path, monkeypatch, step, exchange
):
    folder = tmp_path / 'net.tag'
    fill(folder, 'old')
    if not exchange:
        monkeypatch.setattr(files, '_exchange', lambda one, other: False)
    steps = iter(range(100))

    def at(action):  # after the step, what runs as a killed program's `finally` does nothing
        def call(*args, **kwargs):
            if next(steps) >= step:
                raise Killed
            return action(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(files, 'sync', at(files.sync))
        patch.setattr(files, '_exchange', at(files._exchange))
        patch.setattr(files.Path, 'rename', at(Path.rename))
        patch.setattr(files.shutil, 'rmtree', at(files.shutil.rmtree))
        with suppress(Killed):
            fill(folder, 'new')
    files.recover(folder)
    assert content(folder) in ({'old'}, {'new'})
    fill(folder, 'newer')
    assert content(folder) == {'newer'}
    assert [path.name for path in tmp_path.iterdir()] == ['net.tag']  # no hidden copies


def test_what_a_live_program_writes_stays(tmp_path):
    folder = tmp_path / 'net.tag'
    with atomic_folder(folder) as first:
        (first / 'a').write_text('first')
        fill(folder, 'second')
        assert content(folder) == {'second'}
    assert content(folder) == {'first'}


def test_many_at_once_leave_one_whole_folder(tmp_path):
    folder = tmp_path / 'net.tag'
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: fill(folder, str(i)), range(40)))
    assert len(content(folder)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ['net.tag']


def test_a_link_to_a_folder_is_not_emptied(tmp_path):
    (tmp_path / 'precious').mkdir()
    (tmp_path / 'precious' / 'a').write_text('mine')
    (tmp_path / '.net.tag.0123.new').symlink_to('precious')
    fill(tmp_path / 'net.tag', 'new')
    assert (tmp_path / 'precious' / 'a').read_text() == 'mine'


def test_links_beside_the_weights_stay_links(tmp_path):
    model = create_model('bvtam_tiny_8x2', num_classes=2)
    folder = save_pretrained(model, tmp_path / 'model')
    (folder / 'zero').symlink_to('/dev/zero')
    (folder / 'private').touch()
    (folder / 'private').chmod(0o600)
    save_pretrained(model, folder, keep=True)
    assert os.readlink(folder / 'zero') == '/dev/zero'
    assert mode(folder / 'private') == '0o600'


def test_regular_files_are_read_also_through_links(tmp_path):
    (tmp_path / 'a').write_bytes(b'content')
    (tmp_path / 'b').symlink_to('a')
    assert read_regular(tmp_path / 'b') == b'content'
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / 'c')


@pytest.mark.timeout(20)
def test_what_might_never_end_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    os.mkfifo('pipe')
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind('socket')
        os.symlink('pipe', 'link')
        kinds = {'pipe': 'pipe', 'link': 'pipe', 'socket': 'socket', '/dev/zero': 'device'}
        for name, kind in (kinds | {'.': 'folder'}).items():
            with pytest.raises(BvtamError, match=f'^{name} is a {kind}; '):
                read_regular(name)
