"""bvtam: a model zoo for efficient video recognition (bLVNet-TAM and its relatives)."""

from .clip import ClipConfig
from .errors import BvtamError
from .factory import create_model, list_models, list_pretrained

__version__ = '0.1.0'


def __getattr__(name: str):
    """What most programs do not need is imported on first use."""
    from importlib import import_module

    rooms = {
        'convert': 'hub.convert',
        'save_pretrained': 'hub.publish',
        'predict': 'inference.predict',
        'push_to_hub': 'hub.push',
        'temporal_model': 'models.temporal_resnet',
        'verify': 'hub.verify',
    }
    if name not in rooms:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{rooms[name]}', __name__), name)


__all__ = [
    'BvtamError',
    'ClipConfig',
    'convert',
    'create_model',
    'list_models',
    'list_pretrained',
    'predict',
    'push_to_hub',
    'save_pretrained',
    'temporal_model',
    'verify',
]
