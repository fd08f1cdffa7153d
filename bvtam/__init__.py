"""bvtam: a model zoo for efficient video recognition (bLVNet-TAM and its relatives)."""

import sys
from pathlib import PurePath

from .clip import ClipConfig
from .errors import BvtamError

# Puts the names in timm's registry. The command line does without until a command needs a network:
# `bvtam --help` has no use for torch.
_module = sys.argv[:1] == ['-m'] and 'bvtam' in sys.orig_argv
if PurePath(*sys.argv[:1]).stem != 'bvtam' and not _module:
    from . import factory as factory

__version__ = '0.1.0'


def __getattr__(name: str):
    """What most programs do not need is imported on first use."""
    from importlib import import_module

    rooms = {
        'bench': 'inference.bench',
        'convert': 'hub.convert',
        'create_model': 'factory',
        'evaluate': 'engine.evaluate',
        'evaluate_motion': 'engine.motion',
        'evidence': 'inference.evidence',
        'export': 'inference.export',
        'extract': 'inference.extract',
        'finetune': 'engine.start',
        'iter_features': 'inference.shards',
        'list_models': 'factory',
        'list_pretrained': 'factory',
        'load_features': 'inference.shards',
        'open_video': 'data.video',
        'save_pretrained': 'hub.publish',
        'optimize': 'inference.optimize',
        'predict': 'inference.predict',
        'predict_many': 'inference.predict',
        'push_to_hub': 'hub.push',
        'save_annotated': 'inference.render',
        'save_evidence': 'inference.evidence',
        'save_timeline': 'inference.render',
        'stream': 'inference.stream',
        'temporal_model': 'models.temporal_resnet',
        'train': 'engine.start',
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
