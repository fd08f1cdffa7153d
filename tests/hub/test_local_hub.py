"""The real, unmodified client against the Hub of local_hub.py, and what that client does."""

import hashlib
import http.client
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file
from support.local_hub import LocalHub

MB = 10**6


@pytest.fixture
def hub(monkeypatch):
    with LocalHub() as hub:
        hub.add_user('alice', 'hf_alice')
        hub.add_user('alice', 'hf_alice_reads', write=False)
        hub.add_user('bob', 'hf_bob')
        hub.patch(monkeypatch)
        yield hub


def fetch(url, method='GET', **headers):
    """Status, headers and body by the standard library's client."""
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


# -- the client, in this process and in others


def test_create(hub):
    api = HfApi()
    assert api.whoami()['name'] == 'alice'
    assert api.whoami(token='hf_bob')['name'] == 'bob'
    assert api.create_repo('net').repo_id == 'alice/net'
    assert api.list_repo_files('alice/net') == ['.gitattributes']
    with pytest.raises(HfHubHTTPError, match='already created') as error:
        api.create_repo('alice/net')
    assert error.value.response.status_code == 409
    assert api.create_repo('alice/net', exist_ok=True).repo_id == 'alice/net'
    assert not api.repo_info('alice/net').private
    api.create_repo('alice/secret', private=True)
    assert hub.repos['alice/secret'].private and api.repo_info('alice/secret').private


SCRIPT = """
import huggingface_hub
from huggingface_hub import constants, hf_hub_download, list_repo_files
if {patch!r}:
    import sys; sys.path.insert(0, {tests!r})
    import pytest
    from support.local_hub import LocalHub
    assert constants.HF_HUB_OFFLINE
    huggingface_hub.utils.get_session()  # knows the proxy
    with LocalHub() as hub, pytest.MonkeyPatch.context() as monkeypatch:
        hub.add_repo('alice/net', {{'config.json': b'{{}}'}})
        hub.patch(monkeypatch)
        huggingface_hub.repo_info('alice/net')  # never tried twice
        print(open(hf_hub_download('alice/net', 'config.json')).read())
        assert len(hub.requests) == 3
    assert constants.HF_HUB_OFFLINE
else:
    print(open(hf_hub_download('alice/net', 'config.json')).read())
"""


@pytest.mark.parametrize('patch', [True, False])
def test_other_processes(hub, patch):
    """By environment alone; and by patching a client that was imported offline."""
    hub.add_repo('alice/net', {'config.json': b'{}'})
    env = os.environ | (hub.environment() | {'HTTP_PROXY': 'http://127.0.0.1:9'})
    if patch:
        env |= {'HF_HUB_OFFLINE': '1', 'HF_ENDPOINT': 'http://127.0.0.1:9'}
        env |= {'NO_PROXY': '', 'no_proxy': ''}
    script = SCRIPT.format(patch=patch, tests=str(Path(__file__).parents[1]))
    run = subprocess.run([sys.executable, '-c', script], env=env, capture_output=True, text=True)
    assert run.stdout == '{}\n', run.stderr
    assert len(hub.seen('config.json', 'GET')) == (not patch)


def test_patch_leaves_nothing_behind():
    from huggingface_hub import hf_api

    def state():
        modules = [m for n, m in sys.modules.items() if n.startswith('huggingface_hub')]
        values = {
            (m.__name__, n): v
            for m in modules
            for n, v in vars(m).items()
            if isinstance(v, str | bool | int | frozenset) and not n.startswith('__')
        }
        return values, dict(os.environ), hf_api.api.endpoint

    with LocalHub() as hub, pytest.MonkeyPatch.context() as monkeypatch:
        hub.patch(monkeypatch)  # once before: it imports modules
    before = state()
    with LocalHub() as hub:
        with pytest.MonkeyPatch.context() as monkeypatch:
            hub.patch(monkeypatch)
            hub.add_repo('alice/net', {'a.txt': b'a'})
            assert huggingface_hub.list_repo_files('alice/net') == ['.gitattributes', 'a.txt']
            path = Path(hf_hub_download('alice/net', 'a.txt'))
            snapshot_download('alice/net')
            copies = [k for k, v in state()[0].items() if before[0][k] != v]
            assert {m for m, n in copies if n == 'HF_HUB_CACHE'} > {'huggingface_hub.constants'}
        assert path.exists()
        assert state() == before
    assert not path.exists()


# -- upload


def test_upload_folder(hub, tmp_path):
    api = HfApi()
    tensors = {'weight': torch.randn(3, MB)}
    save_file(tensors, tmp_path / 'model.safetensors')
    (tmp_path / 'large.txt').write_bytes(b'x' * (11 * 2**20))
    (tmp_path / 'sub').mkdir()
    (tmp_path / 'sub' / 'config.json').write_text('{"a": 1}')
    (tmp_path / 'README.md').write_text('---\nlicense: mit\n---\n# Net\n')
    api.create_repo('alice/net')
    commit = api.upload_folder(repo_id='alice/net', folder_path=tmp_path)
    assert len(hub.seen('/upload', 'PUT')) == 2  # by size and by name
    assert len(hub.seen('/verify', 'POST')) == 2
    tree = {f.path: f for f in api.list_repo_tree('alice/net', recursive=True)}
    assert set(tree) == {
        '.gitattributes', 'README.md', 'large.txt', 'model.safetensors', 'sub/config.json',
    }  # fmt: skip
    weights = (tmp_path / 'model.safetensors').read_bytes()
    assert tree['model.safetensors'].lfs.sha256 == hashlib.sha256(weights).hexdigest()
    assert tree['model.safetensors'].size == len(weights)
    assert tree['sub/config.json'].lfs is None
    got = load_file(hf_hub_download('alice/net', 'model.safetensors'))
    assert torch.equal(got['weight'], tensors['weight'])
    info = api.repo_info('alice/net')
    assert info.sha == commit.oid and len(info.siblings) == 5

    again = api.upload_folder(repo_id='alice/net', folder_path=tmp_path)
    assert again.oid == commit.oid and len(hub.seen('/upload', 'PUT')) == 2
    api.upload_folder(repo_id='alice/net', folder_path=tmp_path / 'sub', delete_patterns='*.txt')
    assert 'large.txt' not in api.list_repo_files('alice/net')
    assert 'large.txt' in api.list_repo_files('alice/net', revision=commit.oid)


@pytest.fixture
def versions(hub):
    """One file in two commits on main, and others on a branch and in a pull request."""
    api = HfApi()
    api.create_repo('alice/net')
    put = {'repo_id': 'alice/net', 'path_in_repo': 'a.bin'}
    shas = {'first': api.upload_file(path_or_fileobj=b'first', **put).oid}
    api.create_branch('alice/net', branch='v2/rc')
    shas['main'] = api.upload_file(path_or_fileobj=b'main', **put).oid
    shas['v2/rc'] = api.upload_file(path_or_fileobj=b'v2/rc', revision='v2/rc', **put).oid
    pull = api.upload_file(path_or_fileobj=b'refs/pr/1', create_pr=True, **put)
    assert pull.pr_revision == 'refs/pr/1'
    return shas | {'refs/pr/1': pull.oid}


def test_revisions(hub, versions):
    assert len(set(versions.values())) == 4
    for name, sha in versions.items():
        for revision in (name, sha) if name != 'first' else (sha,):
            path = Path(hf_hub_download('alice/net', 'a.bin', revision=revision))
            assert path.read_text() == name and path.parent.name == sha
    with pytest.raises(HfHubHTTPError, match='409'):
        HfApi().create_branch('alice/net', branch='v2/rc')
    HfApi().create_branch('alice/net', branch='v2/rc', exist_ok=True)
    for start in 'v2/rc', versions['first']:
        HfApi().create_branch('alice/net', branch=f'from-{start[:2]}', revision=start)
        info = HfApi().repo_info('alice/net', revision=f'from-{start[:2]}')
        assert info.sha == versions.get(start, start)
    put = {'repo_id': 'alice/net', 'path_in_repo': 'a.bin', 'path_or_fileobj': b'first'}
    assert HfApi().upload_file(**put).oid not in versions.values()  # the same files, a new commit


def test_writing_needs_the_right(hub, versions):
    api = HfApi()
    put = {'repo_id': 'alice/net', 'path_in_repo': 'b.bin', 'path_or_fileobj': b'b'}
    commits = len(hub.repos['alice/net'].commits)
    for token, status in ('hf_bob', 403), ('hf_alice_reads', 403), (False, 401), ('bad', 401):
        with pytest.raises(HfHubHTTPError) as error:
            api.upload_file(token=token, **put)
        assert error.value.response.status_code == status
        with pytest.raises(HfHubHTTPError) as error:
            api.create_branch('alice/net', branch='b', token=token)
        assert error.value.response.status_code == status
    for name, token in ('bob/net', None), ('alice/other', 'hf_alice_reads'):
        with pytest.raises(HfHubHTTPError, match="You don't have the rights"):
            api.create_repo(name, token=token)
    assert len(hub.repos['alice/net'].commits) == commits and set(hub.repos) == {'alice/net'}
    assert not hub.seen('b.bin')
    # A pull request is open to everybody, its objects too.
    assert api.upload_file(token='hf_bob', create_pr=True, **put).pr_revision == 'refs/pr/2'


@pytest.mark.parametrize('reset', [False, True])
def test_cut_upload_is_sent_again(hub, reset):
    HfApi().create_repo('alice/net')
    hub.cut('/upload', method='PUT', reset=reset)
    data = os.urandom(12 * MB)
    HfApi().upload_file(repo_id='alice/net', path_in_repo='a.bin', path_or_fileobj=data)
    assert [r.status for r in hub.seen('/upload')] == [0, 200]
    assert hub.repos['alice/net'].commits[HfApi().repo_info('alice/net').sha]['a.bin'].data == data


def test_lost_upload_is_not_committed(hub):
    HfApi().create_repo('alice/net')
    hub.fail('/verify', status=400)
    with pytest.raises(RuntimeError, match=r"uploading 'a\.bin'"):
        HfApi().upload_file(repo_id='alice/net', path_in_repo='a.bin', path_or_fileobj=b'a')
    assert not hub.seen('/commit/')


# -- download


def test_second_download_is_a_head_request(hub):
    repo = hub.add_repo('alice/net', {'a.bin': b'a', 'b.json': b'b'})
    first = repo.refs['main']
    for name in 'a.bin', 'b.json':
        hf_hub_download('alice/net', name)
    assert [r.method for r in hub.requests] == ['HEAD', 'GET'] * 2
    hub.requests.clear()
    for name in 'a.bin', 'b.json':
        hf_hub_download('alice/net', name)
    assert [r.method for r in hub.requests] == ['HEAD'] * 2
    hf_hub_download('alice/net', 'a.bin', revision=first)
    assert len(hub.requests) == 2  # a commit never changes
    hub.requests.clear()
    repo.commit({'a.bin': b'new'})
    assert Path(hf_hub_download('alice/net', 'a.bin')).read_bytes() == b'new'
    assert Path(hf_hub_download('alice/net', 'b.json')).read_bytes() == b'b'
    assert [r.method for r in hub.requests] == ['HEAD', 'GET', 'HEAD']  # b.json's ETag stayed


def test_headers(hub):
    """As documented: git's hash or SHA-256, and the commit."""
    sha = hub.add_repo('alice/net', {'a.bin': b'a', 'b.json': b'b'}).refs['main']
    metadata = huggingface_hub.get_hf_file_metadata(f'{hub.url}/alice/net/resolve/main/a.bin')
    assert (metadata.etag, metadata.size) == (hashlib.sha256(b'a').hexdigest(), 1)
    assert metadata.commit_hash == sha and metadata.xet_file_data is None
    assert metadata.location.startswith(hub.cdn)
    status, headers, body = fetch(f'{hub.url}/alice/net/resolve/main/b.json')
    assert (status, body, headers['X-Repo-Commit']) == (200, b'b', sha)
    assert headers['ETag'] == f'"{hashlib.sha1(b"blob 1" + bytes(1) + b"b").hexdigest()}"'
    assert fetch(f'{hub.url}/alice/net/resolve/main/a.bin')[2] == b'a'  # redirected


def test_token_stays_with_the_hub(hub):
    hub.add_repo('alice/net', {'a.bin': b'a'}, private=True)
    hf_hub_download('alice/net', 'a.bin')
    servers = [(r.server, r.headers.get('Authorization')) for r in hub.requests]
    assert servers == [('hub', 'Bearer hf_alice'), ('cdn', None)]
    status, _, _ = fetch(hub.cdn + hub.requests[-1].path, Authorization='Bearer hf_alice')
    assert status == 400


@pytest.mark.parametrize(
    ('call', 'error', 'status'),
    [
        ({'repo_id': 'alice/none'}, RepositoryNotFoundError, 404),
        ({'repo_id': 'alice/none', 'token': False}, RepositoryNotFoundError, 401),
        ({'repo_id': 'alice/private', 'token': 'hf_bob'}, RepositoryNotFoundError, 404),
        ({'repo_id': 'alice/private', 'token': False}, RepositoryNotFoundError, 401),
        ({'repo_id': 'alice/gated', 'token': 'hf_bob'}, GatedRepoError, 403),
        ({'repo_id': 'alice/gated', 'token': False}, GatedRepoError, 401),
        ({'revision': 'none'}, RevisionNotFoundError, 404),
        ({'revision': '0' * 40}, RevisionNotFoundError, 404),
        ({'filename': 'none.json'}, RemoteEntryNotFoundError, 404),
        ({'token': 'hf_bad'}, HfHubHTTPError, 401),
        ({'repo_id': 'alice/private', 'token': 'hf_bad'}, HfHubHTTPError, 401),
    ],
)
def test_refusals(hub, call, error, status):
    for name in 'public', 'private', 'gated':
        options = {} if name == 'public' else {name: True}
        hub.add_repo(f'alice/{name}', {'a.json': b'a'}, **options)
    with pytest.raises(HfHubHTTPError) as raised:
        hf_hub_download(**{'repo_id': 'alice/public', 'filename': 'a.json'} | call)
    assert type(raised.value) is error
    assert raised.value.response.status_code == status
    if call.get('token') == 'hf_bad':
        assert 'Invalid credentials in Authorization header' in str(raised.value)


def test_access_is_granted(hub):
    hub.add_repo('alice/gated', {'a.json': b'a'}, gated=True, allowed={'bob'})
    hf_hub_download('alice/gated', 'a.json', token='hf_bob')
    assert HfApi().repo_info('alice/gated', token=False).gated == 'manual'
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download('alice/gated', 'none.json', token='hf_bob')
    known = huggingface_hub.try_to_load_from_cache('alice/gated', 'none.json')
    assert known is huggingface_hub._CACHED_NO_EXIST  # it needs the commit in the refusal
    with pytest.raises(HfHubHTTPError, match='Invalid user token'):
        HfApi().whoami(token='hf_bad')


def test_cached_files_outlive_the_right_to_them(hub):
    """The client falls back to its cache without a word."""
    repo = hub.add_repo('alice/net', {'a.json': b'a'})
    hf_hub_download('alice/net', 'a.json', token='hf_bob')
    repo.private = True
    for token in 'hf_bob', 'hf_bad', False:
        hf_hub_download('alice/net', 'a.json', token=token)
    assert [r.status for r in hub.seen('a.json', 'HEAD')] == [200, 404, 401, 401]
    with pytest.raises(ValueError, match='Force download failed'):
        hf_hub_download('alice/net', 'a.json', token='hf_bob', force_download=True)


def test_snapshot(hub, versions):
    HfApi().upload_file(repo_id='alice/net', path_in_repo='x/y.json', path_or_fileobj=b'y')
    folder = Path(snapshot_download('alice/net', ignore_patterns='.git*'))
    assert {p.relative_to(folder).as_posix() for p in folder.rglob('*.*')} == {'a.bin', 'x/y.json'}
    assert (folder / 'a.bin').read_text() == 'main'
    other = Path(snapshot_download('alice/net', revision='v2/rc', allow_patterns='a.*'))
    assert other.name == versions['v2/rc'] and (other / 'a.bin').read_text() == 'v2/rc'
    with pytest.raises(RevisionNotFoundError):
        snapshot_download('alice/net', revision='none')


def test_timm(hub):
    model = timm.create_model('test_resnet', num_classes=7).eval()
    timm.models.push_to_hf_hub(model, 'alice/net', model_config={'label_names': list('abcdefg')})
    assert not hub.repos['alice/net'].private
    again = timm.create_model('hf-hub:alice/net', pretrained=True).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), again(x))
    assert again.pretrained_cfg['label_names'] == list('abcdefg')
    with pytest.raises(RevisionNotFoundError):
        timm.create_model('hf-hub:alice/net@none', pretrained=True)


# -- faults, and what the client makes of them


def test_cut_download_resumes(hub):
    data = os.urandom(12 * 2**20)
    hub.add_repo('alice/net', {'a.bin': data})
    hub.cut('a.bin', share=0.9)
    assert Path(hf_hub_download('alice/net', 'a.bin')).read_bytes() == data
    first, second = hub.seen('a.bin', 'GET')
    # The client writes pieces of 10 MB; what it had of the next one is lost.
    assert (first.sent, second.range) == (int(0.9 * len(data)), 'bytes=10485760-')
    assert (second.status, second.sent) == (206, 2 * 2**20)


def test_cut_download_starts_again_below_10_mb(hub):
    hub.add_repo('alice/net', {'a.bin': bytes(MB)})
    hub.cut('a.bin')
    hf_hub_download('alice/net', 'a.bin')
    assert [(r.range, r.sent) for r in hub.seen('a.bin', 'GET')] == [(None, MB // 2), (None, MB)]


def test_reset_download_fails(hub):
    """The client retries after an early end, not after a reset; and keeps no partial file."""
    hub.add_repo('alice/net', {'a.bin': bytes(MB)})
    hub.cut('a.bin', reset=True)
    with pytest.raises(Exception, match='reset by peer'):
        hf_hub_download('alice/net', 'a.bin')
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    assert not list(cache.rglob('*.incomplete')) and not list(cache.rglob('a.bin'))
    assert Path(hf_hub_download('alice/net', 'a.bin')).stat().st_size == MB
    assert hub.seen('a.bin', 'GET')[-1].range is None


def test_out_of_order(hub):
    hub.add_repo('alice/net', {'a.bin': b'a'})
    hub.fail('a.bin', 503, method='HEAD')
    hf_hub_download('alice/net', 'a.bin')
    assert [r.status for r in hub.seen('a.bin')] == [503, 302, 200]
    hub.fail('a.bin', 503, method='GET')
    with pytest.raises(HfHubHTTPError, match='503'):  # at once: only HEAD is tried again
        hf_hub_download('alice/net', 'a.bin', force_download=True)
    hub.fail('a.bin', 500, times=2, method='HEAD')
    with pytest.raises(ValueError, match='Force download failed'):
        hf_hub_download('alice/net', 'a.bin', force_download=True)
    hf_hub_download('alice/net', 'a.bin')  # 500: the cached file will do
    assert not any(f.times for f in hub.faults)


def test_nobody_answers(hub, monkeypatch):
    hub.add_repo('alice/net', {'a.bin': b'a'})
    hf_hub_download('alice/net', 'a.bin')
    with LocalHub() as other:
        other.patch(monkeypatch)
    waits = []
    monkeypatch.setattr(time, 'sleep', waits.append)
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download('alice/net', 'a.bin')
    assert sum(waits) > 20  # seconds that a user waits for this line


def test_wrong_content_is_not_noticed(hub):
    """The client compares sizes, not hashes: who needs the right bytes must hash them."""
    hub.add_repo('alice/net', {'a.bin': bytes(100)})
    hub.fault('flip', 'a.bin')
    path = Path(hf_hub_download('alice/net', 'a.bin'))
    assert sum(path.read_bytes()) == 1
    assert path.resolve().name == hashlib.sha256(bytes(100)).hexdigest()


def test_slow(hub):
    hub.add_repo('alice/net', {'a.bin': bytes(50_000)})
    hub.slow('a.bin', 100_000)
    started = time.monotonic()
    hf_hub_download('alice/net', 'a.bin')
    assert time.monotonic() - started > 0.45


# -- plain files


def test_files(hub):
    hub.files |= {'/x/net.pth': b'0123456789', '/latest': f'{hub.url}/x/net.pth'}
    url = f'{hub.url}/x/net.pth'
    status, headers, body = fetch(f'{hub.url}/latest?download=1')
    assert (status, body, headers['Content-Length']) == (200, b'0123456789', '10')
    for asked, status, part in (
        ('bytes=3-5', 206, b'345'), ('bytes=7-', 206, b'789'), ('bytes=-2', 206, b'89'),
        ('bytes=8-99', 206, b'89'), ('bytes=0-1,4-5', 200, body),
    ):  # fmt: skip
        assert fetch(url, Range=asked)[::2] == (status, part)
    assert fetch(url, Range='bytes=3-5')[1]['Content-Range'] == 'bytes 3-5/10'
    assert fetch(url, 'HEAD', Range='bytes=3-5')[::2] == (200, b'')
    status, other, _ = fetch(url, Range='bytes=10-')
    assert (status, other['Content-Range']) == (416, 'bytes */10')
    assert fetch(url, Range='bytes=3-5', **{'If-Range': headers['ETag']})[0] == 206
    assert fetch(url, Range='bytes=3-5', **{'If-Range': '"old"'})[::2] == (200, body)
    assert fetch(f'{hub.url}/x/none.pth')[0] == 404
    hub.fault('no_range', 'net.pth')
    status, headers, body = fetch(url, Range='bytes=3-5')
    assert (status, body, headers['Accept-Ranges']) == (200, b'0123456789', None)
    hub.fault('no_length', 'net.pth')
    hub.cut('net.pth', times=2)
    assert fetch(url)[1]['Content-Length'] is None
    assert fetch(url)[2] == b'01234'  # an early end that nobody can tell
    hub.faults.clear()
    hub.cut('net.pth')
    with pytest.raises(http.client.IncompleteRead):
        fetch(url)
    assert [r.sent for r in hub.seen('net.pth')[-2:]] == [5, 5]


def test_leaving():
    """Errors of the server itself are raised, and nobody is served any more."""
    with pytest.raises(TypeError), LocalHub() as hub:
        hub.files |= {'/a': 3, '/b': b'b'}
        idle = http.client.HTTPConnection(urlsplit(hub.url).netloc)
        idle.request('GET', '/b')
        assert idle.getresponse().read() == b'b'
        assert fetch(f'{hub.url}/a')[0] == 500
    with pytest.raises(urllib.error.URLError):
        fetch(f'{hub.url}/b')
    idle.auto_open = False
    with pytest.raises((OSError, http.client.HTTPException)):
        idle.request('GET', '/b')
        idle.getresponse()
