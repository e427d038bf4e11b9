"""Record what the reference tokenizers give: python -m bench.record_tokenizers --hf P --llama P

Writes tests/convert/recorded_tokenizers.json: small vocabularies trained on made lines (one of
SentencePiece, one of byte-level BPE), and for every line a digest of the ids that sentencepiece and
llama.cpp give.  The suite checks our converters against it without either library.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from bench.parity_tokenizers import (
    NOT_IN_LLAMA_CPP,
    SPECIAL,
    Peers,
    gguf_of_bytes,
    gguf_of_spm,
    train_spm,
)
from edgeagent.convert.tokenizers_bytes import CUTTINGS
from tests.lines import lines

OUT = Path(__file__).parents[1] / "tests/convert/recorded_tokenizers.json"
N_LINES = 400
SPM = {
    "byte_fallback": True, "split_digits": True, "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True, "vocab_size": 900, "character_coverage": 0.98,
}  # fmt: skip
KEPT = ("model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id")


def digest(ids: list[int]) -> str:
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:8]


def train(scratch: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    tokenizer.train_from_iterator(lines(3000, seed=7), trainer)
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hf", type=Path, required=True, help="python with sentencepiece")
    parser.add_argument("--llama", type=Path, required=True, help="python with llama-cpp-python")
    arguments = parser.parse_args()
    peers, texts = Peers(arguments.hf, arguments.llama), lines(N_LINES)
    recorded: dict[str, Any] = {"lines": N_LINES, "bytes": {}}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        model = train_spm(peers.hf, scratch, "small", SPM)
        recorded["spm"] = base64.b64encode(model.read_bytes()).decode()
        recorded["sentencepiece"] = [
            digest(ids) for ids in peers.ids("sentencepiece", model, texts)
        ]
        gguf_of_spm(model, scratch / "spm.gguf")
        ids = peers.ids("llama.cpp", scratch / "spm.gguf", texts)
        recorded["llama.cpp spm"] = [digest(one) for one in ids]
        tokenizer = train(scratch)
        metadata = gguf_of_bytes(tokenizer, "gpt-2", scratch / "gpt-2.gguf")
        recorded["metadata"] = {
            f"tokenizer.ggml.{k}": metadata[f"tokenizer.ggml.{k}"] for k in KEPT
        }
        for pre in CUTTINGS:
            if pre not in NOT_IN_LLAMA_CPP:
                gguf_of_bytes(tokenizer, pre, scratch / f"{pre}.gguf")
                ids = peers.ids("llama.cpp", scratch / f"{pre}.gguf", texts)
                recorded["bytes"][pre] = [digest(one) for one in ids]
    OUT.write_text(json.dumps(recorded, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
