"""The generated parts of README.md are as the programs that write them give them."""

import importlib
from pathlib import Path

import pytest

import bvtam

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    not (ROOT / 'benchmarks').is_dir(), reason='README and benchmarks are part of the checkout'
)


@pytest.fixture(scope='module')
def tables():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / 'benchmarks')
        yield importlib.import_module('tables')


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
