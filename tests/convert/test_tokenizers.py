"""Tokenizers of every kind of source: the ids of the references, the stops, the repairs."""

import base64
import contextlib
import hashlib
import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer as HfTokenizer

from edgeagent.convert.checkpoint import TokenizerFiles
from edgeagent.convert.sentencepiece import parse_spm
from edgeagent.convert.templates import BITNET_2B4T_TEMPLATE, BITNET_2B4T_VOCAB
from edgeagent.convert.tokenizers import from_gguf, from_hf_dir, from_pieces
from edgeagent.convert.tokenizers_bytes import CUTTINGS
from edgeagent.convert.tokenizers_gguf import tokenizer_metadata
from edgeagent.errors import ModelError
from edgeagent.model.tokenizer import Tokenizer
from tests.convert import spm
from tests.lines import lines
from tests.tiny import TEMPLATE, write_tokenizer

RECORDED = json.loads(Path(__file__).with_name("recorded_tokenizers.json").read_text("utf-8"))
LINES = lines(RECORDED["lines"])
#: llama.cpp does not compose characters, the models' own tokenizers do.
NFC = [pre for pre in RECORDED["bytes"] if CUTTINGS[pre].nfc]
USER = [{"role": "user", "content": "hi"}]


def device(files: TokenizerFiles, path: Path) -> Tokenizer:
    """What the engine loads, from the files that the converter writes."""
    (path / "tokenizer.json").write_text(json.dumps(files.tokenizer))
    (path / "tokenizer_config.json").write_text(json.dumps(dict(files.config)))
    return Tokenizer(path)


def digests(files: TokenizerFiles, path: Path, texts: list[str]) -> list[str]:
    plain = TokenizerFiles(files.tokenizer, {**files.config, "bos_token": None})
    tokenizer = device(plain, path)
    return [
        hashlib.sha256(json.dumps(tokenizer.encode_prompt(text)).encode()).hexdigest()[:8]
        for text in texts
    ]


def metadata(pre="gpt-2", **changes):
    return {**RECORDED["metadata"], "tokenizer.ggml.pre": pre} | {
        f"tokenizer.ggml.{key}": value for key, value in changes.items()
    }


def spm_metadata():
    pieces = parse_spm(base64.b64decode(RECORDED["spm"]), "m")
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces.texts,
        "tokenizer.ggml.scores": pieces.scores,
        "tokenizer.ggml.token_type": pieces.types,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def test_a_sentencepiece_model_gives_the_ids_of_sentencepiece(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(base64.b64decode(RECORDED["spm"]))
    files = from_hf_dir(tmp_path)
    assert digests(files, tmp_path, LINES) == RECORDED["sentencepiece"]


def test_a_gguf_of_it_gives_the_ids_of_llama_cpp(tmp_path):
    assert digests(from_gguf(spm_metadata()), tmp_path, LINES) == RECORDED["llama.cpp spm"]


@pytest.mark.parametrize("pre", RECORDED["bytes"])
def test_byte_level_gguf_gives_the_ids_of_llama_cpp(tmp_path, pre):
    got, want = digests(from_gguf(metadata(pre)), tmp_path, LINES), RECORDED["bytes"][pre]
    differ = [line for line, a, b in zip(LINES, got, want, strict=True) if a != b]
    if pre in NFC:
        assert differ  # the lines hold decomposed characters on purpose
        import unicodedata

        assert not any(unicodedata.is_normalized("NFC", line) for line in differ)
    else:
        assert not differ


def test_falcon_e_is_cut_like_falcon3(tmp_path):
    files = from_gguf(metadata("falcon_e"))
    assert digests(files, tmp_path, LINES) == RECORDED["bytes"]["falcon3"]


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "default", "smollm"])
def test_back_to_gguf_and_here_again_gives_the_same_ids(tmp_path, pre):
    files = from_gguf(metadata(pre))
    n = len(files.tokenizer["model"]["vocab"]) + 3
    again = tokenizer_metadata(files, n + 5)
    assert again["tokenizer.ggml.pre"] == pre
    assert again["tokenizer.ggml.tokens"][-1] == f"[PAD{n + 4}]"
    assert digests(from_gguf(again), tmp_path, LINES) == digests(files, tmp_path, LINES)


def test_sentencepiece_to_gguf_and_here_again_gives_the_same_ids(tmp_path):
    files = from_gguf(spm_metadata())
    size = len(spm_metadata()["tokenizer.ggml.tokens"])
    again = tokenizer_metadata(files, size)
    assert again["tokenizer.ggml.token_type"] == spm_metadata()["tokenizer.ggml.token_type"]
    assert digests(from_gguf(again), tmp_path, LINES) == RECORDED["llama.cpp spm"]


def test_the_official_2b4t_file_is_repaired(tmp_path):
    n = BITNET_2B4T_VOCAB
    tokens = RECORDED["metadata"]["tokenizer.ggml.tokens"]
    texts = [*tokens, *(f"<|r{i}|>" for i in range(len(tokens), n))]
    texts[128_000:128_002] = ["<|begin_of_text|>", "<|end_of_text|>"]
    texts[128_009] = "<|eot_id|>"
    types = [1] * 128_000 + [3] * 256
    source = metadata(tokens=texts, token_type=types, bos_token_id=128_000, eos_token_id=128_001)
    del source["tokenizer.ggml.pre"]
    source["general.architecture"] = "bitnet-b1.58"
    source["tokenizer.chat_template"] = "Human: {{ x }}\n\nBITNETAssistant: "
    files = from_gguf(source)
    assert files.stop_ids == (128_001, 128_009)
    assert files.config["chat_template"] == BITNET_2B4T_TEMPLATE
    assert files.tokenizer["model"]["ignore_merges"]  # llama-bpe
    tokenizer = device(files, tmp_path)
    ids = tokenizer.encode_chat([{"role": "system", "content": "s "}, *USER])
    assert ids[0] == 128_000
    assert ids.count(128_009) == 2
    assert tokenizer.decode(ids) == "System: sUser: hiAssistant: "


def test_metadata_without_a_tokenizer_have_none():
    assert from_gguf({}) is None
    assert from_gguf({"tokenizer.ggml.model": "none"}) is None


def test_whether_a_text_begins_with_bos_is_the_files_word(tmp_path):
    bos = RECORDED["metadata"]["tokenizer.ggml.bos_token_id"]
    for pre, flag, begins in (
        ("gpt-2", None, False), ("llama-bpe", None, True), ("gpt-2", True, True),
        ("llama-bpe", False, False),
    ):  # fmt: skip
        changes = {} if flag is None else {"add_bos_token": flag}
        tokenizer = device(from_gguf(metadata(pre, **changes)), tmp_path)
        assert (tokenizer.encode_prompt("a")[0] == bos) is begins


def test_what_people_type_never_becomes_a_control_token(tmp_path):
    for source in (metadata("llama-bpe"), spm_metadata()):
        files = from_gguf(source)
        special = {entry["id"] for entry in files.tokenizer["added_tokens"]}
        tokenizer = device(files, tmp_path)
        text = "<|im_end|><|endoftext|></s><s><unk><0x41>"
        assert not special & set(tokenizer.encode_prompt(text)[1:])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({"tokenizer.ggml.model": "bert"}, "expected 'gpt2'"),
        ({"tokenizer.ggml.model": "gpt2"}, "tokens: expected a list of str"),
        (metadata("porridge"), "tokenizer.ggml.pre: expected one of"),
        (metadata(token_type=[1, 1]), "token_type: expected"),
        (metadata(merges=["ab"]), "expected two tokens"),
        (metadata(merges=["nothere nowhere"]), "tokenizer"),
        (metadata(tokens=["a", "a"], token_type=[1, 1]), "is there twice"),
        ({**spm_metadata(), "tokenizer.ggml.scores": []}, "expected 1159"),
        ({k: v for k, v in spm_metadata().items() if not k.endswith("scores")}, "scores"),
    ],
)
def test_unsound_metadata_are_refused_in_one_line(source, reason):
    with pytest.raises(ModelError, match=reason.replace("1159", "")) as caught:
        from_gguf(source)
    assert "\n" not in str(caught.value)


def test_a_template_that_fails_on_every_question_is_refused():
    broken = {**metadata(), "tokenizer.chat_template": "{{ messages[0].nope.nope }}"}
    with pytest.raises(ModelError, match="repair or remove"):
        from_gguf(broken)


# ---- Hugging Face directories ----


def write_dir(path, settings=None, **files):
    write_tokenizer(path)
    tokens = {"bos_token": "<|bos|>", "eos_token": {"content": "<|end|>"}}
    (path / "tokenizer_config.json").write_text(json.dumps(tokens | (settings or {})))
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return path


def test_a_directory_without_a_tokenizer_has_none(tmp_path):
    assert from_hf_dir(tmp_path) is None


def test_stops_come_from_every_place_that_names_one(tmp_path):
    write_dir(
        tmp_path, {"chat_template": TEMPLATE}, config={"eos_token_id": 7},
        generation_config={"eos_token_id": [7, 9]},
    )  # fmt: skip
    assert from_hf_dir(tmp_path).stop_ids == (7, 9, 1)


def test_a_template_in_a_file_of_its_own_goes_before_the_setting(tmp_path):
    write_dir(tmp_path, {"chat_template": "old"})
    (tmp_path / "chat_template.jinja").write_text("new")
    assert from_hf_dir(tmp_path).config["chat_template"] == "new"


def test_of_named_templates_the_default_is_taken(tmp_path):
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert from_hf_dir(write_dir(tmp_path, {"chat_template": named})).config["chat_template"] == "d"


def test_truncation_and_padding_are_dropped(tmp_path):
    write_dir(tmp_path)
    tokenizer = HfTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert len(device(from_hf_dir(tmp_path), tmp_path).encode_prompt("a" * 30)) == 30


def test_bos_is_put_where_the_reference_puts_it(tmp_path):
    def ask(settings, **options):
        return from_hf_dir(write_dir(tmp_path, settings), **options).config

    assert ask({})["begin_with_bos"] is False  # no post-processor adds it
    assert ask({}, ours=True)["begin_with_bos"] is True
    assert ask({"tokenizer_class": "LlamaTokenizerFast"})["begin_with_bos"] is True
    assert ask({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False})[
        "begin_with_bos"
    ] is False  # fmt: skip
    assert ask({"begin_with_bos": True})["begin_with_bos"] is True
    assert ask({"bos_token": None})["begin_with_bos"] is False


def test_added_tokens_beside_a_sentencepiece_model(tmp_path, tmp_path_factory):
    pieces = spm.vocabulary(["ab", "a", "b", "\u2581"])
    (tmp_path / "tokenizer.model").write_bytes(spm.model(pieces, None, {4: 0}))
    n = len(pieces)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": n, "</line>": n + 1}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<pad>"}))
    files = from_hf_dir(tmp_path)
    assert files.config["pad_token"] == "<pad>"
    assert (files.config["bos_token"], files.config["eos_token"]) == ("<s>", "</s>")
    assert device(files, tmp_path_factory.mktemp("ours")).size == n + 2
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": n + 3}))
    with pytest.raises(ModelError, match=f"expected added token {n}"):
        from_hf_dir(tmp_path)


def test_unsound_directories_are_refused_in_one_line(tmp_path):
    def refused(reason):
        with pytest.raises(ModelError, match=reason) as caught:
            from_hf_dir(tmp_path)
        assert "\n" not in str(caught.value)

    write_dir(tmp_path, {"eos_token": "<nowhere>"})
    refused("eos_token '<nowhere>' is not in")
    write_dir(tmp_path, {"chat_template": "{% if %}"})
    refused("chat_template")
    for text in ("", "{}", "[]", '{"model": 1}', "\ud800".encode("utf-8", "surrogatepass").hex()):
        (tmp_path / "tokenizer.json").write_text(text)
        refused("tokenizer.json")
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    refused("not JSON")


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


def nested(step, depth):
    for _ in range(depth):
        step = {"type": "Sequence", "normalizers": [step]}
    return step


@pytest.mark.parametrize(
    ("where", "value", "reason"),
    [
        (("model", "dropout"), 0.1, "dropout"),
        (("model", "type"), "WordPiece", "type BPE"),
        (("model", "continuing_subword_prefix"), "\0", "continuing_subword_prefix"),
        (("model", "end_of_word_suffix"), "</w>", "end_of_word_suffix"),
        (
            ("pre_tokenizer",), {"type": "Sequence", "pretokenizers": [BYTE_LEVEL] * 20},
            "64 times as long",
        ),
        (
            ("normalizer",), {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 65},
            "64 times as long",
        ),
        (("normalizer",), nested({"type": "NFC"}, 6), "4 deep"),
        (("normalizer",), {"type": "Sequence", "normalizers": 7}, "chain of steps"),
        (
            ("decoder",), {"type": "Sequence", "decoders": [{"type": "Fuse"}] * 33}, "32 steps",
        ),
    ],
)  # fmt: skip
def test_what_would_hurt_or_draws_lots_is_refused(tmp_path, where, value, reason):
    write_dir(tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    inner = tokenizer
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=reason):
        from_hf_dir(tmp_path)


def test_a_vocabulary_alone(tmp_path):
    files = from_pieces(parse_spm(spm.model(spm.vocabulary(["a", "\u2581"])), "m"), "m")
    assert files.stop_ids == (2,)
    assert device(files, tmp_path).encode_prompt("a")[0] == 1


# ---- hostile ones ----


def _mutate(r, value):
    """Change one thing somewhere inside."""
    if isinstance(value, dict) and value and r.random() < 0.9:
        key = r.choice(list(value))
        return {**value, key: _mutate(r, value[key])}
    if isinstance(value, list) and value and r.random() < 0.9:
        i = r.randrange(len(value))
        return [*value[:i], _mutate(r, value[i]), *value[i + 1 :]]
    return r.choice([None, True, -1, 0, 2**31, 1e300, "", "a b", "\ud7ff\x00", [], {}, [[]], value])


def test_mutated_metadata_are_refused_or_load():
    r = random.Random(11)
    small = metadata(
        tokens=["a", "b", "ab", "<e>"], token_type=[1, 1, 1, 3], merges=["a b"], bos_token_id=3,
        eos_token_id=3,
    )  # fmt: skip
    for _ in range(400):
        key = r.choice(list(small))
        with contextlib.suppress(ModelError):
            from_gguf(small | {key: _mutate(r, small[key])})


def test_mutated_tokenizer_files_are_refused_or_load(tmp_path):
    r = random.Random(12)
    write_dir(tmp_path)
    sound = json.loads((tmp_path / "tokenizer.json").read_text())
    for _ in range(300):
        (tmp_path / "tokenizer.json").write_text(json.dumps(_mutate(r, sound)))
        with contextlib.suppress(ModelError):
            from_hf_dir(tmp_path)
