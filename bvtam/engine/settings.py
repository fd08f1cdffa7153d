"""Nested dataclasses from YAML and `key=value`: strict, with errors that name the setting in full."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import field, fields, is_dataclass
from itertools import chain
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from ..errors import BvtamError, nearest, shown


def setting(
    default: Any, help: str, choices: tuple = (), least: float = 0, most: float = 1e9
) -> Any:
    """A field of a dataclass, with what `list_settings` shows and `parse` checks.

    The default of a table is `dict` itself.
    """
    metadata = {'help': help, 'choices': choices, 'least': least, 'most': most}
    if default is dict:
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def read_yaml(text: str) -> Any:
    """The value of a YAML text, which may be of a stranger.

    Raises:
        ValueError: it is no YAML, too long or too deep, or its aliases stand for too much.
    """
    if len(text) > _LONGEST:
        raise ValueError(f'it has {len(text):,} characters, and a recipe at most {_LONGEST:,}')
    try:
        _written_out(yaml.compose(text, Loader=yaml.SafeLoader), {})
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError('its lists and tables are nested too deeply') from None


_LONGEST, _MOST_NODES = 200_000, 20_000


def _written_out(node: yaml.Node | None, sizes: dict[int, int]) -> int:
    """Values in a tree of YAML, those of an alias as often as it is used; each is visited once."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in sizes:
        sizes[id(node)] = _MOST_NODES  # for an alias inside of what it stands for
        inner = chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
        sizes[id(node)] = 1 + sum(_written_out(child, sizes) for child in inner)
        if sizes[id(node)] > _MOST_NODES:
            raise ValueError(f'its aliases stand for more than {_MOST_NODES:,} values')
    return sizes[id(node)]


def list_settings(cls: type, prefix: str = '') -> list[tuple[str, Any, str]]:
    """(full name, default, help) of every setting in a dataclass and those inside of it."""
    found = []
    for f in fields(cls):
        kind = get_type_hints(cls)[f.name]
        if is_dataclass(kind):
            found += list_settings(kind, f'{prefix}{f.name}.')
        else:
            default = {} if f.default_factory is dict else f.default
            choices = f.metadata['choices']
            text = f.metadata['help'] + (f' ({", ".join(choices)})' if choices else '')
            found.append((prefix + f.name, default, text))
    return found


def override(cls: type, values: dict[str, Any], pair: str) -> None:
    """Applies `key=value` to the table of a `cls`; the key is a full name or an unambiguous last part."""
    key, found, text = pair.partition('=')
    if not found or not key:
        raise BvtamError(f'{pair!r} is no setting: write KEY=VALUE, as in lr=0.01')
    names = [name for name, _, _ in list_settings(cls)]
    if key not in names and key.partition('.')[0] not in ('clip', 'model_options'):
        matches = [name for name in names if name.rpartition('.')[2] == key]
        if len(matches) != 1:
            parts = [*names, *(name.rpartition('.')[2] for name in names)]
            hint = f': {" or ".join(matches)}' if matches else nearest(key, parts)
            raise BvtamError(f'unknown setting {key!r}{hint}')
        (key,) = matches
    try:
        value = read_yaml(text) if text else ''
    except ValueError:
        value = text
    *sections, last = key.split('.', 1) if key.startswith('clip.') else key.split('.')
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise BvtamError(f'recipe: {section} must be a table of settings, not {shown(inner)}')
        values = inner
    values[last] = value


def parse(cls: type, values: Any, where: str = '', whole: type | None = None) -> Any:
    """`values` as an instance of the dataclass `cls`; `where` is its place in the recipe `whole`."""
    whole = whole or cls
    if not isinstance(values, Mapping):
        raise BvtamError(
            f'recipe: {where.rstrip(".") or "it"} must be a table of settings, not {shown(values)}'
        )
    kinds = get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}
    parsed = {}
    for key, value in values.items():
        if key not in known:
            inner = {name.rpartition('.')[2]: name for name, _, _ in list_settings(whole)}
            meant = f'; did you mean {inner[key]}?' if key in inner else ''
            near = nearest(str(key), known) or meant
            raise BvtamError(f'recipe: unknown setting {where}{key}{near}')
        if is_dataclass(kinds[key]):
            parsed[key] = parse(kinds[key], value, f'{where}{key}.', whole)
        else:
            parsed[key] = _value(value, kinds[key], known[key].metadata, where + key)
    return cls(**parsed)


def _value(value: Any, kind: Any, meta: Mapping[str, Any], name: str) -> Any:
    if kind is float and isinstance(value, str):  # YAML 1.1 takes 1e-3 for a string
        with suppress(ValueError):
            value = float(value)
    if kind is float and type(value) is int:
        with suppress(OverflowError):
            value = float(value)
    if kind is str and type(value) in (int, float, type(None)):  # a folder may be named 2024
        value = '' if value is None else str(value)
    if kind is str and type(value) is bool and meta['choices']:  # and off for false
        value = 'on' if value else 'off'
    if isinstance(kind, UnionType) and isinstance(
        value, tuple(get_origin(k) or k for k in get_args(kind))
    ):
        return value
    plain = dict if kind not in (str, int, float, bool) else kind
    if type(value) is not plain:
        wanted = {dict: 'a table', str: 'a string', int: 'a whole number', float: 'a number'}
        raise BvtamError(
            f'recipe: {name} must be {wanted.get(plain, "true or false")}, not {shown(value)}'
        )
    if meta['choices'] and value not in meta['choices']:
        raise BvtamError(
            f'recipe: {name} must be one of {", ".join(meta["choices"])}, not {shown(value)}'
        )
    if kind in (int, float) and not meta['least'] <= value <= meta['most']:
        raise BvtamError(
            f'recipe: {name} must be from {meta["least"]:g} to {meta["most"]:g}, not {shown(value)}'
        )
    return value
