"""Everything that can go wrong, sorted by who must act.

    EdgeAgentError
      ConfigError         the operator wrote something wrong       exit 78, do not restart
      ProtocolError       a peer sent something wrong              answer with an error, stay up
        QueryRefused        a well-formed query that we will not run now
      ModelError          the model file is wrong                  refuse to load, report
      ContextFull         the prompt does not fit the KV cache     answer so; the engine is intact
      EngineError         the engine process failed                end the query, start a new engine
      AdapterError        the outside world failed                 back off and retry

A message says what was expected, what came, and what to do.  `code` is stable and machine-readable;
it travels in error replies.  `exit_code` follows sysexits.h.  Programming errors are
`AssertionError` or `RuntimeError`: outside this tree, never caught.
"""

from __future__ import annotations

EX_OK = 0
EX_USAGE = 64
EX_DATAERR = 65
EX_UNAVAILABLE = 69
EX_SOFTWARE = 70
EX_IOERR = 74
EX_TEMPFAIL = 75
EX_CONFIG = 78


#: Of a message: it may quote what came from outside, which may be megabytes.
MAX_LINE_CHARS = 1000
_TAIL_CHARS = 300  # kept when the middle is left out: what to do stands at the end


class EdgeAgentError(Exception):
    """Base of all errors that a caller may handle."""

    code = "internal"
    exit_code = EX_SOFTWARE

    def __str__(self) -> str:
        """Return the message as one line that every log can take, whatever it quotes."""
        text = super().__str__()
        if len(text) > MAX_LINE_CHARS:
            text = f"{text[: MAX_LINE_CHARS - _TAIL_CHARS - 3]} … {text[-_TAIL_CHARS:]}"
        return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


class ConfigError(EdgeAgentError):
    """The operator wrote something wrong; restarting does not help."""

    code = "config"
    exit_code = EX_CONFIG


class ProtocolError(EdgeAgentError):
    """A peer sent something wrong; it gets an error reply and we stay up."""

    exit_code = EX_DATAERR

    def __init__(self, message: str, *, code: str = "bad_request") -> None:
        super().__init__(message)
        self.code = code


class QueryRefused(ProtocolError):
    """A well-formed query that is not run now (busy, expired, duplicate)."""

    def __init__(
        self, message: str, *, code: str = "busy", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class ModelError(EdgeAgentError):
    """A model directory is wrong; it is not loaded."""

    code = "model"
    exit_code = EX_DATAERR


class ContextFull(EdgeAgentError):
    """The tokens do not fit the free part of the KV cache; nothing was changed."""

    code = "context_full"
    exit_code = EX_DATAERR


class EngineError(EdgeAgentError):
    """The engine process failed; the query ends, the agent starts a new engine."""

    code = "engine_failed"
    exit_code = EX_SOFTWARE


class AdapterError(EdgeAgentError):
    """The outside world failed; back off and retry."""

    code = "unavailable"
    exit_code = EX_UNAVAILABLE
