"""Which addresses of videos are opened, and what they may lead to."""

from __future__ import annotations

import http.server
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from support.cli import SAMPLE
from typer.testing import CliRunner

import bvtam
from bvtam.cli import app
from bvtam.clip import ClipConfig
from bvtam.data.datasets import SampleError
from bvtam.data.load import load_records
from bvtam.data.prepare.run import prepare
from bvtam.data.records import find_videos
from bvtam.data.video.addresses import check_protocol, whitelist
from bvtam.data.video.file import VideoFile
from bvtam.data.video.open import open_video
from bvtam.data.video.reader import VideoError
from bvtam.errors import BvtamError
from bvtam.inference.demo import look
from bvtam.inference.extract import extract

FRAMES = VideoFile(SAMPLE).num_frames
OTHERS = ['gopher', 'tcp', 'udp', 'unix', 'ftp', 'rtmp', 'srt', 'rtsps', 'concat', 's3', 'x+y.z']


@contextmanager
def server(answers):
    """The address of a server with `answers`: the bytes of a path, or where it redirects to."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            answer = answers.get(self.path)
            if answer is None:
                self.send_error(404)
                return
            if isinstance(answer, str):
                self.send_response(302)
                self.send_header('Location', answer)
                self.end_headers()
                return
            start = int(self.headers.get('Range', 'bytes=0-').removeprefix('bytes=').split('-')[0])
            self.send_response(206)
            self.send_header('Content-Length', str(len(answer) - start))
            self.send_header('Content-Range', f'bytes {start}-{len(answer) - 1}/{len(answer)}')
            self.end_headers()
            with suppress(ConnectionError):
                self.wfile.write(answer[start:])

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        try:
            yield f'http://127.0.0.1:{found.server_port}', asked
        finally:
            found.shutdown()
            thread.join()


@pytest.mark.parametrize('protocol', OTHERS)
def test_addresses_of_other_protocols_are_refused_everywhere(protocol, tmp_path):
    address = f'{protocol}://127.0.0.1:9/v.mp4'
    message = (
        rf'addresses of {protocol.replace("+", "[+]")} are not opened, only those of http, https'
    )
    for spelled in (address, address.replace(protocol, protocol.upper())):
        for call in (open_video, VideoFile, lambda source: find_videos([source])):
            with pytest.raises(BvtamError, match=message):
                call(spelled)
    with pytest.raises(BvtamError, match=message):
        extract(bvtam.create_model('bvtam_tiny_8x2', num_classes=2), [address], tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    for command in (['predict', address], ['extract', address, '--out', str(tmp_path / 'out')]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 1 and isinstance(result.exception, BvtamError)


def test_others_are_opened_where_they_are_named():
    assert VideoFile('ftp://127.0.0.1/a.mp4', protocols=['ftp'])._is_url
    assert find_videos(['ftp://127.0.0.1/a.mp4'], ['ftp']) == ['ftp://127.0.0.1/a.mp4']
    with pytest.raises(BvtamError, match='addresses of http are not opened, only those of ftp'):
        open_video('http://127.0.0.1/a.mp4', protocols=['ftp'])
    with pytest.raises(BvtamError, match='only local files'):
        open_video('https://127.0.0.1/a.mp4', protocols=())
    assert open_video(SAMPLE.as_uri(), protocols=()).num_frames == FRAMES
    assert 'file' not in whitelist(['http', 'https', 'rtsp']).split(',')
    check_protocol('C:/a.mp4'), check_protocol('a/b://c')


@pytest.mark.parametrize(
    'name', ['concat:a|b', 'subfile,,start,0,end,9,,:a', 'data:,x', 'pipe:0', 'async:a', 'http:/a']
)
def test_a_path_is_a_file_whatever_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(SAMPLE.read_bytes())
    assert open_video(name).num_frames == FRAMES
    path.unlink()
    with pytest.raises(FileNotFoundError):
        open_video(name)


@pytest.mark.timeout(60)
def test_redirects_and_playlists_stay_within_what_is_allowed():
    video = SAMPLE.read_bytes()
    with server({'/v.mp4': video}) as (other, elsewhere):
        playlist = '#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n'
        port = other.rpartition(':')[2]
        answers = {
            '/plain': video,
            '/moved': f'{other}/v.mp4',
            '/to-file': SAMPLE.as_uri(),
            '/to-tcp': f'tcp://127.0.0.1:{port}',
            '/to-gopher': f'gopher://127.0.0.1:{port}/1',
            '/to-https': f'https://127.0.0.1:{port}/v.mp4',
            '/list-of-file.m3u8': playlist.format(SAMPLE.as_uri()).encode(),
            '/list-of-tcp.m3u8': playlist.format(f'tcp://127.0.0.1:{port}').encode(),
            '/list-of-parts.m3u8': playlist.format(f'concat:{SAMPLE}').encode(),
            '/list.ffconcat': f'ffconcat version 1.0\nfile file:{SAMPLE}\n'.encode(),
            '/list.sdp': f'v=0\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n'.encode(),
        }
        with server(answers) as (address, _):
            for name in answers:
                elsewhere.clear()
                reader = open_video(f'{address}{name}', 5, protocols=['http'])
                if name in ('/plain', '/moved'):
                    assert reader.num_frames == FRAMES
                    continue
                with pytest.raises(VideoError, match='cannot be opened as a video'):
                    reader.read([0])
                assert not elsewhere
            upper = address.replace('http', 'HTTP')
            reader = open_video(f'{upper}/plain', 5)
            assert reader.name == f'{upper}/plain' and reader.num_frames == FRAMES
            assert torch.equal(reader.read([34, 3]), VideoFile(SAMPLE).read([34, 3]))
            with pytest.raises(VideoError, match='nothing cannot be opened'):
                open_video(f'{address}/nothing', 5).read([0])


def test_lists_name_local_files_unless_told_otherwise(tmp_path):
    listed = tmp_path / 'list.csv'
    listed.write_text(f'video,label\n{SAMPLE},a\nhttps://example.invalid/b.mp4,b\n')
    message = (
        r'list\.csv, line 3: https://example\.invalid/b\.mp4: .*only local files.*--allow-urls'
    )
    with pytest.raises(BvtamError, match=message):
        load_records(listed)
    with pytest.raises(BvtamError, match=message):
        prepare(listed, tmp_path / 'out')
    records, _ = load_records(listed, urls=True)
    assert [record.source for record in records] == [str(SAMPLE), 'https://example.invalid/b.mp4']
    listed.write_text('https://example.invalid/b.mp4 0\n')
    result = CliRunner().invoke(app, ['eval', 'bvtam_r50_8x2', '--data', str(listed)])
    assert result.exit_code == 1 and '--allow-urls' in str(result.exception)

    listed.write_text(f'{SAMPLE.as_uri()} 0\ngopher://127.0.0.1/b.mp4 1\n')
    with pytest.raises(BvtamError, match='line 2: .*addresses of gopher are not opened'):
        load_records(listed, urls=True)
    listed.write_text(f'{SAMPLE.as_uri()} 0\n')
    assert open_video(load_records(listed)[0][0].source).num_frames == FRAMES


def test_a_hub_data_set_names_local_files_unless_told_otherwise():
    datasets = pytest.importorskip('datasets')
    from bvtam.data.hub_datasets import from_hub_dataset

    table = datasets.Dataset.from_dict({'video': ['https://127.0.0.1:9/a.mp4'], 'label': [0]})
    clip = ClipConfig(num_frames=2, resize=16, crop_size=16)
    with pytest.raises(SampleError, match='addresses of https are not opened, only local files'):
        from_hub_dataset(table, clip, on_error='skip')[0]
    assert from_hub_dataset(table, clip, on_error='skip', urls=True, time_limit=3)[0]['failed']


def test_the_demo_opens_local_files_alone():
    model = bvtam.create_model('bvtam_tiny_8x2', num_classes=2)
    with pytest.raises(BvtamError, match='only local files'):
        look(model, 'http://127.0.0.1:9/a.mp4')
