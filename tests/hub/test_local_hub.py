"""The Hub of `support/local_hub.py` answers the real client as the tests of this package take for granted."""

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import hf_hub_download
from support.local_hub import LocalHub


def fetch(url, **headers):
    """Status, headers and body by the standard library's client."""
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


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


def test_faults(hub):
    data = bytes(range(100))
    hub.add_repo('alice/model', {'a.bin': data})
    hub.files['/x/a.pth'] = data
    url = f'{hub.url}/x/a.pth'
    assert fetch(url, Range='bytes=98-')[::2] == (206, data[98:])
    assert fetch(url, Range='bytes=100-')[0] == 416
    hub.cut('a.bin')
    assert Path(hf_hub_download('alice/model', 'a.bin')).read_bytes() == data
    assert [r.sent for r in hub.seen('a.bin', 'GET') if r.server == 'cdn'] == [50, 100]
    hub.fault('no_range', 'a.pth')
    assert fetch(url, Range='bytes=98-')[::2] == (200, data)
    hub.fail('a.pth', 503)
    assert fetch(url)[0] == 503 and fetch(url)[0] == 200


def test_errors_of_the_server_are_raised():
    with pytest.raises(TypeError), LocalHub() as hub:
        hub.files |= {'/a': 3, '/b': b'b'}
        assert fetch(f'{hub.url}/b')[2] == b'b' and fetch(f'{hub.url}/a')[0] == 500
    with pytest.raises(urllib.error.URLError):
        fetch(f'{hub.url}/b')
