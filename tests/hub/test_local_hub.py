"""The Hub of `support/local_hub.py` answers the real client as the tests of this package take for granted."""

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from support.local_hub import LocalHub


@pytest.fixture
def hub(monkeypatch):
    with LocalHub() as hub:
        hub.add_user('alice', 'hf_alice')
        hub.add_user('alice', 'hf_alice_reads', write=False)
        hub.add_user('bob', 'hf_bob')
        hub.patch(monkeypatch)
        yield hub


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
            assert huggingface_hub.list_repo_files('alice/model') == ['.gitattributes', 'a.txt']
            path = Path(hf_hub_download('alice/model', 'a.txt'))
        assert path.exists() and state() == before
    assert not path.exists()


def test_commits_branches_and_pull_requests(hub, tmp_path):
    api = HfApi()
    (tmp_path / 'config.json').write_text('{}')
    (tmp_path / 'model.safetensors').write_bytes(b'first')
    api.create_repo('alice/model', private=True)
    assert hub.repos['alice/model'].private
    api.upload_folder(repo_id='alice/model', folder_path=tmp_path)
    assert len(hub.seen('/upload', 'PUT')) == 1  # the weights by LFS, the config in the commit
    put = {'repo_id': 'alice/model', 'path_in_repo': 'model.safetensors'}
    first = api.repo_info('alice/model').sha
    api.create_branch('alice/model', branch='dev')
    shas = {name: api.upload_file(path_or_fileobj=name.encode(), revision=name, **put).oid
            for name in ('main', 'dev')}  # fmt: skip
    pull = api.upload_file(path_or_fileobj=b'refs/pr/1', create_pr=True, **put)
    for name, sha in (shas | {pull.pr_revision: pull.oid, 'first': first}).items():
        for revision in (name, sha) if name != 'first' else (sha,):
            path = Path(hf_hub_download('alice/model', 'model.safetensors', revision=revision))
            assert path.read_text() == name and path.parent.name == sha


def test_refusals(hub):
    api = HfApi()
    for name in 'public', 'private', 'gated':
        options = {} if name == 'public' else {name: True}
        hub.add_repo(f'alice/{name}', {'a.json': b'a'}, **options)
    for call, error, status in (
        ({'repo_id': 'alice/none'}, RepositoryNotFoundError, 404),
        ({'repo_id': 'alice/private', 'token': 'hf_bob'}, RepositoryNotFoundError, 404),
        ({'repo_id': 'alice/private', 'token': False}, RepositoryNotFoundError, 401),
        ({'repo_id': 'alice/gated', 'token': 'hf_bob'}, GatedRepoError, 403),
        ({'repo_id': 'alice/gated', 'token': False}, GatedRepoError, 401),
        ({'revision': 'none'}, RevisionNotFoundError, 404),
        ({'filename': 'none.json'}, RemoteEntryNotFoundError, 404),
        ({'token': 'hf_bad'}, HfHubHTTPError, 401),
    ):
        with pytest.raises(HfHubHTTPError) as raised:
            hf_hub_download(**{'repo_id': 'alice/public', 'filename': 'a.json'} | call)
        assert type(raised.value) is error and raised.value.response.status_code == status
    put = {'repo_id': 'alice/public', 'path_in_repo': 'b.bin', 'path_or_fileobj': b'b'}
    for token, status in ('hf_bob', 403), ('hf_alice_reads', 403), (False, 401), ('bad', 401):
        with pytest.raises(HfHubHTTPError) as raised:
            api.upload_file(token=token, **put)
        assert raised.value.response.status_code == status
    with pytest.raises(HfHubHTTPError, match="You don't have the rights"):
        api.create_repo('bob/model')
    assert api.upload_file(token='hf_bob', create_pr=True, **put).pr_revision == 'refs/pr/1'


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
    hub.cut('a.bin', reset=True)
    with pytest.raises(Exception, match='reset by peer'):
        hf_hub_download('alice/model', 'a.bin', force_download=True)
    hub.fault('flip', 'a.bin')  # the client compares sizes, not hashes
    path = Path(hf_hub_download('alice/model', 'a.bin', force_download=True))
    assert sum(a != b for a, b in zip(path.read_bytes(), data, strict=True)) == 1
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
