"""A Hugging Face Hub and a file server on 127.0.0.1, with faults on demand.

    with LocalHub() as hub:
        hub.add_user('alice', 'hf_alice')
        hub.patch(monkeypatch)                       # this process talks to it, with an empty cache
        HfApi().create_repo('alice/net')             # the real client, unmodified
        hub.files['/weights/net.pth'] = b'...'       # a plain file at hub.url + '/weights/net.pth'
        hub.cut('net.pth', share=0.5)                # its next transfer stops half way
        assert len(hub.seen('net.pth', 'GET')) == 1

Spoken: whoami, repositories (public, private, gated), branches, tags, pull requests, preupload, Git
LFS (basic transfer), commits, trees, resolve; for models only. Xet is not offered: `environment()`
turns it off in the client, which would otherwise upload large files through it unasked.
"""

import base64
import contextlib
import hashlib
import importlib
import json
import math
import mimetypes
import os
import pkgutil
import re
import runpy
import socket
import struct
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from email.message import Message
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, unquote, urlsplit

if TYPE_CHECKING:
    import pytest

LFS_SUFFIXES = ('bin', 'ckpt', 'h5', 'npy', 'npz', 'onnx', 'pkl', 'pt', 'pth', 'safetensors', 'zip')
LFS_SIZE = 10 * 2**20  # larger files go through LFS whatever their name


class HubError(Exception):
    """A refusal as the Hub words it: `code` and `message` travel in headers, as HEAD has no body."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        self.status = status
        self.headers = {'X-Error-Message': message} | headers
        if code:
            self.headers['X-Error-Code'] = code


@dataclass
class Request:
    """A line of the log: what was asked, on which server, what came of it."""

    method: str
    path: str  # decoded, without the query
    server: str  # 'hub', or 'cdn' where LFS objects live
    range: str | None
    headers: Message = field(repr=False)
    query: dict[str, list[str]] = field(repr=False)
    parts: list[str] = field(repr=False)
    body: bytes = field(default=b'', repr=False)
    status: int = 0  # 0: the connection was dropped before an answer
    sent: int = 0  # bytes of the answer's body


@dataclass
class Reply:
    status: int = 200
    body: bytes | memoryview = b''
    headers: dict[str, str] = field(default_factory=dict)
    cut: tuple[float, bool] | None = None  # share of the body, reset
    rate: float | None = None  # bytes per second
    length: bool = True  # say Content-Length


def as_json(payload: object, status: int = 200, **headers: str) -> Reply:
    return Reply(
        status, json.dumps(payload).encode(), {'Content-Type': 'application/json', **headers}
    )


@dataclass(eq=False)
class Blob:
    """Contents of one file; `sha256` is given for LFS objects only."""

    data: bytes
    sha256: str | None = None

    @cached_property
    def pointer(self) -> bytes:
        text = 'version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n'
        return text.format(self.sha256, len(self.data)).encode()

    @cached_property
    def oid(self) -> str:
        content = self.pointer if self.sha256 else self.data
        return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()

    def entry(self, path: str) -> dict:
        entry = {'type': 'file', 'path': path, 'size': len(self.data), 'oid': self.oid}
        if self.sha256:
            size = {'size': len(self.data), 'pointerSize': len(self.pointer)}
            entry['lfs'] = {'oid': self.sha256} | size
        return entry


@dataclass
class User:
    name: str
    write: bool = True  # the role of the token
    orgs: tuple[str, ...] = ()


@dataclass(eq=False)
class Repo:
    id: str
    private: bool = False
    gated: bool = False
    allowed: set[str] = field(default_factory=set)  # who was granted access to a gated repository
    refs: dict[str, str] = field(default_factory=dict)  # branches, tags, refs/pr/N -> commit
    tags: set[str] = field(default_factory=set)
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)  # oldest first

    def commit(self, files: dict[str, Blob | bytes | None], revision: str = 'main') -> str:
        """A commit on top of `revision`; None deletes a file. Contents go as is: no path is checked."""
        tree = dict(self.commits.get(self.refs.get(revision, ''), {}))
        for path, data in files.items():
            if isinstance(data, bytes):
                lfs = path.rpartition('.')[2] in LFS_SUFFIXES or len(data) > LFS_SIZE
                data = Blob(data, hashlib.sha256(data).hexdigest() if lfs else None)
            tree[path] = data
        tree = {path: blob for path, blob in sorted(tree.items()) if blob is not None}
        content = [self.id, len(self.commits), *((path, blob.oid) for path, blob in tree.items())]
        oid = hashlib.sha1(repr(content).encode()).hexdigest()
        self.commits[oid] = tree
        self.refs[revision] = oid
        return oid

    def resolve(self, revision: str) -> str:
        hits = [c for c in self.commits if len(revision) >= 7 and c.startswith(revision)]
        if revision not in self.refs and not hits:
            raise HubError(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        return self.refs.get(revision) or hits[0]


@dataclass
class Fault:
    kind: str  # fail, cut, slow, flip, no_range, no_length
    part: str  # of the path
    value: object
    times: float
    method: str | None


class LocalHub:
    """State of the Hub, its answers, and the faults. Everything may be read and set by a test."""

    def __init__(self):
        self.users: dict[str, User] = {}  # by token
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}  # by sha256
        self.files: dict[str, bytes | str] = {}  # by path; a str is a redirect to that address
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.errors: list[BaseException] = []  # of this server; leaving the `with` raises them
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.connections: set[socket.socket] = set()
        self.patched = False

    def __enter__(self) -> 'LocalHub':
        self.folder = tempfile.TemporaryDirectory(prefix='local_hub_')
        # Two ports are two origins: the client must drop its token on the way to the second.
        self.servers = [_Server(self, 'hub'), _Server(self, 'cdn')]
        self.url, self.cdn = (f'http://127.0.0.1:{s.server_port}' for s in self.servers)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.closing.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()
        for connection in list(self.connections):  # else threads answer kept-alive clients
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        if self.patched:
            importlib.import_module('huggingface_hub').close_session()
        self.folder.cleanup()
        if self.errors and kind is None:
            raise self.errors[0]

    # -- what a test sets up and looks at

    def add_user(self, name: str, token: str, write: bool = True, orgs: tuple[str, ...] = ()):
        self.users[token] = User(name, write, orgs)

    def add_repo(self, repo_id: str, files: dict[str, bytes] | None = None, **options) -> Repo:
        """A repository that is simply there; options: private, gated, allowed."""
        repo = self.repos[repo_id] = Repo(repo_id, **options)
        rules = ''.join(f'*.{s} filter=lfs diff=lfs merge=lfs -text\n' for s in LFS_SUFFIXES)
        repo.commit({'.gitattributes': rules.encode()})
        if files:
            repo.commit(files)
        return repo

    def cut(self, part: str, share: float = 0.5, times: float = 1, reset=False, method='GET'):
        """Answers (or with method='PUT', uploads) end after a share of their bytes; `reset`: with
        a TCP reset, which clients report in another way than an early end."""
        self.faults.append(Fault('cut', part, (share, reset), times, method))

    def slow(self, part: str, bytes_per_second: float, times: float = math.inf):
        self.faults.append(Fault('slow', part, bytes_per_second, times, 'GET'))

    def fail(self, part: str, status: int = 503, times: float = 1, method: str | None = None):
        self.faults.append(Fault('fail', part, status, times, method))

    def flip(self, part: str, times: float = math.inf):
        """One byte in the middle of the file is sent wrong; its ETag stays."""
        self.faults.append(Fault('flip', part, True, times, 'GET'))

    def without_range(self, part: str):
        self.faults.append(Fault('no_range', part, True, math.inf, None))

    def without_length(self, part: str):
        """No Content-Length, the end of the connection is the end of the file."""
        self.faults.append(Fault('no_length', part, True, math.inf, None))

    def seen(self, part: str, method: str | None = None) -> list[Request]:
        return [r for r in self.requests if part in r.path and method in (None, r.method)]

    def environment(self, token: str | None = None) -> dict[str, str]:
        """Variables that lead any Hub client here, with an empty cache of its own on every call.

        token: whose to use; '' for none; the first user's by default.
        """
        home = tempfile.mkdtemp(dir=self.folder.name)
        token = next(iter(self.users), '') if token is None else token
        return {
            'HF_ENDPOINT': self.url,
            'HF_HOME': home,
            **dict.fromkeys(('HF_HUB_CACHE', 'HUGGINGFACE_HUB_CACHE'), f'{home}/hub'),
            **dict.fromkeys(('HF_ASSETS_CACHE', 'HUGGINGFACE_ASSETS_CACHE'), f'{home}/assets'),
            'HF_XET_CACHE': f'{home}/xet',
            'HF_TOKEN_PATH': f'{home}/token',
            **dict.fromkeys(('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN'), token),
            **dict.fromkeys(('HF_HUB_DISABLE_XET', 'HF_HUB_DISABLE_TELEMETRY'), '1'),
            **dict.fromkeys(('HF_HUB_OFFLINE', 'HF_HUB_DISABLE_IMPLICIT_TOKEN'), '0'),
            **dict.fromkeys(('HUGGINGFACE_CO_STAGING', 'HF_OIDC_RESOURCE'), ''),
            **dict.fromkeys(('NO_PROXY', 'no_proxy'), '127.0.0.1'),
        }

    def patch(self, monkeypatch: 'pytest.MonkeyPatch', token: str | None = None) -> dict[str, str]:
        """Leads the client of this process here, however it was imported; returns the environment.

        The client reads its environment once, into constants that some of its modules copy, and
        keeps one HfApi behind its functions: all of them get the values they would have had.
        """
        from huggingface_hub import close_session, constants, hf_api, utils

        for module in pkgutil.iter_modules(utils.__path__):
            # Imported later, they would copy the constants of this test for all that follow.
            importlib.import_module(f'{utils.__name__}.{module.name}')
        environment = self.environment(token)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        modules = [m for n, m in sys.modules.items() if n.split('.')[0] == 'huggingface_hub' and m]
        for name, value in runpy.run_path(constants.__file__).items():
            old = vars(constants).get(name)
            if name.startswith('__') or callable(value) or value == old:
                continue
            for module in modules:
                if name in vars(module) and vars(module)[name] == old:
                    monkeypatch.setattr(module, name, value)
        monkeypatch.setattr(hf_api.api, 'endpoint', self.url)
        close_session()  # the shared connections know the proxies of the old environment
        self.patched = True
        return environment

    # -- what the servers ask

    def take(self, kind: str, request: Request):
        """The value of the first fault that applies to a request, used up by one."""
        with self.lock:
            for f in self.faults:
                hit = f.kind == kind and f.part in request.path and f.times > 0
                if hit and f.method in (None, request.method):
                    f.times -= 1
                    return f.value
        return None

    def answer(self, request: Request) -> Reply:
        with self.lock:
            if request.server == 'cdn':
                return self._storage(request)
            content = self.files.get(request.path)
            if isinstance(content, str):
                return Reply(302, headers={'Location': content})
            if content is not None and request.method in ('GET', 'HEAD'):
                return self._file(request, content, hashlib.sha1(content).hexdigest())
            return self._hub(request)

    def _file(self, request: Request, data: bytes, etag: str, **headers: str) -> Reply:
        etag = f'"{etag}"'
        kind = mimetypes.guess_type(request.path)[0] or 'application/octet-stream'
        reply = Reply(headers={'ETag': etag, 'Content-Type': kind, **headers})
        reply.length = not self.take('no_length', request)
        ranges = not self.take('no_range', request)
        if ranges:
            reply.headers['Accept-Ranges'] = 'bytes'
        if request.method == 'GET':
            if data and self.take('flip', request):
                middle = len(data) // 2
                data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
            reply.cut = self.take('cut', request)
            reply.rate = self.take('slow', request)
        reply.body = memoryview(data)
        asked = re.fullmatch(r'bytes=(\d*)-(\d*)', request.range or '')
        unchanged = request.headers.get('If-Range', etag) == etag
        if ranges and request.method == 'GET' and asked and any(asked.groups()) and unchanged:
            first, last = asked.groups()
            start = int(first) if first else max(0, len(data) - int(last))
            stop = min(int(last) + 1 if first and last else len(data), len(data))
            if start >= stop:
                whole = {'Content-Range': f'bytes */{len(data)}'}
                raise HubError(416, 'Range Not Satisfiable', **whole)
            reply.status, reply.body = 206, reply.body[start:stop]
            reply.headers['Content-Range'] = f'bytes {start}-{stop - 1}/{len(data)}'
        return reply

    def _storage(self, request: Request) -> Reply:
        """/{owner}/{name}/{sha256}/{file}; the address itself is the permission."""
        if 'Authorization' in request.headers:  # as signed addresses of object stores answer
            raise HubError(400, 'Only one auth mechanism allowed')
        oid = request.parts[2]
        if request.method == 'PUT':
            self.lfs[hashlib.sha256(request.body).hexdigest()] = request.body
            return Reply()
        if oid not in self.lfs:
            raise HubError(404, 'NoSuchKey')
        return self._file(request, self.lfs[oid], oid)

    def _hub(self, request: Request) -> Reply:
        token = request.headers.get('Authorization', '').removeprefix('Bearer ')
        if token and token not in self.users:  # even where none is needed
            raise HubError(401, 'Invalid credentials in Authorization header')
        user = self.users.get(token)
        match [request.method, *request.parts]:
            case ['GET', 'api', 'whoami-v2'] if user:
                role = {'displayName': 'test', 'role': 'write' if user.write else 'read'}
                auth = {'type': 'access_token', 'accessToken': role}
                orgs = [{'type': 'org', 'name': name} for name in user.orgs]
                return as_json({'type': 'user', 'name': user.name, 'orgs': orgs, 'auth': auth})
            case ['POST', 'api', 'repos', 'create'] if user:
                return self._create(json.loads(request.body), user)
            case ['GET', 'api', 'whoami-v2'] | ['POST', 'api', 'repos', 'create']:
                raise HubError(401, 'Invalid username or password.')
            case ['POST', 'api', 'validate-yaml']:
                return as_json({'warnings': [], 'errors': []})
            case ['GET' | 'POST' | 'DELETE', 'api', 'models', owner, name, *rest]:
                return self._model(request, self._readable(f'{owner}/{name}', user), user, rest)
            case ['GET' | 'HEAD', owner, name, 'resolve', revision, *path] if path:
                repo = self._readable(f'{owner}/{name}', user)
                return self._resolve(request, repo, user, revision, '/'.join(path))
            case ['POST', owner, name, 'info', 'lfs', 'objects', *action]:
                repo = self._readable(f'{owner}/{name.removesuffix(".git")}', user)
                return self._lfs(json.loads(request.body), repo, user, action == ['verify'])
        raise HubError(404, 'Sorry, we can not find the page you are looking for.')

    def _is_member(self, repo_id: str, user: User | None) -> bool:
        return user is not None and repo_id.split('/')[0] in (user.name, *user.orgs)

    def _readable(self, repo_id: str, user: User | None) -> Repo:
        repo = self.repos.get(repo_id)
        if repo is None or (repo.private and not self._is_member(repo_id, user)):
            # Nobody learns whether a private repository exists. The code matters: the client
            # guesses it from a bare 401, but only for https addresses.
            if user is None:
                raise HubError(401, 'Invalid username or password.', 'RepoNotFound')
            raise HubError(404, 'Repository not found', 'RepoNotFound')
        return repo

    def _check_write(self, repo: Repo, user: User | None, pull_request: bool) -> None:
        if user is None:
            raise HubError(401, 'Invalid username or password.', 'RepoNotFound')
        if not pull_request and not (self._is_member(repo.id, user) and user.write):
            hint = 'pass `create_pr=1` as a query parameter to create a Pull Request'
            raise HubError(403, f'Forbidden: {hint}')

    def _create(self, payload: dict, user: User) -> Reply:
        repo_id = f'{payload.get("organization") or user.name}/{payload["name"]}'
        url = {'url': f'{self.url}/{repo_id}', 'name': repo_id}
        if not (self._is_member(repo_id, user) and user.write):
            space = json.dumps(repo_id.split('/')[0])
            raise HubError(
                403, f"You don't have the rights to create a model under the namespace {space}"
            )
        if repo_id in self.repos:  # `exist_ok` reads the address from the refusal
            return as_json({'error': 'You already created this model repo', **url}, 409)
        private = payload.get('visibility') == 'private' or payload.get('private', False)
        self.add_repo(repo_id, private=private)
        return as_json(url)

    def _model(self, request: Request, repo: Repo, user: User | None, rest: list[str]) -> Reply:
        as_pull_request = 'create_pr' in request.query
        if request.method != 'GET':
            self._check_write(repo, user, as_pull_request)
        match [request.method, *rest]:
            case ['GET'] | ['GET', 'revision', _]:
                sha = repo.resolve(rest[1] if rest else 'main')
                info = {'id': repo.id, 'modelId': repo.id, 'sha': sha, 'private': repo.private}
                siblings = [{'rfilename': path} for path in repo.commits[sha]]
                gated = 'manual' if repo.gated else False
                return as_json(info | {'gated': gated, 'siblings': siblings, 'tags': []})
            case ['GET', 'tree', revision, *folder]:
                recursive = request.query.get('recursive') == ['true']
                return self._tree(repo, revision, '/'.join(folder), recursive)
            case ['GET', 'refs']:
                refs = [
                    {'name': n, 'ref': n if '/' in n else f'refs/heads/{n}', 'targetCommit': c}
                    for n, c in repo.refs.items()
                ]
                tags = [r for r in refs if r['name'] in repo.tags]
                pulls = [r for r in refs if r['name'].startswith('refs/pr/')]
                branches = [r for r in refs if r not in tags and r not in pulls]
                kinds = {'branches': branches, 'tags': tags, 'pullRequests': pulls}
                return as_json(kinds | {'converts': []})
            case ['GET', 'auth-check', *write]:
                if write:
                    self._check_write(repo, user, False)
                self._check_gate(repo, user)
                return as_json({})
            case ['POST', 'branch', name] | ['POST', 'tag', name]:
                payload = json.loads(request.body)
                start = payload.get('startingPoint', 'main')
                if rest[0] == 'tag':
                    start, name = name, payload['tag']
                    repo.tags.add(name)
                if name in repo.refs:
                    raise HubError(409, f'Reference already exists: {name}')
                repo.refs[name] = repo.resolve(start)
                return as_json({})
            case ['POST', 'preupload', revision]:
                tree = repo.commits[repo.resolve(revision)]
                files = []
                for f in json.loads(request.body)['files']:
                    known = tree.get(f['path'])
                    lfs = f['path'].rpartition('.')[2] in LFS_SUFFIXES or f['size'] > LFS_SIZE
                    oid = {'oid': known.sha256 or known.oid} if known else {}
                    mode = {'uploadMode': 'lfs' if lfs else 'regular', 'shouldIgnore': False}
                    files.append({'path': f['path'], **mode, **oid})
                return as_json({'files': files})
            case ['POST', 'commit', revision]:
                return self._commit(request.body, repo, revision, as_pull_request)
        raise HubError(404, 'Not Found')

    def _tree(self, repo: Repo, revision: str, folder: str, recursive: bool) -> Reply:
        sha = repo.resolve(revision)
        prefix = f'{folder}/' if folder else ''
        entries = {}
        for path, blob in repo.commits[sha].items():
            if not path.startswith(prefix):
                continue
            *parents, _ = path.removeprefix(prefix).split('/')
            for depth in range(1, len(parents) + 1 if recursive else min(2, len(parents) + 1)):
                name = prefix + '/'.join(parents[:depth])
                oid = hashlib.sha1(f'{sha} {name}'.encode()).hexdigest()
                entries[name] = {'type': 'directory', 'path': name, 'size': 0, 'oid': oid}
            if recursive or not parents:
                entries[path] = blob.entry(path)
        if folder and not entries:
            raise HubError(404, f'{folder} does not exist on "{revision}"', 'EntryNotFound')
        return as_json(list(entries.values()))

    def _commit(self, body: bytes, repo: Repo, revision: str, as_pull_request: bool) -> Reply:
        parent = repo.resolve(revision)
        header, *operations = [json.loads(line) for line in body.splitlines()]
        if header['value'].get('parentCommit', parent) != parent:
            raise HubError(412, 'A commit has happened since. Please refresh and try again.')
        files: dict[str, Blob | bytes | None] = {}
        for operation in operations:
            value = operation['value']
            path = value['path']
            match operation['key']:
                case 'file':
                    files[path] = Blob(base64.b64decode(value['content']))
                case 'lfsFile' if value['oid'] in self.lfs:
                    files[path] = Blob(self.lfs[value['oid']], value['oid'])
                case 'lfsFile':
                    raise HubError(400, f'LFS pointer to a file that was not uploaded: {path}')
                case 'deletedFile' | 'deletedFolder' as key:
                    inside = path.rstrip('/') + '/'
                    tree = repo.commits[parent]
                    gone = {p for p in tree if p.startswith(inside)} if 'Folder' in key else {path}
                    if not gone or not gone <= set(tree):
                        raise HubError(404, "A file with this name doesn't exist", 'EntryNotFound')
                    files |= dict.fromkeys(gone)
        extra = {}
        if as_pull_request:
            number = 1 + sum(name.startswith('refs/pr/') for name in repo.refs)
            revision = f'refs/pr/{number}'
            repo.refs[revision] = parent
            extra = {'pullRequestUrl': f'{self.url}/{repo.id}/discussions/{number}'}
        elif revision not in repo.refs or revision in repo.tags:
            raise HubError(400, f'Not a branch: {revision}')
        oid = repo.commit(files, revision)
        url = f'{self.url}/{repo.id}/commit/{oid}'
        return as_json({'success': True, 'commitOid': oid, 'commitUrl': url, **extra})

    def _lfs(self, payload: dict, repo: Repo, user: User | None, verify: bool) -> Reply:
        if verify:
            if len(self.lfs.get(payload['oid'], b'')) != payload['size']:
                raise HubError(400, 'Uploaded content does not match its hash')
            return as_json({})
        # Without a ref the objects are for a pull request, which every user may open.
        self._check_write(repo, user, 'ref' not in payload)
        objects = []
        for item in payload['objects']:
            item = {'oid': item['oid'], 'size': item['size']}
            if item['oid'] not in self.lfs:
                verify_at = f'{self.url}/{repo.id}.git/info/lfs/objects/verify'
                upload_at = f'{self.cdn}/{repo.id}/{item["oid"]}/upload'
                item['actions'] = {'upload': {'href': upload_at}, 'verify': {'href': verify_at}}
            objects.append(item)
        return as_json({'transfer': 'basic', 'objects': objects})

    def _check_gate(self, repo: Repo, user: User | None) -> None:
        if not repo.gated or self._is_member(repo.id, user) or (user and user.name in repo.allowed):
            return
        reason = f'Access to model {repo.id} is restricted'
        if user is None:
            raise HubError(401, f'{reason}. Please log in.', 'GatedRepo')
        where = f'Visit {self.url}/{repo.id} to ask for access.'
        raise HubError(403, f'{reason} and you are not in the authorized list. {where}', 'GatedRepo')

    def _resolve(
        self, request: Request, repo: Repo, user: User | None, revision: str, path: str
    ) -> Reply:
        self._check_gate(repo, user)
        sha = repo.resolve(revision)
        commit = {'X-Repo-Commit': sha}
        blob = repo.commits[sha].get(path)
        if blob is None:
            raise HubError(404, 'Entry not found', 'EntryNotFound', **commit)
        if blob.sha256 is None:
            return self._file(request, blob.data, blob.oid, **commit)
        self.lfs.setdefault(blob.sha256, blob.data)  # committed by the test itself
        where = f'{self.cdn}/{repo.id}/{blob.sha256}/{quote(path)}'
        linked = {'X-Linked-Etag': f'"{blob.sha256}"', 'X-Linked-Size': str(len(blob.data))}
        return Reply(302, headers={'Location': where, **linked, **commit})


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # several processes may start at once

    def __init__(self, hub: LocalHub, name: str):
        super().__init__(('127.0.0.1', 0), _Handler)
        self.hub, self.name = hub, name
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, request, client_address) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):  # clients that leave early are no fault of ours
            self.hub.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True  # headers and body are two writes: 40 ms each otherwise
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.server.hub.connections.discard(self.connection)
        super().finish()

    def log_message(self, format, *args) -> None:
        pass

    def do_GET(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        parts = [unquote(part) for part in url.path.split('/')[1:]]
        request = Request(
            self.command, unquote(url.path), self.server.name, self.headers.get('Range'),
            self.headers, parse_qs(url.query), parts,
        )  # fmt: skip
        hub.requests.append(request)
        length = int(self.headers.get('Content-Length') or 0)
        cut = hub.take('cut', request) if length else None
        request.body = self.rfile.read(length if cut is None else int(cut[0] * length))
        if cut is not None:
            return self._hang_up(cut[1])
        try:
            status = hub.take('fail', request)
            if status:
                raise HubError(status, 'The server is out of order.')
            reply = hub.answer(request)
        except HubError as error:
            reply = as_json({'error': str(error)}, error.status, **error.headers)
        except Exception as error:
            hub.errors.append(error)
            reply = as_json({'error': repr(error)}, 500)
        self._send(request, reply)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _send(self, request: Request, reply: Reply) -> None:
        request.status = reply.status
        self.send_response(reply.status)
        if reply.length:
            self.send_header('Content-Length', str(len(reply.body)))
        else:
            self.send_header('Connection', 'close')
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if request.method == 'HEAD':
            return
        end = len(reply.body) if reply.cut is None else int(len(reply.body) * reply.cut[0])
        step = max(1, int(reply.rate / 20)) if reply.rate else 2**18
        started = time.monotonic()
        for start in range(0, end, step):
            if self.server.hub.closing.is_set():
                break
            part = reply.body[start : min(start + step, end)]
            request.sent += len(part)  # first, so that who has the bytes finds them counted
            self.wfile.write(part)
            if reply.rate:
                due = started + request.sent / reply.rate
                self.server.hub.closing.wait(max(0, due - time.monotonic()))
        if reply.cut is not None:
            self._hang_up(reply.cut[1])

    def _hang_up(self, reset: bool) -> None:
        self.close_connection = True
        if reset:  # no lingering: closing discards what is unread and says so
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            os.close(self.connection.detach())
