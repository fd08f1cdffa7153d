"""Videos that the program holds: bytes, open files and lists of images."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bvtam

SAMPLE = f'{bvtam.__path__[0]}/assets/sample.mp4'


class Once(io.RawIOBase):
    """A binary file that cannot seek and gives little at a time, as of the network."""

    def __init__(self, data):
        self.source = io.BytesIO(data)

    def readable(self):
        return True

    def read(self, size=-1):
        return self.source.read(min(size, 1000))


@pytest.fixture(scope='module')
def data():
    return Path(SAMPLE).read_bytes()


@pytest.fixture(scope='module')
def model():
    model = bvtam.create_model('bvtam_tiny_8x2').eval()
    model.clip_config = bvtam.ClipConfig(num_frames=4, resize=32, crop_size=32)
    return model


def test_bytes_and_files_are_the_video_that_they_hold(data, model):
    whole, want = bvtam.open_video(SAMPLE), bvtam.predict(model, SAMPLE)
    ahead = io.BytesIO(b'header' + data)
    ahead.seek(6)
    with open(SAMPLE, 'rb') as file:
        held = [data, bytearray(data), memoryview(data)]
        sources = [*held, io.BytesIO(data), ahead, Once(data), file]
        names = ['bytes'] * 3 + ['file'] * 3 + [SAMPLE]
        results = bvtam.predict_many(model, sources)
        for source, found, name in zip(sources, results, names, strict=True):
            assert found == want | {'video': name}, type(source)
        assert not file.closed and not ahead.closed
        file.seek(0)
        reader = bvtam.open_video(file)
    assert torch.equal(reader.times, whole.times)
    again = pickle.loads(pickle.dumps(reader))
    assert torch.equal(again.read([3]), whole.read([3]))
    assert len(list(reader.play())) == whole.num_frames  # not as a pipe
    copy = reader._known.copy
    assert os.path.exists(copy)
    del reader, again
    assert not os.path.exists(copy)
    (found,) = bvtam.predict_many(model, data)  # one video, not many numbers
    assert found['top'] == want['top']


def test_images_are_frames(model):
    frames = np.random.default_rng(0).integers(0, 256, (6, 40, 48, 3), dtype=np.uint8)
    images = [Image.fromarray(frame) for frame in frames]
    want = bvtam.predict(model, frames)
    for source in (images, tuple(images), list(frames), list(torch.tensor(frames))):
        assert bvtam.predict(model, source) == want | {'video': 'images'}
    turned = Image.fromarray(frames[0].swapaxes(0, 1))
    turned.getexif()[0x0112] = 5  # on its side, mirrored
    other = images[1].resize((24, 20)).convert('L')
    reader = bvtam.open_video([turned, other, *images[2:]])
    assert torch.equal(reader.read([0, 2]), bvtam.open_video(frames).read([0, 2]))
    assert reader.read([1]).shape == (1, 3, 40, 48)
    assert turned.size == (40, 48)  # the caller's image is left as it came


def test_what_is_no_video_is_said_in_one_line(data, tmp_path):
    image = Image.new('RGB', (8, 8))
    cases = {
        r'bytes is empty \(0 bytes\)': b'',
        r"file is open for text; open it with open\(path, 'rb'\)": io.StringIO('text'),
        r'bytes cannot be opened as a video': b'no video' * 100,
        r'the list holds no frame': [],
        r'frame 1 is no PIL image and no uint8 array .* but str': [image, 'a.jpg'],
        r'x cannot be read \(.*; give a binary file': (tmp_path / 'x').open('wb'),
        r'list of images or an array of frames, not int': 3,
    }
    for message, source in cases.items():
        with pytest.raises(bvtam.BvtamError, match=message):
            len(bvtam.open_video(source).times)
        if isinstance(source, io.IOBase):
            source.close()
