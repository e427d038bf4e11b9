"""Where the package keeps what it ships."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def bundled_model() -> Path:
    """The model directory inside the package: needs no download."""
    return _PACKAGE / "bundled" / "edge-tiny"


def previous_release_delta() -> Path:
    """The delta from the bundled release back to the one before it, for `edgeagent demo`."""
    return _PACKAGE / "bundled" / "previous.etd"
