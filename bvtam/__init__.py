"""bvtam: a model zoo for efficient video recognition (bLVNet-TAM and its relatives)."""

import os
import sys
import sysconfig

from .clip import ClipConfig
from .errors import BvtamError


def _is_program() -> bool:
    """Whether the command line is what runs, not a program of the user's: the script that pip writes,
    or `python -m bvtam` (only while Python looks for what `-m` names, the first argument is '-m')."""
    if sys.argv[:1] == ['-m']:
        return sys.orig_argv[sys.orig_argv.index('-m') + 1] == 'bvtam'
    folder, name = os.path.split(os.path.realpath(sys.argv[0] if sys.argv else ''))
    scripts = os.path.realpath(sysconfig.get_path('scripts'))
    return folder == scripts and os.path.splitext(name)[0] == 'bvtam'


# Puts the names in timm's registry. The command line does without until a command needs a model:
# `bvtam --help` has no use for torch.
if not _is_program():
    from . import factory as factory

__version__ = '0.1.0'


def __getattr__(name: str):
    """What most programs do not need is imported on first use."""
    from importlib import import_module

    rooms = {
        'bench': 'deploy.bench',
        'convert': 'hub.convert',
        'create_model': 'factory',
        'evaluate': 'engine.evaluate',
        'evaluate_motion': 'engine.evaluate_motion',
        'evidence': 'inference.evidence',
        'export': 'deploy.export',
        'extract': 'inference.extract',
        'finetune': 'engine.run',
        'iter_features': 'inference.shards',
        'list_models': 'factory',
        'list_pretrained': 'factory',
        'load_features': 'inference.shards',
        'open_video': 'data.video.open',
        'save_pretrained': 'hub.publish',
        'optimize': 'deploy.optimize',
        'predict': 'inference.predict',
        'predict_many': 'inference.predict',
        'push_to_hub': 'hub.push',
        'save_annotated': 'inference.render',
        'save_evidence': 'inference.evidence',
        'save_timeline': 'inference.render',
        'stream': 'inference.stream',
        'temporal_model': 'models.temporal_resnet',
        'train': 'engine.run',
        'verify': 'hub.verify',
        'windows': 'inference.windows',
    }
    if name not in rooms:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{rooms[name]}', __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    'BvtamError',
    'ClipConfig',
    'bench',
    'convert',
    'create_model',
    'evaluate',
    'evaluate_motion',
    'evidence',
    'export',
    'extract',
    'finetune',
    'iter_features',
    'list_models',
    'list_pretrained',
    'load_features',
    'open_video',
    'optimize',
    'predict',
    'predict_many',
    'push_to_hub',
    'save_annotated',
    'save_evidence',
    'save_pretrained',
    'save_timeline',
    'stream',
    'temporal_model',
    'train',
    'verify',
    'windows',
]
