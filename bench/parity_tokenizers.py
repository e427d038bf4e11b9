"""Do our tokenizers give the ids of the references?  python -m bench.parity_tokenizers

Vocabularies are trained here, on made lines, in every kind that converted models come with; each is
read by our converter, and the same lines are encoded by us and by the library whose format it is:
sentencepiece, transformers and llama.cpp, each in an environment of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as HfTokenizer

from edgeagent.convert.checkpoint import TokenizerFiles
from edgeagent.convert.sentencepiece import read_spm
from edgeagent.convert.tokenizers import from_gguf, from_hf_dir
from edgeagent.convert.tokenizers_bytes import CUTTINGS, Cutting
from edgeagent.model.tokenizer import Tokenizer
from tests.lines import lines

#: What llama.cpp knows under another name, or not at all.
NOT_IN_LLAMA_CPP = {"falcon_e": "falcon3", "gpt-neox": "olmo", "dolma": "olmo"}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPM_KINDS: dict[str, dict[str, Any]] = {
    "llama": {"byte_fallback": True, "split_digits": True, "remove_extra_whitespaces": False,
              "allow_whitespace_only_pieces": True, "vocab_size": 8000},
    "no-bytes": {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "vocab_size": 6000},
    "spaces": {"byte_fallback": True, "split_by_whitespace": False, "vocab_size": 6000,
               "allow_whitespace_only_pieces": True, "remove_extra_whitespaces": False},
    "collapsed": {"byte_fallback": True, "vocab_size": 5000},
}  # fmt: skip


@dataclasses.dataclass
class Peers:
    hf: Path
    llama: Path

    def ids(self, kind: str, path: Path, texts: list[str]) -> list[list[int]]:
        python = self.llama if kind == "llama.cpp" else self.hf
        job = json.dumps({"kind": kind, "path": str(path), "lines": texts})
        worker = Path(__file__).with_name("tokenizer_peer.py")
        done = subprocess.run(
            [python, worker], input=job, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)


def ours(files: TokenizerFiles, scratch: Path, texts: list[str]) -> list[list[int]]:
    """Encode as the device does, from the files that the converter writes."""
    (scratch / "tokenizer.json").write_text(json.dumps(files.tokenizer))
    (scratch / "tokenizer_config.json").write_text(json.dumps({**files.config, "bos_token": None}))
    tokenizer = Tokenizer(scratch)
    return [tokenizer.encode_prompt(text) for text in texts]


def train_spm(python: Path, scratch: Path, name: str, options: dict[str, Any]) -> Path:
    text = scratch / "train.txt"
    if not text.exists():  # few distinct characters, so that most of the vocabulary is pieces
        kept = ("".join(c for c in line if ord(c) < 0x500) for line in lines(8000, seed=7))
        text.write_text("\n".join(line.replace("\0", "") for line in kept))
    settings = {
        "input": str(text), "model_prefix": str(scratch / name), "model_type": "bpe",
        "normalization_rule_name": "identity", "character_coverage": 0.999,
        "max_sentence_length": 100000, "minloglevel": 2, **options,
    }  # fmt: skip
    code = f"import sentencepiece; sentencepiece.SentencePieceTrainer.train(**{settings!r})"
    subprocess.run([python, "-c", code], check=True, capture_output=True)
    return scratch / f"{name}.model"


def train_bytes(scratch: Path, how: Cutting) -> HfTokenizer:
    tokenizer = HfTokenizer(models.BPE(ignore_merges=how.ignore_merges))
    if how.nfc:
        tokenizer.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in how.patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=6000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(lines(8000, seed=7), trainer)
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def gguf_header(path: Path) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in (
        (writer.add_context_length, 64), (writer.add_embedding_length, 32),
        (writer.add_feed_forward_length, 32), (writer.add_block_count, 1),
        (writer.add_head_count, 1),
    ):  # fmt: skip
        add(value)
    writer.add_layer_norm_rms_eps(1e-5)
    return writer


def finish(writer: gguf.GGUFWriter, path: Path) -> dict[str, Any]:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    fields = gguf.GGUFReader(path).fields
    return {key: field.contents() for key, field in fields.items()}


def gguf_of_bytes(tokenizer: HfTokenizer, pre: str, path: Path) -> dict[str, Any]:
    model = json.loads(tokenizer.to_str())["model"]
    texts = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    writer = gguf_header(path)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(NOT_IN_LLAMA_CPP.get(pre, pre))
    writer.add_token_list(texts)
    writer.add_token_types([3 if text in SPECIAL else 1 for text in texts])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_eos_token_id(texts.index("<|im_end|>"))
    writer.add_bos_token_id(texts.index("<|endoftext|>"))
    return {**finish(writer, path), "tokenizer.ggml.pre": pre}


def gguf_of_spm(model: Path, path: Path) -> dict[str, Any]:
    pieces = read_spm(model)
    writer = gguf_header(path)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces.texts)
    writer.add_token_scores(pieces.scores)
    writer.add_token_types(pieces.types)
    writer.add_add_space_prefix(pieces.space_prefix)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    return finish(writer, path)


Case = tuple[str, str, Callable[[], TokenizerFiles | None], Path]


def cases(peers: Peers, scratch: Path, models_given: list[Path]) -> Iterator[Case]:
    """Yield name, reference, our reader and what the reference reads."""
    trained = [train_spm(peers.hf, scratch, n, o) for n, o in SPM_KINDS.items()]
    for model in [*trained, *models_given]:
        home = scratch / f"{model.stem}-dir"
        home.mkdir()
        (home / "tokenizer.model").write_bytes(model.read_bytes())
        yield f"spm {model.stem}", "sentencepiece", lambda h=home: from_hf_dir(h), model
        if read_spm(model).collapse_spaces or not read_spm(model).types.count(6):
            continue  # neither GGUF's `llama` nor the converter of transformers does that
        path = scratch / f"{model.stem}.gguf"
        metadata = gguf_of_spm(model, path)
        yield f"spm {model.stem}", "llama.cpp", lambda m=metadata: from_gguf(m), path
    for pre, how in CUTTINGS.items():
        tokenizer = train_bytes(scratch, how)
        home = scratch / f"{pre}-bytes"
        home.mkdir()
        tokenizer.save(str(home / "tokenizer.json"))
        (home / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"})
        )
        path = scratch / f"{pre}.gguf"
        metadata = gguf_of_bytes(tokenizer, pre, path)
        yield f"bytes {pre}", "transformers", lambda h=home: from_hf_dir(h), home
        yield f"bytes {pre} (gguf)", "transformers", lambda m=metadata: from_gguf(m), home
        yield f"bytes {pre} (gguf)", "llama.cpp", lambda m=metadata: from_gguf(m), path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hf", type=Path, required=True, help="python with transformers")
    parser.add_argument("--llama", type=Path, required=True, help="python with llama-cpp-python")
    parser.add_argument("--lines", type=int, default=12_000)
    parser.add_argument("--out", type=Path, help="where the results go, as JSON")
    parser.add_argument("--show", action="store_true", help="print lines that differ")
    parser.add_argument("models", type=Path, nargs="*", help="SentencePiece models to take as well")
    arguments = parser.parse_args()
    peers, texts = Peers(arguments.hf, arguments.llama), lines(arguments.lines)
    composed = [unicodedata.is_normalized("NFC", text) for text in texts]
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for case, reference, read, path in cases(peers, scratch, arguments.models):
            files = read()
            assert files is not None
            got, want = ours(files, scratch, texts), peers.ids(reference, path, texts)
            differ = [i for i, (a, b) in enumerate(zip(got, want, strict=True)) if a != b]
            in_nfc = sum(composed[i] for i in differ)
            # llama.cpp composes no characters, so only lines outside NFC may differ there
            passed = not in_nfc if reference == "llama.cpp" else not differ
            found.append(
                {
                    "case": case, "reference": reference, "lines": len(texts),
                    "differ": len(differ), "of_them_in_nfc": in_nfc, "passed": passed,
                }
            )  # fmt: skip
            print(
                f"{case:24} {reference:14} {len(texts)} lines, {len(differ)} differ, "
                f"{in_nfc} of them in NFC",
                flush=True,
            )
            for i in differ[:3] if arguments.show else ():
                print(f"    {texts[i]!r}\n    {got[i]}\n    {want[i]}")
    if arguments.out:
        arguments.out.write_text(json.dumps({"cases": found}, indent=1) + "\n")
    return 0 if all(each["passed"] for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
