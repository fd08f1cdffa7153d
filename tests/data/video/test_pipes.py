"""What a video may come from: pipes, addresses, lists of other files, and sources that stall."""

from __future__ import annotations

import gc
import os
import socket
import threading

import av
import numpy as np
import pytest
import torch
from support.videos import GOP, decoded, write

from bvtam.data.video import file, pipes
from bvtam.data.video.file import VideoFile
from bvtam.data.video.folders import FrameFolder
from bvtam.data.video.in_memory import FrameArray
from bvtam.data.video.open import open_video
from bvtam.data.video.reader import VideoError
from bvtam.errors import BvtamError


@pytest.fixture
def sample(tmp_path):
    return write(tmp_path / 'a.mp4', 'mpeg4', GOP, 'yuv420p')


def feed(pipe, data):
    def work():
        with open(pipe, 'wb') as file:
            file.write(data)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_a_pipe_is_read_once_and_its_copy_is_removed(tmp_path, sample, monkeypatch):
    copies = tmp_path / 'copies'
    copies.mkdir()
    monkeypatch.setattr(pipes.tempfile, 'tempdir', str(copies))
    pipe, frames = tmp_path / 'pipe', decoded(sample)[0]
    os.mkfifo(pipe)
    writer = feed(pipe, sample.read_bytes())
    video = VideoFile(pipe, time_limit=10)
    assert torch.equal(video.read([35, 0]), frames[[35, 0]])
    assert torch.equal(video.read([20]), frames[[20]])
    writer.join()
    assert len(list(copies.iterdir())) == 1
    del video
    gc.collect()
    assert not list(copies.iterdir())


def test_standard_input(tmp_path, sample, monkeypatch):
    saved = os.dup(0)
    try:
        read, written = os.pipe()
        os.dup2(read, 0)
        os.close(read)
        thread = feed(written, sample.read_bytes())
        assert open_video('-', time_limit=10).num_frames == 36
        thread.join()
    finally:
        os.dup2(saved, 0)
        os.close(saved)


def test_a_pipe_that_gives_nothing_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(pipes.tempfile, 'tempdir', str(tmp_path))
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    with pytest.raises(VideoError, match=r'pipe gave nothing for 0\.2 s; is anything written'):
        VideoFile(pipe, time_limit=0.2).read([0])  # nobody writes to it
    holder = os.open(pipe, os.O_RDWR)  # now somebody could
    os.write(holder, b'begin')
    with pytest.raises(VideoError, match='gave nothing for'):
        VideoFile(pipe, time_limit=0.2).read([0])
    os.close(holder)
    assert list(tmp_path.iterdir()) == [pipe]
    with pytest.raises(VideoError, match='/dev/zero is a device; give a file'):
        VideoFile('/dev/zero').read([0])


@pytest.mark.parametrize('part', [0, 0.7])
def test_a_server_that_stalls_is_given_up(tmp_path, part):
    data = write(tmp_path / 'a.ts', 'mpeg2video', GOP, 'yuv420p').read_bytes()
    with socket.create_server(('127.0.0.1', 0)) as server:
        held = []

        def answer():
            try:
                while True:
                    connection = server.accept()[0]
                    held.append(connection)
                    connection.recv(4096)
                    if part:
                        head = f'HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\n\r\n'
                        connection.sendall(head.encode() + data[: int(part * len(data))])
            except OSError:
                pass

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(VideoError, match=r'a\.ts gave nothing for 0\.5 s; try again'):
            VideoFile(f'http://127.0.0.1:{server.getsockname()[1]}/a.ts', 0.5).read([0])
        for connection in held:
            connection.close()


def test_a_list_of_other_files_is_not_followed(tmp_path, sample):
    write(tmp_path / 'a.ts', 'mpeg2video', GOP, 'yuv420p')
    lists = {
        'a.m3u8': '#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2,\na.ts\n#EXT-X-ENDLIST\n',
        'a.ffconcat': f"ffconcat version 1.0\nfile '{sample.name}'\n",
        'a.sdp': 'v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n'
        'm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n',
    }
    for name, text in lists.items():
        path = tmp_path / name
        path.write_text(text)
        if name != 'a.sdp':
            with av.open(str(path)) as container:  # it is one that FFmpeg would follow
                assert next(container.decode(video=0))
        with pytest.raises(VideoError, match=rf'{name} cannot be opened as a video'):
            VideoFile(path, time_limit=5).read([0])


def test_frames_of_absurd_size_are_refused(tmp_path, monkeypatch):
    whole = write(tmp_path / 'b.avi', 'mjpeg', {}, 'yuvj420p')
    monkeypatch.setattr(file, 'MAX_PIXELS', 64 * 48 - 1)
    with pytest.raises(VideoError, match=r'b\.avi'):
        VideoFile(whole).read([0])
    monkeypatch.setattr(file, 'MAX_PIXELS', 64 * 48 * 4)
    assert VideoFile(whole).read([0]).shape == (1, 3, 48, 64)


def test_open_video_tells_the_kinds_apart(tmp_path, sample):
    video = open_video(sample, time_limit=3)
    assert isinstance(video, VideoFile) and video.time_limit == 3
    assert open_video(video) is video
    assert isinstance(open_video(str(tmp_path)), FrameFolder)
    assert isinstance(open_video(np.zeros((2, 4, 5, 3), np.uint8)), FrameArray)
    assert isinstance(open_video(torch.zeros(2, 3, 4, 5, dtype=torch.uint8)), FrameArray)
    with pytest.raises(FileNotFoundError, match='no such video file'):
        open_video(tmp_path / 'nothing.mp4')
    with pytest.raises(BvtamError, match='not int'):
        open_video(7)
    with pytest.raises(BvtamError, match='time_limit must be above 0'):
        VideoFile(sample, time_limit=0)
