"""Models as files for other programs: ONNX, OpenVINO, torch.export archives.

The file holds what `config.json` does (ClipConfig, label names), so `predict` needs nothing else
(see `runtimes`). Batch, frames, height and width stay free. Numbers are float32, whatever those of
the model are.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.fx.experimental._config as symbolic
from torch import Tensor, nn

from ..clip import ClipConfig
from ..data.motion.clips import MotionClips
from ..data.records import find_videos
from ..data.sampling import view_indices
from ..data.transforms import normalize, read_crops
from ..data.video.folders import check_frames, of_folder
from ..data.video.open import open_video
from ..errors import BvtamError
from ..files import atomic_file, write_file
from ..inference.runner import blank
from ..optional import library
from .runtimes import AXES, KEY, SUFFIXES, apart

_EXAMPLE = (2, 20, 96, 128)  # batch, frames, height, width; sizes above 1, or they count as fixed


def export(
    model: nn.Module, path: str | os.PathLike[str], calibration: Iterable[Tensor] | None = None
) -> Path:
    """Writes a model to `path`: `.onnx`, `.xml` (OpenVINO, with a `.bin` beside it) or `.pt2`.

    Args:
        model: a model of this package in eval mode, not optimised: the runtimes do that themselves.
        calibration: normalised clips (B, C, T, H, W) of real videos: weights and activations become
            8-bit integers with the ranges that these have (NNCF; not for `.pt2`). Normalisation is
            the caller's, as in `forward`.

    Raises:
        BvtamError: another suffix, a model in training mode or optimised, no calibration clips, or a
            library of the extra `export` is missing.
    """
    path = Path(path)
    form = SUFFIXES.get(path.suffix)
    if form is None:
        raise BvtamError(f'{path.name}: the suffix must be one of {", ".join(SUFFIXES)}')
    if not (hasattr(model, 'model_name') and hasattr(model, 'input_kind')):
        raise BvtamError(
            f'export takes a model as create_model gives it, not {type(model).__name__}'
        )
    if model.training or getattr(model, 'optimized', False):
        raise BvtamError('export needs a model in eval mode that is not optimised')
    if calibration is not None and form == 'torch.export':
        raise BvtamError('8-bit integers are for .onnx and .xml; leave out the calibration')
    write = {'onnx': _write_onnx, 'openvino': _write_openvino, 'torch.export': _write_archive}[form]
    # Exporters fold batch norms in float32, and runtimes lack bfloat16.
    model = deepcopy(model).float()
    with _quiet():
        write(_program(model), path, json.dumps(_config(model)), calibration)
    return path


def calibration_clips(
    data: str,
    clip: ClipConfig,
    count: int = 100,
    frames: str = '',
    fps: float | None = None,
) -> Iterator[Tensor]:
    """Normalised clips (1, C, T, S, S) to calibrate with, evenly from all videos of `data`.

    Args:
        data: 'motion', or what `find_videos` takes: a file, a folder, a glob.
        frames, fps: of folders of images, as of `open_video`.

    Raises:
        BvtamError, FileNotFoundError: no video, or one that cannot be read.
    """
    if data == 'motion':
        check_frames(frames, fps, ())
        clips = MotionClips(clip.num_frames, clip.crop_size, family='all', length=count)
        return (normalize(clips[i]['clip'][None], clip) for i in range(count))
    videos = find_videos([data])
    check_frames(frames, fps, videos)
    view = replace(clip, num_clips=1, num_crops=1)

    def read(video: str) -> Tensor:
        reader = open_video(video, **of_folder(video, frames, fps))
        (crops,) = read_crops(reader, view_indices(view, reader.num_frames), view)
        return normalize(crops, clip)

    number = min(count, len(videos))
    return (read(videos[i * len(videos) // number]) for i in range(number))


def _config(model: nn.Module) -> dict[str, Any]:
    return {
        'architecture': model.model_name,
        'num_classes': model.num_classes,
        'label_names': model.label_names,
        'input_kind': model.input_kind,
        'clip': model.clip_config.to_dict() if model.clip_config else None,
        'frame_multiple': getattr(model, 'frames_per_step', 1),
    }


@contextmanager
def _quiet():
    """Exporters tell what they do, and of their own deprecations, on every channel."""
    loggers = [logging.getLogger(name) for name in ('torch.onnx', 'nncf', 'onnxscript')]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _program(model: nn.Module) -> torch.export.ExportedProgram:
    """The model with all axes but the channels free."""
    clip = blank(model, *_EXAMPLE)
    dims = {axis: torch.export.Dim.AUTO for axis in range(clip.ndim) if axis != 1}
    # A size of 1 on the way, as of one pair of frames, is no constant (torch before 2.7: it is).
    free = (
        symbolic.patch(backed_size_oblivious=True)
        if hasattr(symbolic, 'backed_size_oblivious')
        else nullcontext()
    )
    with torch.no_grad(), free:
        return torch.export.export(model, (clip,), dynamic_shapes=(dims,))


def _write_archive(program: Any, path: Path, config: str, calibration: None) -> None:
    with atomic_file(path) as new:
        torch.export.save(program, new, extra_files={KEY: config})


def _onnx_model(program: Any, config: str, calibration: Iterable[Tensor] | None) -> Any:
    onnx, _ = (library(name, 'export', 'export') for name in ('onnx', 'onnxscript'))
    exported = torch.onnx.export(
        program, dynamo=True, input_names=['clip'], output_names=['logits'], verbose=False
    )
    model = exported.model_proto
    if calibration is not None:
        model = _quantized(model, calibration, lambda clip: {'clip': clip})
    _name_axes(model, AXES[json.loads(config)['input_kind']])
    onnx.helper.set_model_props(model, {KEY: config})
    return model


def _name_axes(model: Any, axes: tuple[str, ...]) -> None:
    """Names for the symbols of an ONNX model's free axes, alone and in expressions."""
    (given,) = model.graph.input
    names = {
        size.dim_param: axis
        for size, axis in zip(given.type.tensor_type.shape.dim, axes, strict=True)
        if size.dim_param
    }
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(
                    r'\w+', lambda word: names.get(word[0], word[0]), size.dim_param
                )


def _write_onnx(
    program: Any, path: Path, config: str, calibration: Iterable[Tensor] | None
) -> None:
    write_file(path, _onnx_model(program, config, calibration).SerializeToString())


def _write_openvino(
    program: Any, path: Path, config: str, calibration: Iterable[Tensor] | None
) -> None:
    openvino = library('openvino', 'export', 'export')
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / 'model.onnx'
        _write_onnx(program, source, config, None)
        model = openvino.convert_model(source)
        if calibration is not None:
            model = _quantized(model, calibration, lambda clip: clip)
        axes = AXES[json.loads(config)['input_kind']]
        model.get_parameters()[0].set_layout(openvino.Layout(f'[{",".join(axes)}]'))
        model.set_rt_info(config, [KEY])
        with atomic_file(path.with_suffix('.bin')) as weights, atomic_file(path) as graph:
            openvino.save_model(model, Path(folder) / 'model.xml', compress_to_fp16=False)
            weights.write_bytes((Path(folder) / 'model.bin').read_bytes())
            graph.write_bytes((Path(folder) / 'model.xml').read_bytes())


def _quantized(model: Any, clips: Iterable[Tensor], as_input: Callable[[Any], Any]) -> Any:
    nncf = library('nncf', 'export', 'calibration')
    arrays = [clip.float().numpy() for clip in clips]
    if not arrays:
        raise BvtamError('no clips to calibrate with: give some real ones')
    data = nncf.Dataset([as_input(array) for array in arrays])
    preset = nncf.QuantizationPreset.MIXED
    return apart(nncf.quantize, model, data, subset_size=len(arrays), preset=preset)
