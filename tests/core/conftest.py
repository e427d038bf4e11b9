"""Fixtures of the core's tests; toy.py packs trits and makes random models."""

import pytest

from edgeagent import _core


@pytest.fixture(params=_core.supported_variants())
def variant(request):
    return request.param
