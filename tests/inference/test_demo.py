"""The demo's page: by its function, by its HTTP interface, and in a browser."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.cli import SAMPLE
from support.runs import lively

import bvtam
from bvtam.errors import BvtamError
from bvtam.inference import demo


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    torch.manual_seed(0)
    net = bvtam.create_model('bvtam_tiny_8x2', num_classes=3)
    net.label_names = ['left', 'right', 'up']
    net.clip_config = replace(net.clip_config, resize=64, crop_size=64)
    with torch.no_grad():
        net.fc.bias[1] = 50.0
    return bvtam.save_pretrained(lively(net), tmp_path_factory.mktemp('net') / 'net')


def test_what_the_page_shows(folder):
    net = bvtam.create_model(f'local-dir:{folder}', pretrained=True)
    scores, evidence, timeline = demo.look(net, str(SAMPLE))
    assert max(scores, key=scores.get) == 'right' and sum(scores.values()) == pytest.approx(1)
    assert evidence.size[0] > 1000 and timeline.size[0] > 1000


def test_without_gradio_it_says_what_to_install(folder, monkeypatch):
    net = bvtam.create_model(f'local-dir:{folder}', pretrained=True)
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(BvtamError, match=r"needs gradio: pip install 'bvtam\[demo\]'"):
        demo.build(net)


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def test_a_long_video_is_refused(folder, monkeypatch):
    net = bvtam.create_model(f'local-dir:{folder}', pretrained=True)
    monkeypatch.setattr(demo, '_LONGEST', 1)
    with pytest.raises(BvtamError, match=r'^sample\.mp4 lasts .* more than 1: cut it'):
        demo.look(net, str(SAMPLE))


@pytest.mark.parametrize(
    ('body', 'refused'),
    [
        (b'{"data": [{"path": "/tmp/gradio/a.mp4", "url": "http://127.0.0.1/a.mp4"}]}', False),
        (b'{"data": [[{"path": "http://example.org/a.mp4"}]]}', True),
        (b'{"data": [{"path": "h\\u0074tp://example.org/a.mp4"}]}', True),
        (b'user=a&password=b', False),
        (b'\xff', False),
    ],
)
def test_requests_that_name_addresses(body, refused):
    assert demo._names_address(body) == refused


@pytest.fixture(scope='module')
def opened(folder, tmp_path_factory):
    """A page with a login, opened in this process, and the folder of its uploads."""
    pytest.importorskip('gradio', reason="pip install 'bvtam[demo]'")
    uploads = tmp_path_factory.mktemp('gradio')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('GRADIO_TEMP_DIR', str(uploads))
        patch.setenv('GRADIO_SERVER_NAME', '0.0.0.0')
        page = demo.build(bvtam.create_model(f'local-dir:{folder}', pretrained=True))
        login = demo.launch(page, free_port(), auth=('ann', 'secret'), max_size=1)
        assert login == ('ann', 'secret')
        yield page, uploads
        page.close(verbose=False)


def test_who_may_ask(opened):
    import httpx

    page, _ = opened
    address = page.local_url.rstrip('/')
    assert '127.0.0.1' in address
    with httpx.Client(base_url=address, trust_env=False) as client:
        assert client.get('/', headers={'Host': 'evil.example'}).status_code == 400
        file = {'files': ('a.mp4', b'a' * 1000)}
        assert client.post('/gradio_api/upload', files=file).status_code == 401
        wrong = {'username': 'ann', 'password': 'guess'}
        assert client.post('/login', data=wrong).status_code == 400
        assert client.post('/login', data=wrong | {'password': 'secret'}).status_code == 200
        large = {'files': ('a.mp4', b'a' * 1_100_000)}
        assert client.post('/gradio_api/upload', files=large).status_code == 413
        body = {
            'data': [{'path': 'http://example.org/a.mp4', 'meta': {'_type': 'gradio.FileData'}}]
        }
        assert client.post('/gradio_api/call/look', json=body).status_code == 403
        assert client.post('/gradio_api/call/look', content=b'a' * 1_100_000).status_code == 403


def test_errors_name_no_folder_and_uploads_do_not_stay(opened):
    import httpx

    page, uploads = opened
    with httpx.Client(base_url=page.local_url, trust_env=False, timeout=60) as client:
        client.post('login', data={'username': 'ann', 'password': 'secret'})
        file = {'files': ('no video.mp4', b'no video' * 100)}
        (path,) = client.post('gradio_api/upload', files=file).json()
        assert Path(path).is_file() and uploads in Path(path).parents
        body = {'data': [{'path': path, 'meta': {'_type': 'gradio.FileData'}}]}
        event = client.post('gradio_api/call/look', json=body).json()['event_id']
        told = client.get(f'gradio_api/call/look/{event}').text
    assert 'no video.mp4' in told and str(uploads) not in told
    assert page.max_file_size == 2**20 or page.max_file_size == 10**6
    page.close(verbose=False)
    assert not [p for p in uploads.rglob('*') if p.is_file() and p.name != SAMPLE.name]


def test_a_shared_page_has_a_password(monkeypatch):
    pytest.importorskip('starlette', reason="pip install 'bvtam[demo]'")

    class Page:
        share_url = 'https://example.gradio.live'

        def launch(self, **options):
            self.options = options

    pages = [Page(), Page()]
    logins = [demo.launch(page, share=True) for page in pages]
    assert logins[0] != logins[1]
    for page, (user, password) in zip(pages, logins, strict=True):
        assert page.options['auth'] == (user, password) and len(password) >= 16
    assert demo.launch(Page()) is None
    pages[0].share_url = None
    pages[0].close = lambda verbose: None
    with pytest.raises(BvtamError, match='leave out --share'):
        demo.launch(pages[0], share=True)


@pytest.fixture
def page(folder, tmp_path, monkeypatch):
    """Address of the page, as `bvtam demo` opens it."""
    pytest.importorskip('gradio', reason="pip install 'bvtam[demo]'")
    port = free_port()
    monkeypatch.setenv('GRADIO_TEMP_DIR', str(tmp_path / 'gradio'))
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, '-m', 'bvtam', 'demo', '--model', str(folder), '--port', str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    assert line.startswith('open http://127.0.0.1:'), line + process.stderr.read()
    yield line.split()[1]
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert 'Traceback' not in process.stderr.read()


@pytest.mark.slow
def test_a_program_can_ask_the_page(page, tmp_path):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    client = Client(
        page, verbose=False, download_files=str(tmp_path / 'got'), analytics_enabled=False
    )
    label, evidence, timeline = client.predict(handle_file(str(SAMPLE)), api_name='/look')
    assert label['label'] == 'right'
    assert all(Path(path).stat().st_size > 1000 for path in (evidence, timeline))
    (tmp_path / 'no video.mp4').write_bytes(b'no video' * 100)
    with pytest.raises(AppError, match='no video.mp4'):
        client.predict(handle_file(str(tmp_path / 'no video.mp4')), api_name='/look')


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('chromedriver'), reason='needs chromium and chromedriver')
def test_a_video_dropped_in_a_browser(page, tmp_path):
    webdriver = pytest.importorskip('selenium.webdriver', reason='pip install selenium')
    options = webdriver.ChromeOptions()
    for flag in ('headless', 'no-sandbox', 'disable-gpu', 'disable-background-networking'):
        options.add_argument(f'--{flag}')
    options.add_argument(f'--user-data-dir={tmp_path / "profile"}')
    options.add_argument('--window-size=1200,1600')
    service = webdriver.ChromeService(shutil.which('chromedriver'))
    browser = webdriver.Chrome(options, service)
    try:
        browser.get(page)
        until = time.monotonic() + 120

        def wait(css):
            while time.monotonic() < until:
                if found := browser.find_elements('css selector', css):
                    return found[0]
                time.sleep(0.2)
            raise AssertionError(f'{css} did not come: {browser.page_source[:2000]}')

        wait('#video input[type=file]').send_keys(str(SAMPLE))
        wait('#evidence img'), wait('#timeline img')
        assert 'right' in wait('#prediction').text
        browser.save_screenshot(str(tmp_path / 'page.png'))
    finally:
        browser.quit()
