"""bvtam: a model zoo for efficient video recognition (bLVNet-TAM and its relatives)."""

from importlib import import_module

from .after_import import after_import
from .clip import ClipConfig
from .errors import BvtamError

__version__ = '0.1.0'

# Puts the names in timm's registry. Without timm nobody can ask for them, and `import bvtam` or
# `bvtam --help` has no use for torch.
after_import('timm', lambda: import_module('.factory', __name__))

# Where each function is: imported on first use.
_MODULES = {
    'bench': 'deploy.bench',
    'convert': 'hub.convert',
    'create_model': 'factory',
    'evaluate': 'engine.evaluate',
    'evaluate_motion': 'engine.evaluate_motion',
    'events': 'inference.events',
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
__all__ = ['BvtamError', 'ClipConfig', *_MODULES]


def __getattr__(name: str):
    if name in _MODULES:
        if not _MODULES[name].startswith('data.'):
            import_module(
                'timm'
            )  # first in every thread, since its import is what imports the factory
        return getattr(import_module(f'.{_MODULES[name]}', __name__), name)
    if name in ('factory', 'hub', 'layers', 'models', 'weights'):
        return import_module(f'.{name}', __name__)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
