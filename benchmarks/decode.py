"""Time of reading sixteen uniform frames of a video, against plain decoding.

    python benchmarks/decode.py [--rounds 7] [--minutes 10]

The yardstick of the short video is PyAV that decodes to the last needed frame and converts the
needed ones; of the long one, the short one and PyAV that decodes it all. The last line compares a
DataLoader of two workers with two processes that decode as the yardstick does.
"""

import argparse
import logging
import multiprocessing
import os
import tempfile
from pathlib import Path

import av
import numpy as np
import torch
from measure import interleaved

from bvtam.data.sampling import clip_indices
from bvtam.data.video.file import VideoFile

SIZE, FPS, SECONDS = (340, 256), 30, 10


def write(path, seconds):
    """A texture that moves, with a little noise and a cut every 4 seconds; x264's default keyframes."""
    random = np.random.default_rng(0)
    width, height = SIZE
    coarse = random.integers(0, 256, (60, 80, 3)).astype(np.float32)
    large = torch.nn.functional.interpolate(
        torch.from_numpy(coarse).permute(2, 0, 1)[None], (512, 680), mode='bilinear'
    )
    texture = large[0].permute(1, 2, 0).numpy()
    noise = random.normal(0, 4, (8, height, width, 3)).astype(np.float32)
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=FPS, options={'preset': 'veryfast'})
        stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
        for i in range(seconds * FPS):
            scene = i // (4 * FPS)
            view = np.roll(texture, (-2 * i + 97 * scene, -3 * i), (0, 1))[:height, :width]
            picture = np.clip(view + noise[i % 8], 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
        container.mux(stream.encode(None))
    return path


def ours(path):
    video = VideoFile(path)
    return video.read(clip_indices(video.num_frames, 16)[0])


def plain(path, indices=None):
    """The frames by PyAV alone, in one thread; None decodes the whole video."""
    wanted, pictures = set(indices or ()), []
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for i, frame in enumerate(container.decode(video=0)):
            if i in wanted:
                rgb = frame.to_ndarray(format='rgb24', threads=1)
                pictures.append(torch.from_numpy(rgb))
            if indices is not None and i == indices[-1]:
                break
    return torch.stack(pictures).permute(0, 3, 1, 2) if pictures else None


class Clips(torch.utils.data.Dataset):
    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return ours(self.paths[index]).permute(0, 2, 3, 1)  # as decoded: batches are plain copies


def load(loader):
    for _ in loader:
        pass


def two_processes(paths, indices):
    def work(mine):
        torch.set_num_threads(1)
        for path in mine:
            plain(path, indices)

    fork = multiprocessing.get_context('fork')
    processes = [fork.Process(target=work, args=(paths[i::2],)) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--minutes', type=int, default=10)
    options = parser.parse_args()
    logging.getLogger('libav').setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        short = write(Path(scratch) / 'short.mp4', SECONDS)
        long = write(Path(scratch) / 'long.mp4', 60 * options.minutes)
        indices = clip_indices(SECONDS * FPS, 16)[0]
        assert torch.equal(ours(short), plain(short, indices))
        paths = [short] * 80
        loader = torch.utils.data.DataLoader(
            Clips(paths),
            batch_size=4,
            num_workers=2,
            multiprocessing_context='fork',
            persistent_workers=True,  # as the trainer has them
        )
        seconds = interleaved(
            {
                'ours': lambda: ours(short),
                'plain': lambda: plain(short, indices),
                'long': lambda: ours(long),
            },
            options.rounds,
        )
        whole = interleaved({'whole': lambda: plain(long)}, 1)['whole']
        many = interleaved(
            {'loader': lambda: load(loader), 'processes': lambda: two_processes(paths, indices)},
            max(3, options.rounds // 2),
        )
    print(
        f'{os.cpu_count()} cores, PyAV {av.__version__}, {SIZE[0]}x{SIZE[1]} H.264, 16 frames: '
        f'{seconds["ours"] / seconds["plain"]:.2f}x of plain decoding of {SECONDS} s '
        f'({1000 * seconds["ours"]:.0f} ms)\n'
        f'{options.minutes} min: {seconds["long"] / seconds["ours"]:.1f}x of {SECONDS} s, '
        f'{whole / seconds["long"]:.1f}x faster than decoding it all\n'
        f'DataLoader with 2 workers: {many["processes"] / many["loader"]:.2f}x the throughput of 2 '
        f'decoding processes'
    )


if __name__ == '__main__':
    main()
