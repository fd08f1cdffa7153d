"""Libraries of the extras."""

import sys

import pytest

from bvtam.errors import BvtamError
from bvtam.optional import library


def test_a_library_that_is_there_missing_or_broken(monkeypatch, tmp_path):
    assert library('json.decoder', 'plot', 'a test').JSONDecoder
    with pytest.raises(BvtamError, match=r"^a test needs no_such: pip install 'bvtam\[plot\]'$"):
        library('no_such.module', 'plot', 'a test')
    (tmp_path / 'broken_one.py').write_text('import no_such_either')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BvtamError, match=r"'bvtam\[plot\]' \(No module named 'no_such_either'\)"):
        library('broken_one', 'plot', 'a test')
    assert 'broken_one' not in sys.modules
