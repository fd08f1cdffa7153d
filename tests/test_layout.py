"""Every module imports only from what stands before it in the order of the packages, in no circle."""

import ast
from pathlib import Path

import pytest

import bvtam

ROOT = Path(bvtam.__file__).parent
DATA = ['failures', 'video', 'records', 'list_formats', 'labels', 'lists', 'load', 'sampling', 'directions',
        'transforms', 'datasets', 'hub_datasets', 'external', 'motion', 'prepare']  # fmt: skip
MODULES = {
    path.relative_to(ROOT).with_suffix('').parts: path
    for path in sorted(ROOT.rglob('*.py'))
    if path.name not in ('__init__.py', '__main__.py')
}


def imports(module):
    """(module, line) of each import from the package, also of those inside functions."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        named = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        named += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert 'bvtam' not in {name.partition('.')[0] for name in named}, (
            f'{MODULES[module]}:{node.lineno}: imports within the package are relative'
        )
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = module[: len(module) - node.level] + tuple((node.module or '').split('.'))
        base = tuple(part for part in base if part)
        for name in [alias.name for alias in node.names]:
            target = base if base in MODULES else (*base, name)
            if target in MODULES:
                yield target, node.lineno


GRAPH = {module: list(imports(module)) for module in MODULES}


@pytest.fixture
def order(benchmark):
    return benchmark('tables').ORDER


def test_every_import_leads_to_what_stands_before(order):
    known = {'ORDER in benchmarks/tables.py': order, 'DATA in tests/test_layout.py': DATA}
    for depth, (where, names) in enumerate(known.items()):
        inside = {m: e for m, e in GRAPH.items() if not depth or m[0] == 'data'}
        for module, edges in inside.items():
            assert module[depth] in names, f'add {module[depth]!r} to {where}, after all it imports'
            for target, line in edges:
                if depth and target[0] != 'data':
                    continue
                upwards = names.index(target[depth]) > names.index(module[depth])
                assert not upwards, f'{MODULES[module]}:{line}: {".".join(target)} stands later'
    assert sum(map(len, GRAPH.values())) > 300


def test_no_circle_of_imports():
    done, path = set(), []

    def visit(module):
        assert module not in path, f'a circle: {[*path[path.index(module) :], module]}'
        if module not in done:
            path.append(module)
            for target, _ in GRAPH[module]:
                visit(target)
            done.add(path.pop())

    for module in MODULES:
        visit(module)
