"""What the tests of shards share."""

import pytest
from written import digits


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Indices of shards that cannot lie beside them go here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def images():
    """Real images of digits."""
    return digits()
