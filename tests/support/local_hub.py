"""A Hugging Face Hub and a file server on 127.0.0.1, with faults on demand.

    with LocalHub() as hub:
        hub.add_user('alice', 'hf_alice')
        hub.patch(monkeypatch)                     # this process talks to it, with an empty cache
        HfApi().create_repo('alice/model')           # the real client, unmodified
        hub.files['/weights/model.pth'] = b'...'     # a plain file at hub.url + '/weights/model.pth'
        hub.cut('model.pth', share=0.5)              # its next transfer stops half way
        assert len(hub.seen('model.pth', 'GET')) == 1

Spoken: repositories (public, private, gated), branches, pull requests, preupload, Git LFS (basic
transfer), commits that add files, resolve; for models only, to a client with a token. Xet is not offered: `environment()`
turns it off in the client, which would otherwise upload large files through it unasked.
"""

import base64
import contextlib
import hashlib
import importlib
import json
import math
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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_SUFFIXES = ('bin', 'ckpt', 'h5', 'npy', 'npz', 'onnx', 'pkl', 'pt', 'pth', 'safetensors', 'zip')
LFS_SIZE = 10 * 2**20  # larger files go through LFS whatever their name
RANGE = re.compile(r'bytes=(\d+)-')  # as clients go on with a transfer


def is_lfs(path: str, size: int) -> bool:
    return path.rpartition('.')[2] in LFS_SUFFIXES or size > LFS_SIZE


class Blob:
    """One file's contents; `sha256` for LFS objects only, `oid` as git hashes (the whole file)."""

    def __init__(self, data: bytes, lfs: bool):
        self.data = data
        self.oid = hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()
        self.sha256 = hashlib.sha256(data).hexdigest() if lfs else None


@dataclass(eq=False)
class Repo:
    id: str
    private: bool = False
    gated: bool = False
    refs: dict[str, str] = field(default_factory=dict)  # branches and refs/pr/N -> commit
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)

    def commit(self, files: dict[str, Blob | bytes], revision: str = 'main') -> str:
        """A commit on top of `revision`; no path or content is checked."""
        tree = dict(self.commits.get(self.refs.get(revision, ''), {}))
        for path, data in files.items():
            tree[path] = Blob(data, is_lfs(path, len(data))) if isinstance(data, bytes) else data
        tree = dict(sorted(tree.items()))
        content = [self.id, len(self.commits), *((path, blob.oid) for path, blob in tree.items())]
        sha = self.refs[revision] = hashlib.sha1(repr(content).encode()).hexdigest()
        self.commits[sha] = tree
        return sha


@dataclass
class Request:
    """A line of the log: what was asked of which server, and what came of it."""

    method: str
    path: str  # decoded, without the query
    server: str  # 'hub', or 'cdn', where LFS objects live
    range: str | None
    headers: Message = field(repr=False)
    status: int = 0  # 0: hung up before an answer
    sent: int = 0  # bytes of the answer's body


@dataclass
class Fault:
    kind: str
    part: str
    value: Any
    times: float
    method: str | None


class LocalHub:
    """What the servers know, and the faults. A test may read and set all of it."""

    def __init__(self):
        self.users: dict[str, str] = {}  # token -> name
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}  # by sha256
        self.files: dict[str, bytes] = {}  # by path
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.errors: list[BaseException] = []  # of the servers; leaving the `with` raises them
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.connections: list[socket.socket] = []
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
        for connection in self.connections:  # or threads go on to answer idle clients
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        if self.patched:
            importlib.import_module('huggingface_hub').close_session()
        self.folder.cleanup()
        if self.errors and kind is None:
            raise self.errors[0]

    def add_user(self, name: str, token: str) -> None:
        self.users[token] = name

    def add_repo(self, repo_id: str, files: dict[str, bytes] | None = None, **options) -> Repo:
        """A repository without a client; options: private, gated."""
        repo = self.repos[repo_id] = Repo(repo_id, **options)
        rules = ''.join(f'*.{s} filter=lfs diff=lfs merge=lfs -text\n' for s in LFS_SUFFIXES)
        repo.commit({'.gitattributes': rules.encode()})
        if files:
            repo.commit(files)
        return repo

    def fault(self, kind: str, part: str, value: Any = True, times=math.inf, method=None) -> None:
        """Switches on `fail`, `cut`, `slow`, or without a value `flip` (a bit in the middle is
        wrong, size and ETag stay), `no_range`.

        part: of the decoded path; times: how many requests it hits; method: hits only these.
        """
        self.faults.append(Fault(kind, part, value, times, method))

    def fail(self, part: str, status: int = 503, times: float = 1, method: str | None = None):
        self.fault('fail', part, status, times, method)

    def slow(self, part: str, bytes_per_second: float, times: float = math.inf):
        self.fault('slow', part, bytes_per_second, times)

    def cut(self, part: str, share: float = 0.5, times: float = 1, reset=False, method='GET'):
        """Answers (uploads: method='PUT') end after a share of their bytes; `reset`: with a TCP
        reset, which clients report in another way than an early end."""
        self.fault('cut', part, (share, reset), times, method)

    def take(self, kind: str, request: Request) -> Any:
        """The value of the first fault that applies to a request, which uses it up by one."""
        with self.lock:
            for f in self.faults:
                matches = f.kind == kind and f.part in request.path and f.times > 0
                if matches and f.method in (None, request.method):
                    f.times -= 1
                    return f.value

    def seen(self, part: str, method: str | None = None) -> list[Request]:
        return [r for r in self.requests if part in r.path and method in (None, r.method)]

    def environment(self, token: str | None = None) -> dict[str, str]:
        """Variables that lead any client here, with an empty cache of its own on every call.

        token: whose to use; '' for none; the first user's by default.
        """
        home = tempfile.mkdtemp(dir=self.folder.name)
        token = next(iter(self.users), '') if token is None else token
        return {
            'HF_ENDPOINT': self.url,
            'HF_HOME': home,
            'HF_HUB_CACHE': f'{home}/hub',
            'HF_TOKEN_PATH': f'{home}/token',
            **dict.fromkeys(('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN'), token),
            **dict.fromkeys(('HF_HUB_DISABLE_XET', 'HF_HUB_DISABLE_TELEMETRY'), '1'),
            'HF_HUB_OFFLINE': '0',
            **dict.fromkeys(('NO_PROXY', 'no_proxy'), '127.0.0.1'),
        }

    def patch(self, monkeypatch, token: str | None = None) -> dict[str, str]:
        """Leads the client of this process here, however it was imported; returns the environment.

        The client reads its environment once, into constants that some of its modules copy, and
        keeps one HfApi behind its functions: all get the values a new process would give them.
        """
        from huggingface_hub import close_session, constants, hf_api, utils

        for module in pkgutil.iter_modules(utils.__path__):
            # Imported later, they would copy the constants of this test for all that follow.
            importlib.import_module(f'{utils.__name__}.{module.name}')
        modules = [m for n, m in sys.modules.items() if n.split('.')[0] == 'huggingface_hub' and m]
        environment = self.environment(token)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for name, value in runpy.run_path(constants.__file__).items():
            old = vars(constants).get(name)
            if not name.startswith('__') and not callable(value) and value != old:
                for module in modules:
                    if name in vars(module) and vars(module)[name] == old:
                        monkeypatch.setattr(module, name, value)
        monkeypatch.setattr(hf_api.api, 'endpoint', self.url)
        close_session()  # the shared connections know the proxies of the old environment
        self.patched = True
        return environment


def join(torch_home: str) -> None:
    """Another process, whatever environment it began with, shares this one's files and is online."""
    from huggingface_hub import constants

    os.environ['TORCH_HOME'] = torch_home
    constants.HF_HUB_OFFLINE = False


class Refusal(Exception):
    """`code` and `message` travel in headers, as the Hub sends them: HEAD has no body."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        code = {'X-Error-Code': code} if code else {}
        self.reply = as_json(
            {'error': message}, status, {'X-Error-Message': message, **code, **headers}
        )


Reply = tuple[int, bytes | memoryview, dict[str, str]]  # status, body, headers


def as_json(payload: object, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    kind = {'Content-Type': 'application/json'}
    return status, json.dumps(payload).encode(), kind | (headers or {})


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # several processes may start at once

    def __init__(self, hub: LocalHub, name: str):
        super().__init__(('127.0.0.1', 0), _Handler)
        self.hub, self.name = hub, name
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, request, client_address) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):  # clients may leave early
            self.hub.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True  # headers and body are two writes: 40 ms each otherwise

    def setup(self) -> None:
        super().setup()
        self.hub: LocalHub = self.server.hub
        self.hub.connections.append(self.connection)

    def log_message(self, format, *args) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.parts = [unquote(part) for part in url.path.split('/')[1:]]
        self.query = parse_qs(url.query)
        line = self.command, unquote(url.path), self.server.name, self.headers.get('Range')
        self.asked = Request(*line, self.headers)
        self.hub.requests.append(self.asked)
        self.cut = self.rate = None
        size = int(self.headers.get('Content-Length') or 0)
        cut = self.take('cut') if size else None
        self.body = self.rfile.read(int(size * cut[0]) if cut else size)
        if cut:
            return self.hang_up(cut[1])
        try:
            if status := self.take('fail'):
                raise Refusal(status, 'The server is out of order.')
            with self.hub.lock:
                reply = self.storage() if self.server.name == 'cdn' else self.answer()
        except Refusal as error:
            reply = error.reply
        except Exception as error:
            self.hub.errors.append(error)
            reply = as_json({'error': repr(error)}, 500)
        self.send(*reply)

    do_HEAD = do_POST = do_PUT = do_GET

    def take(self, kind: str) -> Any:
        return self.hub.take(kind, self.asked)

    def send(self, status: int, body: bytes | memoryview, headers: dict[str, str]) -> None:
        self.asked.status = status
        self.send_response(status)
        for header in (('Content-Length', str(len(body))), *headers.items()):
            self.send_header(*header)
        self.end_headers()
        if self.command == 'HEAD':
            return
        end = int(len(body) * self.cut[0]) if self.cut else len(body)
        step = max(1, int(self.rate / 20)) if self.rate else 2**18
        started = time.monotonic()
        for start in range(0, end, step):
            if self.hub.closing.is_set():
                break
            part = body[start : min(start + step, end)]
            self.asked.sent += len(part)  # first, so that who has the bytes finds them counted
            self.wfile.write(part)
            if self.rate:
                due = started + self.asked.sent / self.rate
                self.hub.closing.wait(max(0, due - time.monotonic()))
        if self.cut:
            self.hang_up(self.cut[1])

    def hang_up(self, reset: bool) -> None:
        self.close_connection = True
        if reset:  # closed without lingering, a connection discards what is unread and says so
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            os.close(self.connection.detach())

    def file(self, data: bytes, etag: str, **headers: str) -> Reply:
        ranges = not self.take('no_range')
        headers = {'ETag': f'"{etag}"', 'Content-Type': 'application/octet-stream', **headers}
        headers |= {'Accept-Ranges': 'bytes'} if ranges else {}
        if self.command == 'HEAD':
            return 200, data, headers
        if self.take('flip'):
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        self.cut, self.rate = self.take('cut'), self.take('slow')
        match = RANGE.fullmatch(self.asked.range or '')
        if not (ranges and match):
            return 200, memoryview(data), headers
        start = int(match[1])
        if start >= len(data):
            raise Refusal(416, 'No such range', **{'Content-Range': f'bytes */{len(data)}'})
        headers['Content-Range'] = f'bytes {start}-{len(data) - 1}/{len(data)}'
        return 206, memoryview(data)[start:], headers

    def storage(self) -> Reply:
        """/{owner}/{name}/{sha256}/{file}; the address itself is the permission."""
        if 'Authorization' in self.headers:  # refused by object stores beside a signed address
            raise Refusal(400, 'Only one auth mechanism allowed')
        if self.command == 'PUT':
            self.hub.lfs[hashlib.sha256(self.body).hexdigest()] = self.body
            return 200, b'', {}
        return self.file(self.hub.lfs[self.parts[2]], self.parts[2])

    def answer(self) -> Reply:
        content = self.hub.files.get(self.asked.path)
        if content is not None:
            return self.file(content, hashlib.sha1(content).hexdigest())
        token = self.headers.get('Authorization', '').removeprefix('Bearer ')
        if token and token not in self.hub.users:  # even where none is needed
            raise Refusal(401, 'Invalid credentials in Authorization header')
        self.user = self.hub.users.get(token)
        match [self.command, *self.parts]:
            case ['POST', 'api', 'repos', 'create']:
                return self.create(json.loads(self.body))
            case ['POST', 'api', 'validate-yaml']:
                return as_json({'warnings': [], 'errors': []})
            case ['GET', 'api', 'models', owner, name, *rest]:
                return self.model(self.repo(f'{owner}/{name}'), *rest)
            case ['POST', 'api', 'models', owner, name, action, revision]:
                repo = self.repo(f'{owner}/{name}')
                self.check_write(repo, 'create_pr' in self.query)
                return self.change(repo, action, revision)
            case ['GET' | 'HEAD', owner, name, 'resolve', revision, *path] if path:
                return self.resolve(self.repo(f'{owner}/{name}'), revision, '/'.join(path))
            case ['POST', owner, name, 'info', 'lfs', 'objects', action]:
                repo = self.repo(f'{owner}/{name.removesuffix(".git")}')
                return self.lfs(json.loads(self.body), repo, action)
        raise Refusal(404, 'Sorry, we can not find the page you are looking for.')

    def repo(self, repo_id: str) -> Repo:
        """The repository, if the user may know of it."""
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and repo_id.split('/')[0] != self.user):
            raise Refusal(404, 'Repository not found', 'RepoNotFound')
        return repo

    def check_write(self, repo: Repo, pull_request: bool) -> None:
        if not pull_request and repo.id.split('/')[0] != self.user:
            hint = 'pass `create_pr=1` as a query parameter to create a Pull Request'
            raise Refusal(403, f'Forbidden: {hint}')

    def commit_of(self, repo: Repo, revision: str) -> str:
        if revision not in repo.refs and revision not in repo.commits:
            raise Refusal(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        return repo.refs.get(revision, revision)

    def create(self, payload: dict) -> Reply:
        owner = payload.get('organization') or self.user
        repo_id = f'{owner}/{payload["name"]}'
        url = {'url': f'{self.hub.url}/{repo_id}', 'name': repo_id}
        if owner != self.user:
            where = f'under the namespace "{owner}"'
            raise Refusal(403, f"You don't have the rights to create a model {where}")
        if repo_id in self.hub.repos:  # with `exist_ok` the client reads the address from here
            return as_json({'error': 'You already created this model repo', **url}, 409)
        private = payload.get('visibility') == 'private' or payload.get('private', False)
        self.hub.add_repo(repo_id, private=private)
        return as_json(url)

    def model(self, repo: Repo, kind: str = 'revision', revision: str = 'main') -> Reply:
        if kind != 'revision':
            raise Refusal(404, 'Sorry, we can not find the page you are looking for.')
        sha = self.commit_of(repo, revision)
        info = {'id': repo.id, 'sha': sha, 'private': repo.private, 'tags': []}
        siblings = [{'rfilename': path} for path in repo.commits[sha]]
        return as_json(info | {'gated': repo.gated and 'manual', 'siblings': siblings})

    def change(self, repo: Repo, action: str, revision: str) -> Reply:
        if action == 'branch':
            if revision in repo.refs:
                raise Refusal(409, f'Reference already exists: {revision}')
            start = json.loads(self.body).get('startingPoint', 'main')
            repo.refs[revision] = self.commit_of(repo, start)
            return as_json({})
        if action == 'commit':
            return self.commit(repo, revision)
        tree = repo.commits[self.commit_of(repo, revision)]
        files = []
        for f in json.loads(self.body)['files']:
            known = tree.get(f['path'])
            mode = 'lfs' if is_lfs(f['path'], f['size']) else 'regular'
            files.append({'path': f['path'], 'uploadMode': mode, 'shouldIgnore': False})
            files[-1] |= {'oid': known.sha256 or known.oid} if known else {}
        return as_json({'files': files})

    def commit(self, repo: Repo, revision: str) -> Reply:
        files = {}
        for line in self.body.splitlines()[1:]:  # the first is the message
            operation = json.loads(line)
            value, path = operation['value'], operation['value']['path']
            match operation['key']:
                case 'file':
                    files[path] = Blob(base64.b64decode(value['content']), lfs=False)
                case 'lfsFile' if value['oid'] in self.hub.lfs:
                    files[path] = Blob(self.hub.lfs[value['oid']], lfs=True)
                case 'lfsFile':
                    raise Refusal(400, f'LFS pointer to a file that was not uploaded: {path}')
                case other:
                    raise Refusal(400, f'This Hub knows no {other} in a commit')
        extra = {}
        if 'create_pr' in self.query:
            number = 1 + sum(name.startswith('refs/pr/') for name in repo.refs)
            extra = {'pullRequestUrl': f'{self.hub.url}/{repo.id}/discussions/{number}'}
            repo.refs[f'refs/pr/{number}'] = self.commit_of(repo, revision)
            revision = f'refs/pr/{number}'
        sha = repo.commit(files, revision)
        url = f'{self.hub.url}/{repo.id}/commit/{sha}'
        return as_json({'success': True, 'commitOid': sha, 'commitUrl': url, **extra})

    def lfs(self, payload: dict, repo: Repo, action: str) -> Reply:
        if action == 'verify':
            if len(self.hub.lfs.get(payload['oid'], b'')) != payload['size']:
                raise Refusal(400, 'Uploaded content does not match its hash')
            return as_json({})
        # Without a ref the objects are for a pull request, which every user may open.
        self.check_write(repo, 'ref' not in payload)
        objects = []
        for item in payload['objects']:
            objects.append({'oid': item['oid'], 'size': item['size']})
            if item['oid'] not in self.hub.lfs:
                upload = {'href': f'{self.hub.cdn}/{repo.id}/{item["oid"]}/upload'}
                verify = {'href': f'{self.hub.url}/{repo.id}.git/info/lfs/objects/verify'}
                objects[-1]['actions'] = {'upload': upload, 'verify': verify}
        return as_json({'transfer': 'basic', 'objects': objects})

    def resolve(self, repo: Repo, revision: str, path: str) -> Reply:
        if repo.gated and self.user != repo.id.split('/')[0]:
            raise Refusal(403, f'Access to model {repo.id} is restricted', 'GatedRepo')
        sha = self.commit_of(repo, revision)
        commit, blob = {'X-Repo-Commit': sha}, repo.commits[sha].get(path)
        if blob is None:
            raise Refusal(404, 'Entry not found', 'EntryNotFound', **commit)
        if not blob.sha256:
            return self.file(blob.data, blob.oid, **commit)
        self.hub.lfs[blob.sha256] = blob.data  # the test may have committed it by itself
        where = f'{self.hub.cdn}/{repo.id}/{blob.sha256}/{quote(path)}'
        linked = {'X-Linked-Etag': f'"{blob.sha256}"', 'X-Linked-Size': str(len(blob.data))}
        return 302, b'', {'Location': where, **linked, **commit}
