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
from test_cli import SAMPLE
from training import lively

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


@pytest.fixture
def page(folder, tmp_path, monkeypatch):
    """Address of the page, as `bvtam demo` opens it."""
    pytest.importorskip('gradio', reason="pip install 'bvtam[demo]'")
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
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
