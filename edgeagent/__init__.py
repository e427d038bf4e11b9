"""On-device ternary language model agent for embedded Linux."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeagent.api import Result as Result
    from edgeagent.api import TernaryTransformer as TernaryTransformer

__version__ = "0.1.0"
__all__ = ["Result", "TernaryTransformer", "__version__"]


def __getattr__(name: str) -> Any:
    """Load the Python API when it is first asked for; the daemon never does."""
    if name in ("Result", "TernaryTransformer"):
        from edgeagent import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
