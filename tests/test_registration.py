"""timm knows the names once it and bvtam are imported, in any order, by any program or module."""

import ast
import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import bvtam
from bvtam.after_import import after_import

PACKAGE = Path(bvtam.__file__).parent


def run(*arguments):
    path = os.pathsep.join([str(PACKAGE.parent), os.environ.get('PYTHONPATH', '')])
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {'PYTHONPATH': path},
    )


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The name of a small package, and a function that writes its code."""
    monkeypatch.syspath_prepend(tmp_path)
    name = 'imported_after'
    (tmp_path / name).mkdir()

    def write(code=''):
        (tmp_path / name / '__init__.py').write_text(code)
        importlib.invalidate_caches()

    write()
    yield name, write
    sys.modules.pop(name, None)


def test_the_action_runs_once_when_the_import_has_ended(package):
    name, write = package
    write('done = False\nimport time; time.sleep(0.1)\ndone = True')
    calls, before = [], list(sys.meta_path)
    after_import(name, lambda: calls.append(sys.modules[name].done))
    assert importlib.util.find_spec(name) and not calls  # only asked for
    threads = [threading.Thread(target=importlib.import_module, args=(name,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [True] and sys.meta_path == before
    importlib.reload(sys.modules[name])
    assert calls == [True]
    after_import(name, lambda: calls.append('at once'))
    assert calls == [True, 'at once'] and sys.meta_path == before


def test_an_import_that_fails_can_be_tried_again(package):
    name, write = package
    write('1 / 0')
    calls = []
    after_import(name, lambda: calls.append(sys.modules[name].value))
    with pytest.raises(ZeroDivisionError):
        importlib.import_module(name)
    write('value = 3')
    assert importlib.import_module(name).value == 3 and calls == [3]


def test_a_package_that_is_not_there_is_missed_as_ever():
    before = list(sys.meta_path)
    after_import('not_installed', lambda: pytest.fail('not imported'))
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module('not_installed')
    sys.meta_path[:] = before


KNOWN = "import timm; assert timm.is_model('bvtam_tiny_8x2')\n"
LIGHT = "import sys, bvtam; assert not {'torch', 'timm', 'numpy'} & {*sys.modules}\n"
WORKER = """
from multiprocessing import get_context
def known(name):
    return timm.create_model(name, num_classes=2).num_classes
if __name__ == '__main__':
    with get_context('spawn').Pool(1) as pool:
        assert pool.map(known, ['bvtam_tiny_8x2']) == [2]
"""


@pytest.mark.parametrize(
    ('file', 'code'),
    [('bvtam', LIGHT + KNOWN + WORKER), ('elsewhere/train.py', 'import timm, bvtam\n' + KNOWN)],
)
def test_a_script_has_the_models(tmp_path, file, code):
    """Also one of the program's name, in its workers too, whichever is imported first."""
    script = tmp_path / file
    script.parent.mkdir(exist_ok=True)
    script.write_text(code)
    done = run(script)
    assert done.returncode == 0, done.stderr


def test_every_module_can_be_the_first(tmp_path):
    """The first import of timm may be in the middle of one that the factory needs."""
    first = [
        '.'.join(path.relative_to(PACKAGE.parent).with_suffix('').parts).removesuffix('.__init__')
        for room in ('layers', 'weights', 'models', 'hub')
        for path in sorted((PACKAGE / room).rglob('*.py'))
        if any(
            (isinstance(node, ast.ImportFrom) and (node.module or '').startswith('timm'))
            or (isinstance(node, ast.Import) and node.names[0].name == 'timm')
            for node in ast.parse(path.read_text()).body
        )
    ]
    assert {'bvtam.layers.residual', 'bvtam.hub.cards', 'bvtam.models.blvnet'} <= set(first)
    script = tmp_path / 'each.py'
    script.write_text(
        f"""
import importlib, os, torch, torchvision
for name in {first}:
    if not (child := os.fork()):
        importlib.import_module(name)
        import timm, bvtam
        os._exit(0 if timm.is_model('bvtam_tiny_8x2') and bvtam.list_models('bvtam_tiny*') else 3)
    assert os.waitpid(child, 0)[1] == 0, name
"""
    )
    done = run(script)
    assert done.returncode == 0, done.stderr


def test_threads_that_import_first_all_know_the_models():
    done = run('-c', THREADS)
    assert len(done.stdout.split()) == 8 and len({*done.stdout.split()}) == 1, done.stderr


THREADS = """
import importlib, threading
import bvtam

importlib.reload(bvtam)  # as notebooks do


def by_timm():
    import timm
    counts.append(len([name for name in timm.list_models() if name in bvtam.list_models()]))


def by_bvtam():
    counts.append(len(bvtam.list_models()))


counts = []
threads = [threading.Thread(target=ask) for ask in (by_timm, by_bvtam) * 4]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(*counts)
"""
