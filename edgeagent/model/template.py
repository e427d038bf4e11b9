"""A chat template, rendered as transformers renders it, in a sandbox.

A template comes with a model from anywhere.  It sees the messages and the names of a few tokens,
and can change nothing; what it may call is what templates written for Hugging Face's
`apply_chat_template` call: `raise_exception`, `strftime_now`, the filter `tojson` that leaves
characters alone, `break` and `continue`, and `{% generation %}` (which marks text for training and
prints it as it is).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from edgeagent.errors import ModelError

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment

#: The longest template of a model that we know (tools, reasoning, vision) has 24 KiB.
MAX_TEMPLATE_CHARS = 1 << 20


def _raise_exception(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _environment() -> ImmutableSandboxedEnvironment:
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %} … {% endgeneration %}` prints what is inside."""

        tags = {"generation"}  # noqa: RUF012  jinja's own declaration

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class ChatTemplate:
    """The template of one model; compiled when it is first used."""

    def __init__(self, text: str, tokens: Mapping[str, str], where: str) -> None:
        """Keep a template and the tokens it may name.

        Args:
            text: jinja.
            tokens: `bos_token` and the like, to their text.
            where: the file, for messages.
        """
        self._text, self._tokens, self._where = text, dict(tokens), where
        self._template: Template | None = None

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the prompt for these messages, ready for the assistant's turn.

        Raises:
            ModelError: it is no template, or refuses these messages; one line.
        """
        from jinja2 import TemplateError

        try:
            if self._template is None:
                if len(self._text) > MAX_TEMPLATE_CHARS:
                    raise ValueError(f"expected at most {MAX_TEMPLATE_CHARS} characters")
                self._template = _environment().from_string(self._text)
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._tokens,
            )
        except (
            TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError,
            RecursionError,
        ) as err:  # fmt: skip
            reason = " ".join(str(err).split()) or type(err).__name__
            raise ModelError(f"{self._where}: chat_template: {reason}") from err
