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
from edgeagent.model.template import ChatTemplate

#: What a chat template may name, as in transformers.
TOKEN_KEYS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
#: Of tokenizer_config.json: false when the model was trained on texts without BOS before them, as
#: the converter finds out.  `add_bos_token` says something else: whether a library adds it.
BEGIN_WITH_BOS = "begin_with_bos"
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
        tokens = {key: self._token(config.get(key)) for key in TOKEN_KEYS}
        self._tokens = {key: token for key, token in tokens.items() if token is not None}
        self._add_bos = config.get(BEGIN_WITH_BOS) is not False
        text = config.get("chat_template")
        self._template = (
            ChatTemplate(text, self._tokens, TOKENIZER_CONFIG_NAME)
            if isinstance(text, str)
            else None
        )
        self._special = _Special(self._hf)

    @staticmethod
    def _token(value: Any) -> str | None:
        if isinstance(value, dict):  # HF writes either "<s>" or {"content": "<s>", ...}
            value = value.get("content")
        return value if isinstance(value, str) else None

    @property
    def bos_id(self) -> int | None:
        """Id of the token that a raw prompt begins with, if this model wants one."""
        bos = self._tokens.get("bos_token") if self._add_bos else None
        return None if bos is None else self._hf.token_to_id(bos)

    @property
    def size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._hf.get_vocab_size(with_added_tokens=True))

    def _encode(self, text: str) -> list[int]:
        """Encode text in which the names of special tokens are text like any other."""
        self._hf.encode_special_tokens = True
        return list(self._hf.encode(text, add_special_tokens=False).ids)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Encode raw text to continue: BOS, then the text with special tokens as plain text."""
        bos = [] if self.bos_id is None else [self.bos_id]
        return bos + self._encode(prompt)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Encode messages through the chat template, ready for the assistant's turn.

        The ids are those of the whole rendered text: a message may share a token with the
        template's text around it ("User: " and "hi" make " hi").  Special tokens are only taken
        from the template's text.

        Raises:
            ModelError: the model has no template, or the template refuses these messages.
        """
        ids: list[int] = []
        run = ""  # text since the last special token
        for i, part in enumerate(self._parts(messages)):
            found = [part] if i % 2 else self._special.split(part)
            run += found[0]
            for token, text in zip(found[1::2], found[2::2], strict=True):
                ids += self._encode(run) if run else []
                ids.append(int(self._hf.token_to_id(token) or 0))
                run = text
        return ids + (self._encode(run) if run else [])

    def _parts(self, messages: Sequence[Mapping[str, str]]) -> list[str]:
        """Render; return the template's text and, at odd places, what people wrote."""
        if self._template is None:
            raise ModelError(
                f"{TOKENIZER_CONFIG_NAME}: no chat_template: send `prompt`, not `messages`"
            )
        marked = [
            {"role": message["role"], "content": f"{_MARK}{i}{_MARK}"}
            for i, message in enumerate(messages)
        ]
        parts = _MARKED.split(self._template.render(marked))
        as_it_is = [messages[int(index)]["content"] for index in parts[1::2]]
        parts[1::2] = as_it_is
        whole = self._template.render(messages)
        if "".join(parts) != whole:  # many templates strip messages; a mark has nothing to strip
            parts[1::2] = [content.strip() for content in as_it_is]
        if "".join(parts) != whole:  # what else a template may do with a message is not followed
            parts[1::2] = as_it_is
        return parts

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids` without special tokens."""
        return str(self._hf.decode(list(ids), skip_special_tokens=True))

    def decode_stream(self) -> TokenStream:
        """Return a decoder that takes one token at a time."""
        return TokenStream(self._hf)


class _Special:
    """Finds special tokens in text that may contain them."""

    def __init__(self, hf: Any) -> None:
        tokens = [token for token in hf.get_added_tokens_decoder().values() if token.special]
        longest_first = sorted(tokens, key=lambda token: -len(token.content))
        space = {True: r"\s*", False: ""}  # a token may take the space around it, as <mask> does
        patterns = [
            space[token.lstrip] + f"({re.escape(token.content)})" + space[token.rstrip]
            for token in longest_first
        ]
        self._pattern = re.compile("|".join(patterns)) if patterns else None

    def split(self, text: str) -> list[str]:
        """Return the text before the first token, the token, the text behind it, and so on."""
        found, at = [], 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            found += [text[at : match.start()], match[match.lastindex or 0]]
            at = match.end()
        return [*found, text[at:]]


class TokenStream:
    """Token by token to text; holds back bytes until they are whole characters."""

    def __init__(self, hf: Any) -> None:
        self._hf = hf
        self._stream = DecodeStream(skip_special_tokens=True)

    def push(self, token: int) -> str:
        """Return the text that `token` completes; may be empty."""
        return self._stream.step(self._hf, token) or ""
