"""Peak memory of every command on small inputs that are large once decoded.

    python benchmarks/memory.py [--model NAME] [--only WORD ...] [--limit GB]

Makes the inputs in a temporary folder (8K videos, frame folders of 64 and 169 million pixels an
image, frames of 20000x2 pixels, a pipe without an end), runs each command on each in a process of its
own, and prints the largest resident memory of any process of it, the seconds, how it ended and its
last line. Exits with 1 where one is above the limit, by default 1.5 GB.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import av
import numpy as np
from PIL import Image

_ARRAY = """
import sys, numpy as np, bvtam
model = bvtam.create_model(sys.argv[1], pretrained=True)
shape = [int(x) for x in sys.argv[2].split('x')]
try:
    print(bvtam.predict(model, np.zeros((*shape, 3), np.uint8))['top'][0]['label'])
except bvtam.BvtamError as error:
    sys.exit(f'refused: {error}')
"""


def write_video(path: Path, width: int, height: int, frames: int) -> None:
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=8, options={'preset': 'ultrafast'})
        stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
        for number in range(frames):
            grey = np.full((height * 3 // 2, width), 40 + 9 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format='yuv420p')))
        container.mux(stream.encode(None))


def write_images(folder: Path, side: int, count: int = 16) -> None:
    folder.mkdir(parents=True)
    Image.new('RGB', (side, side), (90, 60, 30)).save(folder / '00001.jpg', quality=20)
    for number in range(2, count + 1):
        os.link(folder / '00001.jpg', folder / f'{number:05d}.jpg')


def write_inputs(root: Path) -> None:
    write_video(root / 'first.mp4', 7680, 4320, 16)
    for label in 'ab':
        for part, count in (('train', 4), ('val', 4)):
            folder = root / '8k' / part / label
            folder.mkdir(parents=True)
            for number in range(count):
                os.link(root / 'first.mp4', folder / f'{number}.mp4')
    (root / 'eight').mkdir()
    for number in range(8):
        os.link(root / 'first.mp4', root / 'eight' / f'{number}.mp4')
    write_images(root / '64mp', 8000)
    write_images(root / '169mp', 13000)
    (root / 'thin').mkdir()
    for number in range(1, 17):
        Image.new('RGB', (20000, 2)).save(root / 'thin' / f'{number:05d}.png')
    os.mkfifo(root / 'endless')


def feed(path: Path, video: Path) -> None:
    """Raw video for as long as somebody reads: by its header it never ends."""
    with open(path, 'wb') as file:
        file.write(b'YUV4MPEG2 W320 H240 F25:1 Ip A1:1 C420jpeg\n')
        frame = b'FRAME\n' + bytes(320 * 240 * 3 // 2)
        try:
            while True:
                file.write(frame)
        except BrokenPipeError:
            pass


def commands(root: Path, model: str) -> dict[str, list[str]]:
    bvtam = [sys.executable, '-m', 'bvtam']
    chosen = ['--model', model]
    script = [sys.executable, '-c', _ARRAY, model]
    one = str(root / 'eight' / '0.mp4')
    data = ['--data', str(root / '8k')]
    train = [
        f'model={model.partition(".")[0]}',
        'epochs=1',
        'run.batch_size=2',
        '--out',
        str(root / 'run'),
    ]
    found = {
        'predict eight 8K': [*bvtam, 'predict', str(root / 'eight'), *chosen],
        'predict 64 MP images': [*bvtam, 'predict', str(root / '64mp'), *chosen],
        'predict 169 MP images': [*bvtam, 'predict', str(root / '169mp'), *chosen, '--on-error', 'skip', '--max-failed', '1'],
        'predict 20000x2 images': [*bvtam, 'predict', str(root / 'thin'), *chosen],
        'predict array 20000x2': [*script, '16x2x20000'],
        'predict array 16x64 MP': [*script, '2x8000x8000'],
        'windows 8K': [*bvtam, 'predict', one, *chosen, '--every', '1'],
        'evidence 8K': [*bvtam, 'predict', one, *chosen, '--evidence', str(root / 'e.png')],
        'annotate 8K': [*bvtam, 'predict', one, *chosen, '--save', str(root / 'a.mp4')],
        'stream 8K': [*bvtam, 'predict', one, *chosen, '--stream'],
        'extract eight 8K': [*bvtam, 'extract', str(root / 'eight'), *chosen, '--out', str(root / 'x')],
        'extract 64 MP images': [*bvtam, 'extract', str(root / '64mp'), *chosen, '--out', str(root / 'y')],
        'eval 8K': [*bvtam, 'eval', str(root / 'run'), *data],
        'train 8K': [*bvtam, 'train', 'quick', *data, *train],
        'prepare 8K': [*bvtam, 'prepare', str(root / 'eight'), str(root / 'p')],
        'prepare 64 MP images': [*bvtam, 'prepare', str(root / '64mp'), str(root / 'q')],
        'stream without an end': [*bvtam, 'predict', str(root / 'endless'), *chosen, '--stream'],
    }  # fmt: skip
    order = ['train 8K', *(name for name in found if name != 'train 8K')]
    return {name: found[name] for name in order}


def measure(command: list[str], seconds: float) -> tuple[float, float, str, str]:
    """GB of the largest process, seconds, how it ended, last line; killed after `seconds`."""
    begun, killed = time.monotonic(), threading.Event()
    with tempfile.TemporaryFile('w+') as told:
        process = subprocess.Popen(command, stdout=told, stderr=subprocess.STDOUT, text=True)
        peaks: dict[str, int] = {}
        while process.poll() is None:
            for pid in _family(process.pid):
                peaks[pid] = max(peaks.get(pid, 0), _peak(pid))
            if time.monotonic() - begun > seconds:
                killed.set()
                process.kill()
            time.sleep(0.05)
        told.seek(0)
        lines = told.read().strip().splitlines() or ['']
    how = 'stopped' if killed.is_set() else f'exit {process.returncode}'
    if len(lines) > 25:
        how += f', {len(lines)} lines'
    return max(peaks.values(), default=0) / 1e6, time.monotonic() - begun, how, lines[-1].strip()


def _family(pid: int) -> list[str]:
    found, waiting = [], [str(pid)]
    while waiting:
        found.append(waiting.pop())
        for children in Path(f'/proc/{found[-1]}/task').glob('*/children'):
            try:
                waiting += children.read_text().split()
            except OSError:
                continue
    return found


def _peak(pid: str) -> int:
    """Kilobytes."""
    try:
        lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith('VmHWM')), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='bvtam_r50_8x2')
    parser.add_argument('--only', nargs='*', default=[])
    parser.add_argument('--limit', type=float, default=1.5)
    parser.add_argument('--seconds', type=float, default=120)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    largest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_inputs(root)
        for name, command in commands(root, options.model).items():
            if options.only and not any(word in name for word in options.only):
                continue
            if 'without an end' in name:
                threading.Thread(target=feed, args=(root / 'endless', root), daemon=True).start()
                gb, seconds, how, last = measure(command, 20)
            else:
                gb, seconds, how, last = measure(command, options.seconds)
            largest = max(largest, gb)
            print(f'{name:24} {gb:6.2f} GB {seconds:6.1f} s  {how:12} {last[:150]}', flush=True)
    sys.exit(largest > options.limit)


if __name__ == '__main__':
    main()
