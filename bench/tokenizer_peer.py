"""A reference tokenizer, in its own environment: a job on standard input, ids on standard output.

    {"kind": "sentencepiece" | "transformers" | "llama.cpp", "path": …, "lines": [...]}
    -> [[id, …], …]

Texts are encoded without BOS and without control tokens being found in them, which is what people
type.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def sentencepiece(path: str, lines: list[str]) -> list[list[int]]:
    import sentencepiece as spm

    return spm.SentencePieceProcessor(model_file=path).encode(lines)


def transformers(path: str, lines: list[str]) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    return [
        tokenizer.encode(line, add_special_tokens=False, split_special_tokens=True)
        for line in lines
    ]


def llama_cpp(path: str, lines: list[str]) -> list[list[int]]:
    from llama_cpp import Llama

    model = Llama(path, vocab_only=True, verbose=False)
    return [model.tokenize(line.encode(), add_bos=False, special=False) for line in lines]


def main() -> None:
    job: dict[str, Any] = json.load(sys.stdin)
    kinds = {"sentencepiece": sentencepiece, "transformers": transformers, "llama.cpp": llama_cpp}
    json.dump(kinds[job["kind"]](job["path"], job["lines"]), sys.stdout)


if __name__ == "__main__":
    main()
