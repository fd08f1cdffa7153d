"""What runs by default, and what only `pytest -m slow` runs."""

import pytest


def some(values, quick):
    """The values as parameters; those that are not `quick` are marked slow."""
    assert all(v in values for v in quick)
    return [v if v in quick else pytest.param(v, marks=pytest.mark.slow) for v in values]
