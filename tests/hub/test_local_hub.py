"""The Hub of `support/local_hub.py` answers the real client as the tests of this package take for granted."""

import os
import sys
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import huggingface_hub
import pytest
from huggingface_hub import hf_hub_download
from support.local_hub import LocalHub


def test_patch_leaves_nothing_behind():
    def state():
        modules = [m for n, m in sys.modules.items() if n.startswith('huggingface_hub')]
        values = {
            (m.__name__, n): v
            for m in modules
            for n, v in vars(m).items()
            if isinstance(v, str | bool | int | frozenset) and not n.startswith('__')
        }
        return values, dict(os.environ), huggingface_hub.hf_api.api.endpoint

    with LocalHub() as hub, pytest.MonkeyPatch.context() as monkeypatch:
        hub.patch(monkeypatch)  # once before: it imports modules
    before = state()
    with LocalHub() as hub:
        with pytest.MonkeyPatch.context() as monkeypatch:
            hub.patch(monkeypatch)
            hub.add_repo('alice/model', {'a.txt': b'a'})
            path = Path(hf_hub_download('alice/model', 'a.txt'))
        assert path.exists() and state() == before
    assert not path.exists()


def test_errors_of_the_server_are_raised():
    with pytest.raises(TypeError), LocalHub() as hub:
        hub.files |= {'/a': 3, '/b': b'b'}
        with urlopen(f'{hub.url}/b', timeout=10) as response:
            assert response.read() == b'b'
        with pytest.raises(HTTPError, match='500'):
            urlopen(f'{hub.url}/a', timeout=10)
    with pytest.raises(URLError):
        urlopen(f'{hub.url}/b', timeout=10)
