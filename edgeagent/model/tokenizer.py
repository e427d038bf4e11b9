"""Text to token ids and back; chat messages to a prompt.

A user must not be able to write control tokens: what people type is encoded with special tokens
switched off, and only the template's own text may contain them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HfTokenizer
from tokenizers.decoders import DecodeStream

from edgeagent.errors import ModelError
from edgeagent.model.files import TOKENIZER_CONFIG_NAME, TOKENIZER_NAME, read_json

#: Wraps the index of a message while the template is rendered; a noncharacter, never in real text.
_MARK = "\ufdd0"
_MARKED = re.compile(f"{_MARK}([0-9]+){_MARK}")


class Tokenizer:
    """The tokenizer and chat template of one model directory."""

    def __init__(self, path: Path) -> None:
        """Load `tokenizer.json` and `tokenizer_config.json` from `path`.

        Raises:
            ModelError: either file is missing or unsound.
        """
        config = read_json(path / TOKENIZER_CONFIG_NAME)
        try:
            self._hf = HfTokenizer.from_file(str(path / TOKENIZER_NAME))
        except Exception as err:  # the library raises bare Exception
            raise ModelError(f"{TOKENIZER_NAME}: {err}") from err
        self._template_text = config.get("chat_template")
        self._bos = self._token(config.get("bos_token"))
        self._eos = self._token(config.get("eos_token"))
        self._template: Any = None

    @staticmethod
    def _token(value: Any) -> str | None:
        if isinstance(value, dict):  # HF writes either "<s>" or {"content": "<s>", ...}
            value = value.get("content")
        return value if isinstance(value, str) else None

    @property
    def bos_id(self) -> int | None:
        """Id of the beginning-of-sequence token, if the model has one."""
        return None if self._bos is None else self._hf.token_to_id(self._bos)

    @property
    def size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._hf.get_vocab_size(with_added_tokens=True))

    def _encode(self, text: str, special: bool) -> list[int]:
        self._hf.encode_special_tokens = not special
        return list(self._hf.encode(text, add_special_tokens=False).ids)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Encode raw text to continue: BOS, then the text with special tokens as plain text."""
        bos = [] if self.bos_id is None else [self.bos_id]
        return bos + self._encode(prompt, special=False)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Encode messages through the chat template, ready for the assistant's turn.

        Raises:
            ModelError: the model has no template, or the template refuses these messages.
        """
        marked = [
            {"role": message["role"], "content": f"{_MARK}{i}{_MARK}"}
            for i, message in enumerate(messages)
        ]
        ids: list[int] = []
        for i, part in enumerate(_MARKED.split(self._render(marked))):
            if i % 2:  # the index of a message: what a person wrote
                ids += self._encode(messages[int(part)]["content"], special=False)
            elif part:
                ids += self._encode(part, special=True)
        return ids

    def _render(self, messages: list[dict[str, str]]) -> str:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        if not isinstance(self._template_text, str):
            raise ModelError(
                f"{TOKENIZER_CONFIG_NAME}: no chat_template: send `prompt`, not `messages`"
            )
        try:
            if self._template is None:
                environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
                self._template = environment.from_string(self._template_text)
            return str(
                self._template.render(
                    messages=messages,
                    add_generation_prompt=True,
                    bos_token=self._bos or "",
                    eos_token=self._eos or "",
                )
            )
        except TemplateError as err:
            raise ModelError(f"{TOKENIZER_CONFIG_NAME}: chat_template: {err}") from err

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids` without special tokens."""
        return str(self._hf.decode(list(ids), skip_special_tokens=True))

    def decode_stream(self) -> TokenStream:
        """Return a decoder that takes one token at a time."""
        return TokenStream(self._hf)


class TokenStream:
    """Token by token to text; holds back bytes until they are whole characters."""

    def __init__(self, hf: Any) -> None:
        self._hf = hf
        self._stream = DecodeStream(skip_special_tokens=True)

    def push(self, token: int) -> str:
        """Return the text that `token` completes; may be empty."""
        return self._stream.step(self._hf, token) or ""
