"""What the agent logs: events, not sentences.

    query.done id=q1 tokens=30

Code logs through the standard library, with the event's name first and ``key=value`` after it; this
module only gives the lines their form and way: to the journal with fields and a catalog id when
systemd connected standard error to it, else to standard error.  Prompts and answers are never
logged.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping

from edgeagent.adapters.journal import JournalHandler, is_our_stderr

_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


class _Prefixed(logging.Formatter):
    """Prefixes the priority of sd-daemon(3): ``<4>``."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        priority = next((p for level, p in _PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{part}" for part in line.split("\n"))


def install(environ: Mapping[str, str] | None = None) -> None:
    """Send the agent's events to the journal, or to standard error."""
    environ = os.environ if environ is None else environ
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    under_systemd = "JOURNAL_STREAM" in environ
    handler.setFormatter(
        _Prefixed("%(message)s") if under_systemd else logging.Formatter("%(asctime)s %(message)s")
    )
    if is_our_stderr(environ):
        handler = JournalHandler(fallback=handler)
        handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger("edgeagent")
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    root.propagate = False
