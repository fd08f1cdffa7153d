"""The lower bounds of pyproject.toml are the releases that `.ci/oldest` runs the tests with."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent


def test_bounds_are_what_is_tested():
    if not (ROOT / 'pyproject.toml').exists():
        pytest.skip('pyproject.toml is not beside an installed package')
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    extras = project['optional-dependencies'].values()
    wanted = [Requirement(line) for line in sum(extras, project['dependencies'])]
    tested = dict(line.split('==') for line in (ROOT / '.ci/oldest.txt').read_text().split())
    assert {want.name for want in wanted} - {'bvtam'} == set(tested)
    for want in wanted:
        if want.name == 'bvtam':
            continue
        (bound,) = want.specifier
        assert bound.operator == '>=', want
        assert Version(bound.version) == Version(tested[want.name]), want
