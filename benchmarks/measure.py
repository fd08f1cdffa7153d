"""What the benchmarks share: interleaved timing and peak memory."""

import ctypes
import gc
import statistics
import time
from pathlib import Path


def interleaved(functions, rounds):
    """Median seconds of each function; they take turns, so a busy minute of the machine hits all."""
    seconds = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def _resident(key):
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def peak_bytes(function):
    """What the process' resident memory rises by, at most, while `function` runs (Linux)."""
    function()  # whatever it builds only once
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path('/proc/self/clear_refs').write_text('5')  # resets VmHWM
    before = _resident('VmRSS')
    function()
    return _resident('VmHWM') - before
