"""The generated parts of README.md are as the programs that write them give them."""

import re
from pathlib import Path

import pytest

import bvtam

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tables(benchmark):
    return benchmark('tables')


def rows(text):
    return {line.split('`')[1]: line for line in text.splitlines() if line.startswith('| `')}


def test_model_table_has_every_model(tables):
    table = rows(
        (ROOT / 'README.md').read_text().partition('## Models')[2].partition('## Results')[0]
    )
    assert list(table) == bvtam.list_models()
    for name in ('bvtam_tiny_8x2', 'bvtam_r50_8x2', 'blresnet101', 'tsm_resnet50_f8'):
        assert table[name] == tables.model_row(name)


def test_benchmark_tables_are_the_recorded_ones(tables):
    text = (ROOT / 'README.md').read_text()
    for part in ('benchmark', 'peers', 'claims'):
        assert tables.PARTS[part]() in text


@pytest.mark.slow
def test_whole_model_table(tables):
    assert tables.model_table() in (ROOT / 'README.md').read_text()


def test_what_the_documentation_names_is_there():
    pages = [ROOT / 'README.md', ROOT / 'SECURITY.md', *(ROOT / 'docs').glob('*.md')]
    named = {
        name
        for page in pages
        for name in re.findall(r'\b(?:test|benchmarks/)\w*\.py', page.read_text())
    }
    assert len(named) > 20
    for name in named:
        assert (ROOT / name).exists() or (ROOT / 'tests' / name).exists(), name
    for page in pages:
        for link in re.findall(r'\]\((?!https?:|#)([^)#]+)', page.read_text()):
            assert (page.parent / link).exists(), (page.name, link)
