"""The tokenizer's fixed points."""

from __future__ import annotations

from edgeagent.train import tokenizer as tokenizers
from edgeagent.train.config import ASSISTANT, BOS, END, SPECIAL_TOKENS, SYSTEM, USER

TEXTS = ["turn on the kitchen lights", '{"intent":"HassTurnOn","slots":{}}', "21 degrees"] * 20


def test_special_tokens_have_their_ids():
    tokenizer = tokenizers.train(TEXTS, 300)
    ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    assert ids == [BOS, END, USER, ASSISTANT, SYSTEM] == [0, 1, 2, 3, 4]


def test_any_text_survives_a_round_trip_and_digits_stand_alone(tmp_path):
    tokenizers.save(tokenizers.train(TEXTS, 300), tmp_path, 512)
    tokenizer = tokenizers.load(tmp_path / "tokenizer.json")
    text = 'Set  it to 2100!\n"caf\u00e9" \U0001f600'
    (ids,) = tokenizers.encode_all(tokenizer, [text])
    assert tokenizer.decode(ids) == text
    pieces = [tokenizer.id_to_token(i) for i in ids]
    assert [p for p in pieces if any(c.isdigit() for c in p)] == ["2", "1", "0", "0"]


def test_nothing_is_added_around_a_text():
    tokenizer = tokenizers.train(TEXTS, 300)
    assert BOS not in tokenizer.encode("hi").ids


def test_the_chat_template_names_every_part():
    config = tokenizers.tokenizer_config(512)
    assert config["chat_template"].startswith(config["bos_token"])
    assert config["eos_token"] == "<|end|>"
