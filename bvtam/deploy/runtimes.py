"""Exported files as functions from clips to logits, run by ONNX Runtime or OpenVINO.

A file may come from a stranger: what it says of itself is checked before it is believed, and it is
read alone, without other files that it names. Its graph is run as it stands.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..clip import ClipConfig
from ..errors import BvtamError
from ..files import open_regular, read_regular
from ..optional import library

SUFFIXES = {'.onnx': 'onnx', '.xml': 'openvino', '.pt2': 'torch.export'}
RUNTIMES = ('onnx', 'openvino')
KEY = 'bvtam'  # of the metadata
AXES = {
    'clip': ('batch', 'channels', 'frames', 'height', 'width'),
    'image': ('batch', 'channels', 'height', 'width'),
}
_LARGEST = 2_000_000  # characters of metadata, and classes


class Graph(NamedTuple):
    """A loaded file: `run` takes an array of `dtype` and of `shape`, whose free axes are None, and
    gives the logits (B, classes), `classes` None where the graph does not tell; `config` is the text
    of its metadata."""

    run: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int | None, ...]
    dtype: str
    classes: int | None
    config: str


class RuntimeNet(nn.Module):
    """An exported model as a function from clips (B, C, T, H, W) to float32 logits; `predict` takes it.

    It refuses the shapes that the model itself refuses, with the same exceptions, and takes an empty
    batch. Several threads may call it.

    Args:
        path: `.onnx` or `.xml`, written by `export`; a graph in float16 gets its clips in float16.
        threads: of the runtime; by default those of torch.

    Raises:
        BvtamError: another file, metadata that do not fit the graph, or the runtime is not installed.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        super().__init__()
        path = Path(path)
        form = SUFFIXES.get(path.suffix)
        if form not in RUNTIMES:
            raise BvtamError(f'{path}: give a file that `bvtam export` wrote, .onnx or .xml')
        if not path.exists():
            raise FileNotFoundError(
                f'{path}: no such file; `bvtam export NAME {path.name}` makes it'
            )
        try:
            load = {'onnx': _load_onnx, 'openvino': _load_openvino}[form]
            self._graph = apart(load, path, threads or torch.get_num_threads())
            config = check_config(self._graph.config)
            _check_graph(self._graph, config)
        except BvtamError as error:
            raise error if str(path) in str(error) else BvtamError(f'{path}: {error}') from None
        except Exception as error:  # each runtime has its own kinds
            raise BvtamError(f'{path} is damaged, or not from `bvtam export`: {error}') from None
        self.path = path
        self.model_name, self.num_classes = config['architecture'], config['num_classes']
        self.label_names, self.input_kind = config['label_names'], config['input_kind']
        self.clip_config, self.in_chans = config['clip'], self._graph.shape[1]
        self._multiple = config['frame_multiple']

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, num_classes).

        Raises:
            ValueError: another shape than the model takes.
            BvtamError: the runtime fails, or gives no such logits.
        """
        self._check(x.shape)
        if len(x) == 0:
            return torch.zeros(0, self.num_classes or self._graph.classes or 0)
        clip = x.detach().cpu().to(getattr(torch, self._graph.dtype)).contiguous()
        try:
            out = self._graph.run(clip.numpy())
        except Exception as error:  # each runtime has its own kinds
            shape = tuple(x.shape)
            raise BvtamError(f'{self.path} fails on a clip of shape {shape}: {error}') from None
        if out.shape[0] != len(x) or (self.num_classes and out.shape[1:] != (self.num_classes,)):
            raise BvtamError(
                f'{self.path} gives scores of shape {out.shape} for {len(x)} clips and '
                f'{self.num_classes} classes; it is damaged, or not from `bvtam export`'
            )
        return torch.from_numpy(out).float()

    def _check(self, shape: torch.Size) -> None:
        want, axes = self._graph.shape, AXES[self.input_kind]
        frames = shape[2] if self.input_kind == 'clip' and len(shape) == 5 else None
        if len(shape) != len(want) or shape[1] != want[1] or (frames == 0 and self._multiple == 1):
            form = f'a clip (B, C={want[1]}, T, H, W)'
            if self.input_kind == 'image':
                form = f'images (B, C={want[1]}, H, W)'
            raise ValueError(f'expected {form}, got a tensor of shape {tuple(shape)}')
        if frames is not None and (frames == 0 or frames % self._multiple):
            raise ValueError(f'expected an even number of frames T, got T={frames}')
        for axis, size, only in zip(axes, shape, want, strict=True):
            if only not in (None, size):
                raise ValueError(
                    f'{self.path.name} takes {axis} {only} alone, as it was made; got {axis} {size}'
                )
            if size == 0 and axis != 'batch':
                raise ValueError(f'expected a {axis} above 0, got a shape of {tuple(shape)}')


def apart(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What the function returns or raises, called in a thread of its own, which ends with it.

    OpenVINO's CPU plugin sets the signal stack of the thread that loads it, and can leave one there
    that is no longer mapped (2026.4.1): the next signal, as of a child process that ends, would kill
    the program if that were the main thread.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args, **kwargs).result()


def check_config(text: str) -> dict[str, Any]:
    """Metadata of an exported file, with `clip` as a ClipConfig or None.

    Raises:
        BvtamError: it is not what `export` writes.
    """
    try:
        if len(text) > 20 * _LARGEST or text.count('[') + text.count('{') > 1000:
            raise ValueError('too much of it')
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BvtamError(f'its metadata are not JSON: {error}') from None
    if not isinstance(config, dict):
        raise BvtamError(f'its metadata must be a table, not {config!r}')
    config = {'clip': None, 'label_names': None, 'input_kind': None, 'frame_multiple': 1} | config
    name, classes, labels = (config.get(k) for k in ('architecture', 'num_classes', 'label_names'))
    if not (isinstance(name, str) and name and len(name) < 1000):
        raise BvtamError(f'its metadata: "architecture" must be a name, not {name!r}')
    if type(classes) is not int or not 0 <= classes <= _LARGEST:
        raise BvtamError(
            f'its metadata: "num_classes" must be a number of classes, not {classes!r}'
        )
    if labels is not None and not (
        isinstance(labels, list) and len(labels) == classes and all(type(n) is str for n in labels)
    ):
        raise BvtamError(f'its metadata: "label_names" must be {classes} names, or null')
    if config['input_kind'] not in ('clip', 'image'):
        raise BvtamError(f'its metadata: "input_kind" cannot be {config["input_kind"]!r}')
    if type(config['frame_multiple']) is not int or config['frame_multiple'] not in (1, 2):
        raise BvtamError(f'its metadata: "frame_multiple" cannot be {config["frame_multiple"]!r}')
    if config['clip'] is not None:
        config['clip'] = ClipConfig.from_dict(config['clip'])
    elif config['input_kind'] == 'clip':
        raise BvtamError('its metadata have no "clip"')
    return config


def _check_graph(graph: Graph, config: dict[str, Any]) -> None:
    """The graph takes and gives what the metadata say."""
    axes, clip = AXES[config['input_kind']], config['clip']
    if len(graph.shape) != len(axes) or graph.shape[1] is None:
        raise BvtamError(f'its graph takes the shape {graph.shape}, not ({", ".join(axes)})')
    if graph.dtype not in ('float32', 'float16'):
        raise BvtamError(
            f'its graph takes {graph.dtype} clips; export it again, in float32 or float16'
        )
    if config['num_classes'] and graph.classes not in (None, config['num_classes']):
        raise BvtamError(
            f'its metadata say {config["num_classes"]} classes, but the graph gives {graph.classes}'
        )
    if clip is not None and len(clip.mean) not in (1, graph.shape[1]):
        raise BvtamError(
            f'its metadata normalise {len(clip.mean)} channels, but the graph takes {graph.shape[1]}'
        )


def _one(found: list[Any], what: str) -> Any:
    if len(found) != 1:
        raise BvtamError(f'its graph has {len(found)} {what}, and `bvtam export` writes one')
    return found[0]


def _messages(message: Any) -> Iterator[Any]:
    """A protobuf message and all that are inside it."""
    waiting = [message]
    while waiting:
        message = waiting.pop()
        yield message
        for field, value in message.ListFields():
            if field.message_type is not None:
                waiting += [value] if hasattr(value, 'ListFields') else list(value)


def _load_onnx(path: Path, threads: int) -> Graph:
    onnx, runtime = (library(name, 'export', path.name) for name in ('onnx', 'onnxruntime'))
    data = read_regular(path)
    model = onnx.load_model_from_string(data)
    for message in _messages(model):
        if isinstance(message, onnx.TensorProto) and message.external_data:
            raise BvtamError(
                'it keeps weights in other files, which `bvtam export` does not and which may be '
                'any file: put them into it, or export the model again'
            )
    del model
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # its errors are raised
    session = runtime.InferenceSession(data, options, providers=['CPUExecutionProvider'])
    given, out = _one(session.get_inputs(), 'inputs'), _one(session.get_outputs(), 'outputs')
    metadata = session.get_modelmeta().custom_metadata_map
    if KEY not in metadata:
        raise BvtamError('it is not from `bvtam export`: it has no metadata')
    dtypes = {'tensor(float)': 'float32', 'tensor(float16)': 'float16'}
    return Graph(
        lambda clip: session.run([out.name], {given.name: clip})[0],
        tuple(size if type(size) is int else None for size in given.shape),
        dtypes.get(given.type, given.type),
        out.shape[-1] if out.shape and type(out.shape[-1]) is int else None,
        metadata[KEY],
    )


def _load_openvino(path: Path, threads: int) -> Graph:
    openvino = library('openvino', 'export', path.name)
    for file in (path, path.with_suffix('.bin')):
        if not file.exists():
            raise BvtamError(f'{file} is missing: it lies beside {path.name} as export wrote it')
        open_regular(file).close()
    core = openvino.Core()
    model = core.read_model(path)
    given, out = _one(model.inputs, 'inputs'), _one(model.outputs, 'outputs')
    if not model.has_rt_info([KEY]):
        raise BvtamError('it is not from `bvtam export`: it has no metadata')
    config = model.get_rt_info([KEY]).astype(str)
    options = {'INFERENCE_NUM_THREADS': threads, 'INFERENCE_PRECISION_HINT': 'f32'}
    compiled, lock = core.compile_model(model, 'CPU', options), Lock()

    def run(clip: np.ndarray) -> np.ndarray:
        with lock:  # it has one request, whose tensors the next call writes over
            return compiled(clip)[0].copy()

    shapes = [
        tuple(None if size.is_dynamic else size.get_length() for size in port.partial_shape)
        for port in (given, out)
    ]
    dtypes = {'f32': 'float32', 'f16': 'float16'}
    dtype = given.element_type.get_type_name()
    return Graph(run, shapes[0], dtypes.get(dtype, dtype), shapes[1][-1], config)
