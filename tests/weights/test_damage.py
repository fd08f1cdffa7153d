"""Damaged zoo folders and names: all are refused, in one line, soon and in little memory."""

import itertools
import json
import os
import pickle
import random
import re
import shutil
import struct
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import bvtam
from bvtam.errors import BvtamError

ALLOWED = (BvtamError, ValueError, FileNotFoundError)
LOADS, MEMORY = 100, 200_000_000  # a refusal costs at most: times of loading, bytes
NAME = 'bvtam_tiny_8x2'


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ('bomb_went_off',))


class Zoo:
    """One good folder, and the means to write damaged copies of it."""

    def __init__(self, root):
        model = bvtam.create_model(NAME, num_classes=3)
        model.label_names = ['a', 'b', 'c']
        self.good = bvtam.save_pretrained(model, root / 'good')
        self.root, self.folder = root, root / 'model'
        self.config = json.loads((self.good / 'config.json').read_text())
        self.whole = (self.good / 'model.safetensors').read_bytes()
        (length,) = struct.unpack('<Q', self.whole[:8])
        self.header = json.loads(self.whole[8 : 8 + length])
        self.body = self.whole[8 + length :]
        self.names = [n for n in self.header if n != '__metadata__']
        self.floats = [n for n in self.names if self.header[n]['dtype'] == 'F32']

    def write(self, weights=None, config=None, folder=None):
        """A folder with these contents: bytes, text or a table; None for the good ones."""
        folder = folder or self.folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        config = self.config if config is None else config
        config = json.dumps(config) if isinstance(config, dict) else config
        config = config.encode() if isinstance(config, str) else config
        (folder / 'config.json').write_bytes(config)
        (folder / 'model.safetensors').write_bytes(self.whole if weights is None else weights)
        return f'local-dir:{folder}'

    def tensors(self):
        """{name: [dtype, shape, bytes]} of the good weights."""
        entries = {name: self.header[name] for name in self.names}
        return {
            name: [entry['dtype'], entry['shape'], self.body[slice(*entry['data_offsets'])]]
            for name, entry in entries.items()
        }


def weight_file(tensors):
    """A valid safetensors file of {name: [dtype, shape, bytes]}."""
    header, start = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        end = start + len(data)
        header[name] = {'dtype': dtype, 'shape': list(shape), 'data_offsets': [start, end]}
        start = end
    return with_header(header, b''.join(data for _, _, data in tensors.values()))


def with_header(header, body, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text) if length is None else length) + text + body


def headers(zoo, rng):
    """Mutated safetensors headers; nothing in `__metadata__` or the padding, which nobody reads."""
    text = zoo.whole[8 : len(zoo.whole) - len(zoo.body)].rstrip()
    first = text.index(b'}') + 1 if text.startswith(b'{"__metadata__"') else 0
    for i in range(90):
        at, new = rng.randrange(first, len(text)), rng.randrange(256)
        # 'I64' as 'U64' holds the same counts, and a space between two words means nothing
        if new == text[at] or (text[at : at + 3] == b'I64' and new == ord('U')):
            new = 0
        mutated = text[:at] + bytes([new]) + text[at + 1 :]
        yield f'header byte {i}', with_header(mutated, zoo.body)
    for i in range(20):
        at = rng.randrange(first, len(text) - 10)
        mutated = text[:at] + rng.randbytes(9) + text[at + 9 :]
        yield f'header bytes {i}', with_header(mutated, zoo.body)
    size = len(text)
    lengths = (0, 1, 2, 7, size - 1, size // 2, size + 9, size + 1000, len(zoo.whole), 10**8 + 1)
    lengths += (2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 8)
    for length in lengths:
        yield f'header length {length}', with_header(text, zoo.body, length)
    for bad in (
        b'{}', b'[]', b'null', b'1', b'""', b'{', b'\xff\xfe{}', b'[' * 100_000, b' ' * 5000,
    ):  # fmt: skip
        yield f'header {bad[:4]!r}', with_header(bad, zoo.body)
    for name in rng.sample(zoo.floats, 4):
        entry = zoo.header[name]
        start, end = entry['data_offsets']
        for key, value in (
            ('dtype', 'F33'), ('dtype', None), ('dtype', ['F32']), ('dtype', 'I32'),
            ('shape', [2**62]), ('shape', [2**32, 2**32]), ('shape', [-1]), ('shape', [1.5]),
            ('shape', None), ('shape', [10**30]), ('shape', [0]), ('data_offsets', [end, start]), ('data_offsets', [start, 2**63]),
            ('data_offsets', [start]), ('data_offsets', [-1, end]), ('data_offsets', [0, 0]),
            ('data_offsets', [start, end + 4]),
        ):  # fmt: skip
            entries = {**zoo.header, name: {**entry, key: value}}
            yield f'{name}: {key} {value}', with_header(entries, zoo.body)
        yield f'{name} is null', with_header({**zoo.header, name: None}, zoo.body)
        without = {k: v for k, v in entry.items() if k != 'dtype'}
        yield f'{name} has no dtype', with_header({**zoo.header, name: without}, zoo.body)
    many = {f'x{i}': {'dtype': 'F32', 'shape': [0], 'data_offsets': [0, 0]} for i in range(50_000)}
    yield 'many empty tensors', with_header(many, b'')
    entry = json.dumps(zoo.header['fc.weight']).encode()
    yield 'a name twice', with_header(text[:-1] + b',"fc.bias":' + entry + b'}', zoo.body)


def bodies(zoo, rng):
    """Cut and lengthened files, and other formats under the same name."""
    size = len(zoo.whole)
    for cut in (0, 1, 7, 8, 9, 100, size // 2, size - 1, *(rng.randrange(size) for _ in range(24))):
        yield f'cut to {cut} bytes', zoo.whole[:cut]
    for extra in (1, 4, 1000):
        yield f'{extra} bytes more', zoo.whole + b'\0' * extra
    yield 'zeros', b'\0' * size
    yield 'noise', rng.randbytes(10_000)
    yield 'a pickle that runs code', pickle.dumps(Bomb())
    path = zoo.root / 'bomb.pth'
    torch.save({'state_dict': Bomb()}, path)
    yield 'a checkpoint that runs code', path.read_bytes()
    path.unlink()
    yield 'a pointer of git-lfs', b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n'


def weights(zoo, rng):
    """Valid safetensors files of other weights."""
    good = zoo.tensors()
    for name in rng.sample(zoo.names, 12):
        yield f'{name} missing', {n: t for n, t in good.items() if n != name}
    for name in rng.sample(zoo.names, 4):
        for new in (f'{name}_', f'module.{name}', name.upper(), f'{name}\n', ''):
            yield f'{name} renamed {new!r}', {new if n == name else n: t for n, t in good.items()}
    one = ['F32', [1], b'\0' * 4]
    for name in ('x', 'state_dict', 'model', 'state_dict_ema', '../x', 'a\nb', '\0', 'x' * 100_000,
                 '\u2028', 'stem.conv1.bias', 'fc', '__class__', 'fc.weight '):  # fmt: skip
        yield f'extra {name[:20]!r}', {**good, name: one}
    yield 'nothing', {}
    yield 'other names', {f'layer.{i}': t for i, t in enumerate(good.values())}
    for name in ['fc.weight', 'fc.bias', 'stem.conv1.weight', *rng.sample(zoo.floats, 10)]:
        dtype, shape, data = good[name]
        shapes = [[*shape, 1], [len(data) // 4 + 1], [0]]
        if len(shape) > 1:
            shapes += [[len(data) // 4], [1, *shape], shape[1:]]
            shapes += [shape[::-1]] if shape[::-1] != shape else []
        for new in shapes:
            count = torch.Size(new).numel()
            new_data = (data * (count * 4 // len(data) + 1))[: count * 4]
            yield f'{name} of shape {new}', {**good, name: [dtype, new, new_data]}
    wide = good['stem.conv1.weight']
    yield 'first convolution of 4 channels', {
        **good, 'stem.conv1.weight': ['F32', [wide[1][0], 4, 7, 7],
        b'\0' * wide[1][0] * 4 * 49 * 4],
    }  # fmt: skip
    yield 'head of 5 classes', {
        **good, 'fc.weight': ['F32', [5, 512], b'\0' * 10240], 'fc.bias': ['F32', [5], b'\0' * 20],
    }  # fmt: skip
    sizes = {'I64': 8, 'I32': 4, 'I8': 1, 'U8': 1, 'BOOL': 1, 'F8_E4M3': 1, 'F8_E5M2': 1, 'C64': 8,
             'F8_E8M0': 1, 'U16': 2}  # fmt: skip
    for name in ('fc.bias', rng.choice(zoo.floats)):
        _, shape, data = good[name]
        for dtype, size in sizes.items():
            new_data = b'\0' * (len(data) // 4 * size)
            yield f'{name} as {dtype}', {**good, name: [dtype, shape, new_data]}
    count = next(n for n in zoo.names if good[n][0] == 'I64')
    for dtype, size in (('F32', 4), ('F64', 8), ('BOOL', 1), ('F8_E4M3', 1)):
        yield f'{count} as {dtype}', {**good, count: [dtype, [], b'\0' * size]}
    for name in ['fc.weight', 'fc.bias', 'stem.conv1.weight', *rng.sample(zoo.floats, 12)]:
        dtype, shape, data = good[name]
        for value in (float('nan'), float('inf'), -float('inf')):
            at = rng.randrange(len(data) // 4) * 4
            new_data = data[:at] + struct.pack('<f', value) + data[at + 4 :]
            yield f'{name} has a {value}', {**good, name: [dtype, shape, new_data]}
    overflows = {'F64': struct.pack('<d', 1e300), 'F16': b'\0\x7c', 'BF16': b'\x80\x7f'}
    for dtype, pattern in overflows.items():
        yield f'overflow of {dtype}', {**good, 'fc.bias': [dtype, [3], pattern * 3]}


VALUES = (None, True, -1, 0.5, 1e300, 10**12, 10**400, 'x', 'a\nb', '', [], {}, [[]], [None], {'a': 1})  # fmt: skip
# The same to every reader: keys that only describe a model, null for what may be absent.
TEXTS = {'interpolation', 'crop_mode', 'license'}
NULLS = {'label_names', 'pool_size', 'license', 'first_conv', 'classifier'}
TABLES = {'model_args', 'pretrained_cfg', 'clip'}


def harmless(table, key, good, bad):
    if bad is None:
        return key in NULLS
    if bad == {} or (bad == [] and table == 'pretrained_cfg' and key != 'input_size'):
        return type(bad) is type(good)
    if type(good) is bool:
        return type(bad) is bool and key != 'fixed_input_size'
    return table == 'pretrained_cfg' and (
        (type(bad) is str and key in TEXTS)
        or (type(bad) in (int, float) and type(good) is float)  # a number for a number
    )


def config_values(zoo):
    """(path of keys, another value) for every key; what would still be right is left out."""
    paths = [(key,) for key in zoo.config] + [(t, key) for t in TABLES for key in zoo.config[t]]
    for path in sorted(paths):
        table = path[0] if len(path) == 2 else ''
        good = zoo.config[table][path[1]] if table else zoo.config[path[0]]
        for bad in VALUES:
            if not harmless(table, path[-1], good, bad):
                yield path, bad


def changed(table, path, value):
    if len(path) == 1:
        return {**table, path[0]: value}
    return {**table, path[0]: changed(table[path[0]], path[1:], value)}


def configs(zoo, rng):
    for path, value in config_values(zoo):
        yield f'{".".join(path)} = {value!r:.30}', changed(zoo.config, path, value)
    others = {
        'architecture': ['blresnet50', 'tsn_resnet50_f8', 'tam_resnet50_f8', 'resnet50',
            f'{NAME}.x', f'local-dir:{zoo.good}', '../good', 'x' * 1_000_000, '\ud800'],
        'num_classes': [5, 0],
        'num_features': [513],
        'global_pool': ['max'],
        'label_names': [['a', 'b'], ['a', 'b', 3], ['a', 'b', 'c', 'd'],
            {'0': 'a', '1': 'b', '2': 'c'}],
        'model_args.layers': [[10**6] * 4, [64] * 4, [200] * 4, [0] * 4, [2, 2, 2],
            [2, 2, 2, 2.0], [2, 2, 2, 3], [[2, 2, 2, 2]]],
        'model_args.width': [10**9, 4096, 17, 0],
        'model_args.in_chans': [10, 0, 10**9],
        'model_args.num_classes': [4, 0, 10**6],
        'model_args.global_pool': ['max', '../x'],
        'model_args.alpha': [0, 4],
        'model_args.beta': [0, -1],
        'model_args.temporal': ['none', 'tsm', 'os.system'],
        'model_args.temporal_range': [5, 4, 10**9],
        'model_args.drop_rate': [2, 'x'],
        'model_args.drop_path_rate': [-0.1],
        'model_args.unknown': [1],
        'model_args.allow_pickle': [True],
        'model_args.pretrained_cfg_overlay': [{'source': 'file', 'file': 'bomb.pth'}],
        'model_args.self': [1],
        'pretrained_cfg.unknown': [1],
        'pretrained_cfg.first_conv': ['stem', '../x'],
        'pretrained_cfg.classifier': ['layer1'],
        'pretrained_cfg.input_size': [[4, 224, 224], [10**9, 224, 224], [0, 224, 224],
            [3, 10**12, 224], [3, 224], [3.0, 224, 224], '3x224x224'],
        'pretrained_cfg.label_offset': [1, 'x'],
        'pretrained_cfg.fixed_input_size': [True],
        'pretrained_cfg.mean': [['x', 'y', 'z']],
        'clip.unknown': [1],
        'clip.num_frames': [10**12, 0, 16.0],
        'clip.sampling': ['Uniform'],
        'clip.crop_size': [225],
        'clip.mean': [[0.5] * 2, [10**400] * 3],
        'clip.std': [[0, 1, 1], [-1, 1, 1], ['1', '1', '1']],
        'clip.num_crops': [2],
        'clip': [[['num_frames', 8]]],
    }  # fmt: skip
    for key, values in others.items():
        for value in values:
            path = tuple(key.split('.'))
            yield f'{key} = {value!r:.30}', changed(zoo.config, path, value)
    for key in ('architecture', 'num_classes'):
        yield f'no {key}', {k: v for k, v in zoo.config.items() if k != key}
    text = json.dumps(zoo.config)
    consistent = {'num_classes': 10**6, 'in_chans': 1000, 'width': 4096}
    for key, value in consistent.items():
        config = changed(zoo.config, ('model_args', key), value)
        if key == 'num_classes':
            config |= {key: value, 'label_names': None}
        if key == 'in_chans':
            config = changed(config, ('pretrained_cfg', 'input_size'), [value - 1, 224, 224])
            config = changed(config, ('model_args', key), value - 1)
        yield f'consistently {key} = {value}', config
    yield 'no width', zoo.config | {'model_args': {}, 'architecture': 'bvtam_r50_8x2'}
    yield 'empty', ''
    yield 'a list', '[]'
    yield 'a string', '"x"'
    yield 'null', 'null'
    yield 'an empty table', '{}'
    yield 'a byte order mark', '\ufeff' + text
    yield 'invalid UTF-8', b'\xff' + text.encode()
    yield 'NaN', text.replace('"crop_pct": 1.0', '"crop_pct": NaN')
    yield 'infinity', text.replace('"crop_pct": 1.0', '"crop_pct": 1e999')
    yield 'a key twice', '{"num_classes": 3, ' + text[1:]
    yield 'an inner key twice', text.replace('"width": 16', '"width": 16, "width": 16')
    yield 'text after it', text + '}'
    for depth in (100, 1000, 100_000, 1_000_000):
        yield f'{depth} lists deep', text.replace('"clip": {', '"clip": ' + '[' * depth + '{')
        yield f'{depth} tables deep', '{"model_args":' * depth + '1' + '}' * depth
    yield 'spaces before it', ' ' * 50_000_000 + text
    yield 'many empty lists', '{"model_args":[' + '[],' * 650_000 + '[]]}'
    yield 'many labels', json.dumps({**zoo.config, 'label_names': ['a'] * 390_000})
    yield 'a long number', text.replace('"num_classes": 3', '"num_classes": ' + '9' * 1_000_000)
    yield 'a NUL', text.replace(NAME, f'{NAME}\\u0000')
    for i in range(30):
        cut = rng.randrange(1, len(text) - 1)
        yield f'cut {i}', text[:cut]
    for i in range(20):
        at = rng.choice([m.start() for m in re.finditer(r'[{}\[\],:]', text)])
        yield f'punctuation {i}', text[:at] + rng.choice('{[;\x00x') * 2 + text[at + 1 :]


def names(zoo):
    """Names that are none, or that try to leave the zoo; the good folder lies in it under a tag."""
    base = zoo.good.parent
    for name in (
        '../x', '/etc/passwd', '..', '', ' ', '*', '*.mine', '[a]', f'{NAME[:-1]}?', f'{NAME}.*',
        f'{NAME}.[m]ine', f'{NAME}.../mine', f'{NAME}.mine/', f'{NAME}.mine/../{NAME}.mine',
        f'{NAME}.\\mine', f'{NAME}.mine\0', f'{NAME}.mine ', f'{NAME}.MINE', f'{NAME}.mine\n',
        f'{NAME}.' + 'x' * 5000, 'x' * 1_000_000, f'{NAME}\0.mine', f'{NAME}.nothing',
        f'{NAME}..mine', f'.{NAME}.mine', f'{NAME}.\ud800', f'./{NAME}.mine', f'{base}/{NAME}.mine',
        f'file:{zoo.good}', 'http://127.0.0.1/x', 'pickle:x',
        'local-dir:', 'local-dir:\0', 'local-dir:a\nb', 'local-dir:' + 'x' * 5000, 'local-dir:.',
        'local-dir:' + 'x/' * 5000, 'local-dir:..', f'local-dir:{zoo.good}/../nothing',
        f'local-dir:{zoo.good}/model.safetensors', f'local-dir:{zoo.good}/config.json/..',
        f'local-dir:{zoo.good}\0', 'local-dir:~/x', f'local-dir:file://{zoo.good}',
        'local-dir:\ud800', f'local-dir:{zoo.good}*',
        'hf-hub:', 'hf-hub:a', 'hf-hub:a/b', 'hf-hub:a/b@', 'hf-hub:a/b@x', 'hf-hub:a/b/c',
        'hf-hub:../x', f'hf-hub:{zoo.good}', 'hf-hub:a/..', 'hf-hub:a/b\0', 'hf-hub:a/b\n',
        'hf-hub:' + 'x' * 5000, 'hf-hub:a/' + 'x' * 97, 'hf-hub:a/b@' + 'x' * 5000,
        'hf-hub:a/b@\0', 'hf-hub:a/b@a\nb', 'hf-hub:a/b@../../../good',
        f'hf-hub:a/b@../../../zoo/{NAME}.mine', 'hf-hub:a/b@x/../../../../good',
        f'hf-hub:a/b@{zoo.good}', 'hf-hub:a/b@' + '../' * 90, 'hf-hub:https://huggingface.co/a/b',
        'hf-hub:\ud800/x', 'hf_hub:a/b', 'hf-hub:a--b',
    ):  # fmt: skip
        yield f'name {name[:60]!r}', name


def files(zoo):
    """Files that are no regular ones, or not there; each writes the folder and returns its name."""

    def replaced(file, make):
        def write():
            name = zoo.write()
            (zoo.folder / file).unlink()
            make(zoo.folder / file)
            return name

        return write

    makers = {
        'missing': lambda path: None,
        'a folder': Path.mkdir,
        'a link to itself': lambda path: path.symlink_to(path.name),
        'a link to nothing': lambda path: path.symlink_to('nothing'),
        'a pipe': os.mkfifo,
        'a device': lambda path: path.symlink_to('/dev/null'),
        'an endless device': lambda path: path.symlink_to('/dev/zero'),
    }
    for what, make in makers.items():
        for file in ('config.json', 'model.safetensors'):
            yield f'{file} is {what}', replaced(file, make)

    for name in ('pytorch_model.bin', 'model.pth', 'x.pth', 'open_clip_model.safetensors'):

        def bomb_beside(path, name=name):
            torch.save({'state_dict': Bomb()}, path.with_name(name))

        yield f'no weights, but {name}', replaced('model.safetensors', bomb_beside)

    def folder_loop():
        name = zoo.write()
        shutil.rmtree(zoo.folder)
        zoo.folder.symlink_to(zoo.folder.name)
        return name

    yield 'the folder is a link to itself', folder_loop


def by_name(zoo, rng):
    """Folders that a name finds in `BVTAM_ZOO`, with their hashes."""
    folder = zoo.root / 'zoo' / f'{NAME}.hashed'
    sums = (zoo.good / 'SHA256SUMS').read_bytes()
    first = sums.splitlines()[0]

    def case(weights=None, sums=sums, golden=True, change=None):
        def write():
            zoo.write(weights=weights, folder=folder)
            if golden:
                shutil.copy(zoo.good / 'golden.safetensors', folder)
            if sums is not None:
                (folder / 'SHA256SUMS').write_bytes(sums)
            if change:
                change(folder)
            return folder.name

        return write

    start = len(zoo.whole) - len(zoo.body)
    for i in range(25):  # finite values of the right shape: only the hash tells
        at = rng.randrange(start, len(zoo.whole))
        flipped = bytes([zoo.whole[at] ^ 1 << rng.randrange(8)])
        yield f'flipped bit {i}', case(zoo.whole[:at] + flipped + zoo.whole[at + 1 :])
    for what, text in {
        'empty': b'', 'other hash': b'0' * 64 + first[64:], 'no names': first[:64],
        'noise': rng.randbytes(99), 'other file': sums.replace(b'model', b'other'),
        'a path': sums.replace(b'model', b'../../model'),
        'no weights': sums.splitlines()[1], 'large': b'x' * 10_000_000, 'no hash': first[64:],
        'invalid UTF-8': sums + b'\xff\n', 'NUL': sums + b'0  \0\n',
    }.items():  # fmt: skip
        yield f'SHA256SUMS: {what}', case(sums=text)
    yield 'hashed file missing', case(golden=False)
    yield 'hashed file cut', case(zoo.whole[:-4])
    for content in (b'', pickle.dumps(Bomb()), zoo.whole[:-4]):
        yield f'no hashes, {len(content)} bytes', case(content, sums=None)

    def becomes_a_folder(file):
        def change(path):
            (path / file).unlink()
            (path / file).mkdir()

        return change

    yield 'SHA256SUMS is a folder', case(change=becomes_a_folder('SHA256SUMS'))
    weights_folder = becomes_a_folder('model.safetensors')
    yield 'weights by name are a folder', case(change=weights_folder)
    yield 'the same without hashes', case(sums=None, change=weights_folder)

    def other_architecture(path):
        config = json.dumps({**zoo.config, 'architecture': 'bvtam_r50_8x2'})
        (path / 'config.json').write_text(config)

    yield 'of another architecture', case(change=other_architecture)
    yield 'without config', case(change=lambda path: (path / 'config.json').unlink())


def all_cases(zoo):
    """(what, a function that writes the folder and returns the name to load)."""
    rng = random.Random(0)
    for what, content in itertools.chain(headers(zoo, rng), bodies(zoo, rng)):
        yield what, lambda c=content: zoo.write(weights=c)
    for what, tensors in weights(zoo, rng):
        yield what, lambda t=tensors: zoo.write(weights=weight_file(t))
    for what, config in configs(zoo, rng):
        yield f'config: {what}', lambda c=config: zoo.write(config=c)
    for what, name in names(zoo):
        yield what, lambda n=name: n
    yield from files(zoo)
    yield from by_name(zoo, rng)


def memory(key):
    """Bytes of memory now ('VmRSS') or at most since `forget_peak` ('VmHWM')."""
    return int(re.search(rf'{key}:\s+(\d+)', Path('/proc/self/status').read_text())[1]) * 1024


def forget_peak():
    Path('/proc/self/clear_refs').write_text('5')


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setenv('BVTAM_ZOO', str(tmp_path / 'zoo'))
    zoo = Zoo(tmp_path)
    shutil.copytree(zoo.good, tmp_path / 'zoo' / f'{NAME}.mine')
    (tmp_path / 'hub' / 'models--a--b' / 'snapshots' / 'x').mkdir(parents=True)
    return zoo


def outcome(name):
    """The fault in how `name` is refused, or '' if nothing is."""
    try:
        bvtam.create_model(name, pretrained=True)
    except ALLOWED as error:
        text = str(error)
        plain = text and len(text) < 2500 and text.isprintable()
        return '' if plain else f'{type(error).__name__} says {text[:200]!r}'
    except Exception as error:
        return f'{type(error).__name__}: {error}'[:300]
    return 'loads'


@pytest.mark.parametrize('step', [5, pytest.param(1, marks=pytest.mark.slow)])
def test_damage_is_refused(zoo, step):
    """Every fifth case, from all kinds of them, and all in the slow test."""
    measure = os.access('/proc/self/clear_refs', os.W_OK)
    wrong, count = [], 0
    name = zoo.write()
    start = time.process_time()
    for _ in range(3):
        assert outcome(name) == 'loads'
    limit = LOADS * (time.process_time() - start) / 3
    for what, write in itertools.islice(all_cases(zoo), 0, None, step):
        name = write()
        if measure:
            forget_peak()
            before = memory('VmRSS')
        start = time.process_time()
        fault = outcome(name)
        seconds = time.process_time() - start
        grown = memory('VmHWM') - before if measure else 0
        size = max((p.stat().st_size for p in zoo.folder.glob('*') if p.is_file()), default=0)
        if seconds > limit:
            fault += f' after {seconds:.1f} s'
        if grown > MEMORY + size:
            fault += f' with {grown / 1e6:.0f} MB'
        if fault:
            wrong.append(f'{what}: {fault}')
        count += 1
    assert not wrong, f'{len(wrong)} of {count}:\n' + '\n'.join(wrong)
    assert count >= 1250 // step
    assert not list(zoo.root.rglob('bomb_went_off'))


def test_harmless_changes_load(zoo):
    """Keys that a later version may add, or that only describe; forms that an older tool writes."""

    def without(*path):
        config = json.loads(json.dumps(zoo.config))
        table = config
        for key in path[:-1]:
            table = table[key]
        del table[path[-1]]
        return config

    good = zoo.tensors()
    bias = torch.frombuffer(bytearray(good['fc.bias'][2]), dtype=torch.float32)

    def cast(dtype, kind):
        data = bias.to(kind).view(torch.uint8).numpy().tobytes()
        return weight_file({**good, 'fc.bias': [dtype, [3], data]})

    counts = {n: ['I32', [], t[2][:4]] if t[0] == 'I64' else t for n, t in good.items()}
    configs = {
        'unknown key': {**zoo.config, 'added_later': {'a': [1]}},
        'no labels': without('label_names'),
        'labels are null': {**zoo.config, 'label_names': None},
        'no clip': without('clip'),
        'no flip': without('clip', 'flip'),
        'no num_features': without('num_features'),
        'no global_pool': without('global_pool'),
        'no model_args': without('model_args'),
        'no layers': without('model_args', 'layers'),
        'no pretrained_cfg': without('pretrained_cfg'),
        'no crop_mode': without('pretrained_cfg', 'crop_mode'),
        'another licence': changed(zoo.config, ('pretrained_cfg', 'license'), 'mit'),
        'another dropout': changed(zoo.config, ('model_args', 'drop_rate'), 0),
        'a notes key of timm': changed(zoo.config, ('pretrained_cfg', 'notes'), ['a', 'b']),
        'a name of the same model': {**zoo.config, 'architecture': 'bvtam_r50_16x2'},
        'keys sorted': json.dumps(zoo.config, sort_keys=True, indent='\t'),
        'spaces': ' ' * 10_000 + json.dumps(zoo.config) + '\n' * 10_000,
        'escapes': json.dumps(zoo.config).replace('tiny', '\\u0074iny'),
    }
    files = {
        'half precision': cast('F16', torch.float16),
        'bfloat16': cast('BF16', torch.bfloat16),
        'double precision': cast('F64', torch.float64),
        'counts of 32 bits': weight_file(counts),
        'another order': weight_file(dict(reversed(good.items()))),
        'no metadata': weight_file(good),
    }
    cases = [(what, lambda c=c: zoo.write(config=c)) for what, c in configs.items()]
    cases += [(what, lambda w=w: zoo.write(weights=w)) for what, w in files.items()]
    cases += [
        (name, lambda name=name: name)
        for name in (
            f'local-dir:{zoo.root}/zoo/../good', 'local-dir:good', 'local-dir:./good/',
            f'{NAME}.mine', NAME,
        )
    ]  # fmt: skip
    wrong = {what: fault for what, write in cases if (fault := outcome(write())) != 'loads'}
    assert not wrong
