"""Chat templates and stop tokens: where a source keeps them, and the repairs of known files.

A model answers until it gives a stop token.  Sources name one of them in up to four places, and
often not the one that ends a turn of a chat; a token counts as a stop when any of the places names
it, or when the chat template writes it and its name says that it ends a turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from edgeagent.convert.bounded import read_bounded
from edgeagent.errors import ModelError
from edgeagent.model.files import CONFIG_NAME, TOKENIZER_CONFIG_NAME, read_json
from edgeagent.model.template import MAX_TEMPLATE_CHARS, ChatTemplate

TEMPLATE_NAME = "chat_template.jinja"
GENERATION_NAME = "generation_config.json"
#: Names of tokens that end a turn (the list of llama.cpp, src/llama-vocab.cpp, special_eot_id).
END_OF_TURN = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
    "<EOT>", "<|eom_id|>", "<end_of_utterance>",
)  # fmt: skip
#: The official GGUF of BitNet b1.58 2B-4T has a template that the model was not trained with, does
#: not name its pre-tokenizer, and stops on 128001 alone.  This is what its model card describes.
BITNET_2B4T_ARCHITECTURES = ("bitnet-b1.58", "bitnet-25")
BITNET_2B4T_VOCAB = 128_256
BITNET_2B4T_EOT_ID = 128_009
BITNET_2B4T_PRE = "llama-bpe"
BITNET_2B4T_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)


def is_bitnet_2b4t(metadata: Mapping[str, Any], n_tokens: int) -> bool:
    """Say whether GGUF metadata are those of the official 2B-4T files."""
    architecture = metadata.get("general.architecture")
    return architecture in BITNET_2B4T_ARCHITECTURES and n_tokens == BITNET_2B4T_VOCAB


def check_template(text: str, tokens: Mapping[str, str]) -> None:
    """Render one question.

    Raises:
        ModelError: the template fails on it, so it would on every query.
    """
    try:
        ChatTemplate(text, tokens, TOKENIZER_CONFIG_NAME).render(
            [{"role": "user", "content": "Hello"}]
        )
    except ModelError as err:
        raise ModelError(f"{err}: repair or remove the template of the source") from err


def _named(value: Any) -> str | None:
    """Return the one template of a list of named ones."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):  # [{"name": "default", "template": …}, {"name": "tool_use", …}]
        by_name = {
            entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)
        }
        chosen = by_name.get("default")
        return chosen if isinstance(chosen, str) else None
    return None


def template_of_dir(path: Path, config: Mapping[str, Any]) -> str | None:
    """Return the chat template of a Hugging Face directory.

    Raises:
        ModelError: its file cannot be read.
    """
    file = path / TEMPLATE_NAME
    if not file.is_file():
        return _named(config.get("chat_template"))
    try:
        return read_bounded(file, MAX_TEMPLATE_CHARS).decode()
    except UnicodeDecodeError as err:
        raise ModelError(f"{TEMPLATE_NAME}: not UTF-8: {err}") from err


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [i for i in values if type(i) is int and i >= 0]


def stops_of_dir(path: Path) -> list[int]:
    """Return the stop ids that config.json and generation_config.json name, in this order.

    Raises:
        ModelError: one of the files is no JSON object.
    """
    found: list[int] = []
    for name in (CONFIG_NAME, GENERATION_NAME):
        if (path / name).is_file():
            found += _ids(read_json(path / name).get("eos_token_id"))
    return found


def stop_ids(
    named: Iterable[int],
    eos_token: str | None,
    template: str | None,
    token_to_id: Callable[[str], int | None],
) -> tuple[int, ...]:
    """Return every id that ends an answer, each once, those of the source first."""
    texts = [] if eos_token is None else [eos_token]
    texts += [token for token in END_OF_TURN if template and token in template]
    ids = [token_to_id(text) for text in texts]
    return tuple(dict.fromkeys([*named, *(i for i in ids if i is not None)]))
