import pytest

from tests.brokers import Mosquitto, mosquitto_path
from tests.ota.harness import make_fleet


@pytest.fixture
def mosquitto():
    """A fresh Mosquitto on a free port."""
    if mosquitto_path() is None:
        pytest.skip("mosquitto is not installed")
    with Mosquitto() as broker:
        yield broker


@pytest.fixture(scope="session")
def fleet(tmp_path_factory):
    """Two releases and their delta; read-only, tests that change it make their own."""
    return make_fleet(tmp_path_factory.mktemp("fleet"))
