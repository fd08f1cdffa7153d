"""A Hub on this machine."""

import pytest
from support.local_hub import LocalHub


@pytest.fixture
def hub(monkeypatch):
    """This process talks to it as alice."""
    with LocalHub() as hub:
        hub.add_user('alice', 'hf_alice')
        hub.patch(monkeypatch)
        yield hub
