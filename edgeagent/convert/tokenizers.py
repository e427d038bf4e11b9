"""The tokenizer of a source as our model directory keeps it: `tokenizer.json` and its settings.

Three kinds of source: a Hugging Face directory with `tokenizer.json`, one with a SentencePiece
model alone, and the metadata of a GGUF file.  Whatever it was, the result has been loaded by the
`tokenizers` library, every token has the id that the source gives it, and the chat template has
answered one question.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer

from edgeagent.convert.bounded import read_bounded
from edgeagent.convert.checkpoint import TokenizerFiles
from edgeagent.convert.sentencepiece import CONTROL, MAX_PIECES, NORMAL, Pieces, read_spm
from edgeagent.convert.templates import (
    BITNET_2B4T_EOT_ID,
    BITNET_2B4T_PRE,
    BITNET_2B4T_TEMPLATE,
    check_template,
    is_bitnet_2b4t,
    stop_ids,
    stops_of_dir,
    template_of_dir,
)
from edgeagent.convert.tokenizers_bytes import byte_tokenizer, cutting
from edgeagent.convert.tokenizers_check import check_tokenizer
from edgeagent.convert.tokenizers_spm import added_token, spm_tokenizer
from edgeagent.errors import ModelError
from edgeagent.model.files import TOKENIZER_CONFIG_NAME, TOKENIZER_NAME, read_json
from edgeagent.model.tokenizer import BEGIN_WITH_BOS, TOKEN_KEYS

SPM_NAME = "tokenizer.model"
SPECIAL_NAME = "special_tokens_map.json"
ADDED_NAME = "added_tokens.json"
#: Of Gemma's 262,144 tokens: 33 MB.
MAX_TOKENIZER_BYTES = 64 << 20
#: Of `tokenizer_class`: their settings say whether a text begins with BOS, not tokenizer.json.
_BOS_BY_SETTING = ("Llama", "Gemma", "CodeLlama")
MAX_ID_DIGITS = 9
_NO_VOCABULARY = ("none", "no_vocab")

#: Text that the result must be able to encode and decode.
PROBE = "The 1st \u00e9t\u00e9, \u65e5\u672c\t\x07 \U0001f600\n"

Json = dict[str, Any]
T = TypeVar("T")


def load(text: str, where: str) -> Tokenizer:
    """Load the text of a `tokenizer.json`.

    Raises:
        ModelError: the library refuses it, or panics.
    """
    return _ask(lambda: Tokenizer.from_str(text), where)


def _ask(question: Callable[[], T], where: str) -> T:
    """Ask the tokenizers library, which raises bare Exception; a panic of it is not even that."""
    try:
        return question()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as err:
        raise ModelError(f"{where}: {' '.join(str(err).split())[:200]}") from err


def _dump(tokenizer: Mapping[str, Any]) -> str:
    return json.dumps(tokenizer, ensure_ascii=False)


def _text(value: Any) -> str | None:
    """Return a token written as "<s>" or as {"content": "<s>", ...}."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


# ---- a Hugging Face directory ----


def _read_tokenizer_json(path: Path) -> Json:
    data = read_bounded(path / TOKENIZER_NAME, MAX_TOKENIZER_BYTES)
    try:
        tokenizer = json.loads(data.decode())
    except (ValueError, RecursionError) as err:
        raise ModelError(f"{TOKENIZER_NAME}: not JSON: {err}") from err
    check_tokenizer(tokenizer)
    # What somebody once set for training; transformers drops both as well.
    tokenizer["truncation"] = tokenizer["padding"] = None
    return dict(tokenizer)


def _settings(path: Path) -> Json:
    """Return tokenizer_config.json, completed by special_tokens_map.json."""
    config: Json = {}
    if (path / TOKENIZER_CONFIG_NAME).is_file():
        config = read_json(path / TOKENIZER_CONFIG_NAME)
    if (path / SPECIAL_NAME).is_file():
        config = {**read_json(path / SPECIAL_NAME), **config}
    return config


def _added_of_dir(path: Path, config: Mapping[str, Any]) -> dict[int, tuple[str, bool]]:
    """Return id to (text, special) of tokens that were added beside a SentencePiece model."""
    found: dict[int, tuple[str, bool]] = {}
    if (path / ADDED_NAME).is_file():
        for name, i in read_json(path / ADDED_NAME).items():
            if type(i) is int:
                found[i] = (name, True)
    decoder = config.get("added_tokens_decoder")
    for key, entry in decoder.items() if isinstance(decoder, dict) else ():
        text = _text(entry)
        if isinstance(key, str) and key.isdecimal() and len(key) < MAX_ID_DIGITS and text:
            found[int(key)] = (text, bool(isinstance(entry, dict) and entry.get("special")))
    return found


def _spm_of_dir(path: Path, config: Mapping[str, Any]) -> tuple[Json, Json]:
    """Return tokenizer.json's object and the tokens that the model file names."""
    pieces = read_spm(path / SPM_NAME)
    add_bos = config.get("add_bos_token") is not False
    tokenizer = spm_tokenizer(pieces, SPM_NAME, add_bos=add_bos)
    n = len(pieces.texts)
    for i, (text, special) in sorted(_added_of_dir(path, config).items()):
        if i < n:  # a piece already: what the model file says of it holds
            continue
        if i != n:
            raise ModelError(f"{TOKENIZER_CONFIG_NAME}: expected added token {n}, got {i}")
        tokenizer["added_tokens"].append(added_token(i, text, special=special))
        n += 1
    named = {"bos_token": pieces.bos_id, "eos_token": pieces.eos_id, "unk_token": pieces.unk_id}
    return tokenizer, {key: pieces.texts[i] for key, i in named.items() if i is not None}


def _adds_bos(hf: Tokenizer, config: Mapping[str, Any], bos: str | None) -> bool:
    """Say whether the reference puts BOS before a text."""
    if bos is None:
        return False
    if isinstance(config.get(BEGIN_WITH_BOS), bool):  # an export of ours
        return bool(config[BEGIN_WITH_BOS])
    if any(name in str(config.get("tokenizer_class")) for name in _BOS_BY_SETTING):
        return config.get("add_bos_token") is not False
    ids = _ask(lambda: hf.encode("a", add_special_tokens=True).ids, TOKENIZER_NAME)
    return bool(ids) and ids[0] == hf.token_to_id(bos)


def _finish(
    tokenizer: Json,
    tokens: Mapping[str, str],
    template: str | None,
    stops: Sequence[int],
    *,
    add_bos: bool,
) -> TokenizerFiles:
    hf = load(_dump(tokenizer), TOKENIZER_NAME)
    _ask(lambda: hf.decode(hf.encode(PROBE, add_special_tokens=False).ids), TOKENIZER_NAME)
    config: Json = dict(tokens)
    config["add_bos_token"] = config[BEGIN_WITH_BOS] = add_bos
    if template is not None:
        check_template(template, tokens)
        config["chat_template"] = template
    return TokenizerFiles(
        tokenizer, config, stop_ids(stops, tokens.get("eos_token"), template, hf.token_to_id)
    )


def from_hf_dir(path: Path, *, ours: bool = False) -> TokenizerFiles | None:
    """Read the tokenizer of a Hugging Face directory; None when it has none.

    Args:
        path: the directory.
        ours: it is a model directory of ours, whose texts begin with BOS unless it says otherwise.

    Raises:
        ModelError: there is one that we cannot use.
    """
    config = _settings(path)
    if ours:
        config.setdefault(BEGIN_WITH_BOS, True)
    named: Json = {}
    if (path / TOKENIZER_NAME).is_file():
        tokenizer = _read_tokenizer_json(path)
    elif (path / SPM_NAME).is_file():
        tokenizer, named = _spm_of_dir(path, config)
    else:
        return None
    found = {key: _text(config.get(key)) for key in TOKEN_KEYS}
    tokens = {**named, **{key: token for key, token in found.items() if token is not None}}
    hf = load(_dump(tokenizer), TOKENIZER_NAME)
    for key, token in tokens.items():
        if hf.token_to_id(token) is None:
            raise ModelError(f"{TOKENIZER_CONFIG_NAME}: {key} {token!r} is not in {TOKENIZER_NAME}")
    add_bos = _adds_bos(hf, config, tokens.get("bos_token"))
    return _finish(
        tokenizer, tokens, template_of_dir(path, config), stops_of_dir(path), add_bos=add_bos
    )


def from_pieces(pieces: Pieces, where: str) -> TokenizerFiles:
    """Make the tokenizer of a SentencePiece vocabulary that stands alone.

    Raises:
        ModelError: the vocabulary disagrees with itself.
    """
    named = {"bos_token": pieces.bos_id, "eos_token": pieces.eos_id, "unk_token": pieces.unk_id}
    tokens = {key: pieces.texts[i] for key, i in named.items() if i is not None}
    return _finish(
        spm_tokenizer(pieces, where, add_bos=True), tokens, None, (), add_bos="bos_token" in tokens
    )


# ---- GGUF metadata ----


def _list(metadata: Mapping[str, Any], key: str, kind: type, n: int | None) -> list[Any]:
    name = f"tokenizer.ggml.{key}"
    values = metadata.get(name)
    if values is None and n is not None:
        return []
    if not isinstance(values, list | tuple) or not all(isinstance(v, kind) for v in values):
        raise ModelError(f"{name}: expected a list of {kind.__name__}")
    if len(values) > 2 * MAX_PIECES or (n is not None and len(values) != n):
        raise ModelError(f"{name}: expected {n or 'fewer'} values, got {len(values)}")
    return list(values)


def _id(metadata: Mapping[str, Any], key: str, n: int) -> int | None:
    i = metadata.get(f"tokenizer.ggml.{key}_token_id")
    return i if type(i) is int and 0 <= i < n else None


def _flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{key}")
    return value if isinstance(value, bool) else default


def _pre(metadata: Mapping[str, Any], n: int) -> str:
    name = metadata.get("tokenizer.ggml.pre")
    if isinstance(name, str):
        return name
    return BITNET_2B4T_PRE if is_bitnet_2b4t(metadata, n) else "default"


def _check_ids(hf: Tokenizer, texts: Sequence[str]) -> None:
    for i, text in enumerate(texts):
        if text and hf.token_to_id(text) != i:
            raise ModelError(
                f"tokenizer.ggml.tokens: {text!r}: expected id {i}, got {hf.token_to_id(text)}"
            )


def _spm_of_gguf(metadata: Mapping[str, Any], texts: list[str], types: list[int]) -> Json:
    n = len(texts)
    scores = [float(score) for score in _list(metadata, "scores", float, n)]
    if not scores:
        raise ModelError("tokenizer.ggml.scores: expected one a token, got none")
    pieces = Pieces(
        texts, scores, types, _id(metadata, "unknown", n), _id(metadata, "bos", n),
        _id(metadata, "eos", n), space_prefix=_flag(metadata, "add_space_prefix", True),
    )  # fmt: skip
    return spm_tokenizer(pieces, "tokenizer.ggml", add_bos=_flag(metadata, "add_bos_token", True))


def _tokenizer_of_gguf(
    metadata: Mapping[str, Any], texts: list[str], types: list[int]
) -> tuple[Json, bool]:
    """Return tokenizer.json's object, and whether a text begins with BOS."""
    if metadata["tokenizer.ggml.model"] == "llama":
        add_bos = _flag(metadata, "add_bos_token", True)
        return _spm_of_gguf(metadata, texts, types), add_bos
    how = cutting(_pre(metadata, len(texts)))
    add_bos = _flag(metadata, "add_bos_token", how.add_bos)
    bos_id = _id(metadata, "bos", len(texts)) if add_bos else None
    merges = _list(metadata, "merges", str, None)
    return byte_tokenizer(texts, types, merges, how, bos_id=bos_id), add_bos


def from_gguf(metadata: Mapping[str, Any]) -> TokenizerFiles | None:
    """Make the tokenizer that the metadata of a GGUF file describe; None when they have none.

    Raises:
        ModelError: there is one that we cannot use.
    """
    model = metadata.get("tokenizer.ggml.model", "none")
    if model in _NO_VOCABULARY:
        return None
    if model not in ("gpt2", "llama"):
        raise ModelError(
            f"tokenizer.ggml.model: expected 'gpt2' (byte-level BPE) or 'llama' (SentencePiece), "
            f"got {model!r}: convert the Hugging Face directory of the model instead"
        )
    texts = _list(metadata, "tokens", str, None)
    n = len(texts)
    types = _list(metadata, "token_type", int, n) or [NORMAL] * n
    special = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {f"{key}_token": _id(metadata, name, n) for key, name in special.items()}
    for i in ids.values():  # some files say that their BOS is a token like any other
        if i is not None and types[i] == NORMAL:
            types[i] = CONTROL
    tokenizer, add_bos = _tokenizer_of_gguf(metadata, texts, types)
    _check_ids(load(_dump(tokenizer), "tokenizer.ggml"), texts)
    tokens = {key: texts[i] for key, i in ids.items() if i is not None}
    stops = [i for key in ("eos", "eot", "eom") if (i := _id(metadata, key, n)) is not None]
    template = metadata.get("tokenizer.chat_template")
    if is_bitnet_2b4t(metadata, n):
        template = BITNET_2B4T_TEMPLATE
        stops.append(BITNET_2B4T_EOT_ID)
    if not isinstance(template, str):
        template = None
    return _finish(tokenizer, tokens, template, stops, add_bos=add_bos and "bos_token" in tokens)
