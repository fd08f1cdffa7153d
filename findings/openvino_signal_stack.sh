#!/usr/bin/env bash
# OpenVINO 2026.4.1: compiling a model for the CPU gives the thread that does it another signal stack
# (sigaltstack), and leaves it there. Handlers that ask for the alternate stack, as those of CPython's signal
# module and of faulthandler do, run on the library's memory from then on. In a program where models come and go,
# that memory was once found to be unmapped when the next signal came (SIGSEGV). A thread that loads the model and
# ends keeps the others' stacks as they were; inference does not change them.
#
# Output seen (openvino 2026.4.1, Python 3.11.7, Linux x86-64):
#   loaded in another thread, and run: changed False
#   loaded in this thread: changed True - disabled before True and after False
# Exits with 1 where this is no longer so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work"
"$work/bin/pip" install --quiet openvino==2026.4.1 numpy==2.2.6
"$work/bin/python" - <<'PY'
import ctypes
from threading import Thread

import numpy as np
import openvino
from openvino import opset13 as ops


def signal_stack():
    """Address, flags and size of this thread's, as Linux lays them out on 64 bits."""
    stack = (ctypes.c_size_t * 3)()
    assert ctypes.CDLL(None).sigaltstack(None, stack) == 0
    return stack[0], stack[1] & 0xFFFFFFFF, stack[2]


def load(kept):
    clip = ops.parameter([1, 3], np.float32, name='clip')
    kept.append(openvino.Core().compile_model(openvino.Model([ops.relu(clip)], [clip]), 'CPU'))


kept, before = [], signal_stack()
thread = Thread(target=load, args=[kept])
thread.start()
thread.join()
kept[0](np.ones((1, 3), np.float32))
apart = signal_stack()
load(kept)
after = signal_stack()
print('openvino', openvino.get_version())
print('loaded in another thread, and run: changed', apart != before)
print('loaded in this thread: changed', after != before, '- disabled before', before[1] == 2, 'and after', after[1] == 2)
assert apart == before and after != before
PY
