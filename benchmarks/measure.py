"""What the benchmarks share: medians of interleaved runs, and peak memory."""

import statistics

from bvtam.deploy.bench import interleaved as _interleaved
from bvtam.deploy.bench import peak_bytes as peak_bytes


def interleaved(functions, rounds):
    """Median seconds of each function; they take turns, so a busy minute of the machine hits all."""
    return {n: statistics.median(times) for n, times in _interleaved(functions, rounds).items()}
