"""The models, a family a file. Importing this package puts every name in timm's registry.

A new file is a new family: nothing else names it. Its entry points have timm's `@register_model`, its
class, a ZooModel, goes in `__all__`, and files that start with an underscore hold what families share.
`build` of `_build.py` gives each model its options, weights and ClipConfig.
"""

from importlib import import_module
from pkgutil import iter_modules

import timm  # first: this imports bvtam.factory, which needs every family whole

from ..errors import BvtamError

FAMILIES = sorted(m.name for m in iter_modules(__path__) if not m.name.startswith('_'))

for _family in FAMILIES:
    _owners = {name: timm.model_entrypoint(name).__module__ for name in timm.list_models()}
    try:
        _module = import_module(f'.{_family}', __name__)
        globals().update({name: getattr(_module, name) for name in _module.__all__})
    except Exception as _error:
        raise BvtamError(
            f'{__path__[0]}/{_family}.py: {type(_error).__name__}: {_error}'
        ) from _error
    for _name in _module.__all__:
        if _owners.get(_name, _module.__name__) != _module.__name__:
            raise BvtamError(f'{_module.__file__}: timm has a model {_name!r} already')
