"""Regular files are read, and nothing else is waited for."""

import os
import socket

import pytest

from bvtam.errors import BvtamError
from bvtam.files import open_regular, read_regular


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
