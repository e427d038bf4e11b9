"""Damage every file that a model may come as, and see that each is read or refused.

    python -m bench.fuzz_readers {safetensors,gguf,config,adapter,directory} [--seconds N] [--out F]

Sound files are changed as what they mean (a dim, an offset, a type, a name, two of them exchanged,
one of them twice) and as bytes.  What is read is used: every tensor, the tokenizer, the adapter;
of our own directories the engine itself is loaded and makes two tokens.
"""

from __future__ import annotations

import json
import random
import struct
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from bench import fuzz_gguf
from edgeagent.convert import configs
from edgeagent.convert.adapter import check_adapter
from edgeagent.convert.hf import HfCheckpoint, is_projection
from edgeagent.convert.ours import open_ours
from edgeagent.convert.seal import hash_files
from edgeagent.convert.sources import open_checkpoint
from edgeagent.errors import ContextFull, ModelError
from edgeagent.inspect import inspect_model, refused
from edgeagent.model.files import read_json, read_release
from edgeagent.model.generation import LoadedModel, Params
from edgeagent.model.safetensors import TensorInfo, parse_header, write_safetensors
from ota.release import make_release
from tests import fuzzing
from tests.convert.published import PUBLISHED
from tests.fuzzing import Case, Target
from tests.mutations import change_bytes, change_json, dump

#: What a reader may hold beside a file: its Python objects are some 60 times as large as one byte
#: of a header that becomes a number of a list, and the window of a file is 1 MiB.
SPARE_BYTES = 8 << 20
BYTES_A_BYTE = 80
GGUF_KINDS = (36, 34, 35, 42, 143, 142, 2, 1)
CONTEXT = 32  # enough for a prompt and two tokens
SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 32, "max_position_embeddings": 64,
}  # fmt: skip
ODD_CONFIG = (
    "silu", "relu2", "longrope", "linear", "llama3", "bitnet", "autobitlinear", "bitlinear",
    "online", "offline", {"rope_type": "linear", "factor": 2.0}, {"type": "yarn"},
    {"quant_method": "edgeagent"}, ["BitNetForCausalLM"], ["Qwen3ForCausalLM"], [1.0] * 4,
)  # fmt: skip
ODD_HEADER = ("F32", "F16", "BF16", "U8", "I8", "F64", "BOOL", [0, 0], [1 << 31, 2], [2] * 5, [])
ODD_GGUF = (0, 1, 2, 8, 12, 14, 30, 34, 35, 36, 38, 39, 42, 142, 143, "llama", "spm", "gpt2", [9])


def _header_and_data(file: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", file[:8])
    return json.loads(file[8 : 8 + length]), file[8 + length :]


def change_safetensors(rng: random.Random, sound: bytes) -> bytes:
    """Change something about a safetensors file."""
    header, data = _header_and_data(sound)
    kind = rng.random()
    if kind < 0.2:
        return change_bytes(rng, sound, len(sound) - len(data))
    if kind < 0.3:
        return sound[: -len(data)] + change_bytes(rng, data)
    text = dump(rng, change_json(rng, header, ODD_HEADER))
    text += b" " * (-(8 + len(text)) % 64)
    length = len(text) if rng.random() < 0.95 else rng.choice((0, 1, 2**31, 2**63, len(text) + 1))
    return struct.pack("<Q", length) + text + data


def _check_places(infos: Mapping[str, TensorInfo], size: int) -> None:
    """What was accepted lies within the file, and nothing lies over something else."""
    at = 0
    for info in sorted(infos.values(), key=lambda info: (info.begin, info.end)):
        assert at <= info.begin <= info.end <= size, info
        at = info.end


def _zeros(shapes: Mapping[str, tuple[int, ...]], dtype: str = "F16") -> list[Any]:
    width = {"F16": 2, "F32": 4, "U8": 1}[dtype]
    return [
        (name, dtype, shape, bytes(width * int(np.prod(shape)))) for name, shape in shapes.items()
    ]


def safetensors(folder: Path) -> Target:
    """The header of a safetensors file, of others and in place."""
    shapes = configs.expected_tensors(
        SIZES | {"tie_word_embeddings": False}, sub_norms=True, head_norms=True
    )
    path = folder / "sound.safetensors"
    with path.open("wb") as out:
        write_safetensors(out, _zeros(shapes), {"format": "pt"})
    sound = path.read_bytes()

    def read(data: bytes) -> None:
        for in_place in (False, True):
            infos, _ = parse_header(data, "fuzz", in_place=in_place)
            _check_places(infos, len(data))

    def make(rng: random.Random) -> Case:
        data = change_safetensors(rng, sound)
        return Case(data, lambda: read(data))

    return Target(make, ModelError, SPARE_BYTES, BYTES_A_BYTE)


def _inspect(path: Path) -> None:
    """Read all that `inspect` reads, and numbers of every tensor; or what it says of a refusal."""
    try:
        json.dumps(inspect_model(path, available_bytes=1 << 30))
        source = open_checkpoint(path)
        for name in source.shapes():
            source.floats(name, 0, 1)
    except ModelError as err:
        json.dumps(refused(path, err))
        raise


def gguf(folder: Path) -> Target:
    """GGUF files of every architecture and type."""
    arches = list(fuzz_gguf.ARCHS)
    seeds = [
        fuzz_gguf.sound(arches[i % len(arches)], kind, i)
        for i, kind in enumerate(GGUF_KINDS + GGUF_KINDS[::-1])
    ]
    for table, data in seeds:
        (folder / "sound.gguf").write_bytes(fuzz_gguf.encode(table, data))
        _inspect(folder / "sound.gguf")

    def make(rng: random.Random) -> Case:
        table, data = rng.choice(seeds)
        kind = rng.random()
        if kind < 0.75:
            changed = fuzz_gguf.encode(change_json(rng, table, ODD_GGUF), data)
        elif kind < 0.9:
            whole = fuzz_gguf.encode(table, data)
            changed = change_bytes(rng, whole, len(whole) - len(data))
        else:
            changed = fuzz_gguf.encode(table, change_bytes(rng, data))
        path = folder / "fuzz.gguf"
        path.write_bytes(changed)
        return Case(changed, lambda: _inspect(path))

    return Target(make, ModelError, SPARE_BYTES, BYTES_A_BYTE, trace_every=2)


def _small(published: Mapping[str, Any]) -> dict[str, Any]:
    """A published config with small sizes, for which there can be tensors."""
    small = {**published, **SIZES}
    return {key: value for key, value in small.items() if key not in ("auto_map",)}


def _write_checkpoint(folder: Path, config: Mapping[str, Any]) -> None:
    """Write zeros of the tensors of a config, packed where it says so."""
    normal = configs.normalise(config, "sound")
    method = config.get("quantization_config") or {}
    shapes = configs.expected_tensors(
        {**normal, "tie_word_embeddings": bool(normal["tie_word_embeddings"])},
        sub_norms=normal["architectures"][0] in (configs.BITNET, configs.BITNET_1BITLLM),
        head_norms=normal["architectures"][0] == configs.QWEN3,
    )
    packed = {
        name: (shape[0] // 4, shape[1])
        for name, shape in shapes.items()
        if is_projection(name) and method and method.get("quantization_mode") != "online"
    }
    scales = [(f"{name}_scale", "F32", (1,), struct.pack("<f", 2.0)) for name in packed]
    rest = {name: shape for name, shape in shapes.items() if name not in packed}
    folder.mkdir(exist_ok=True)
    with (folder / "model.safetensors").open("wb") as out:
        write_safetensors(out, [*_zeros(rest), *_zeros(packed, "U8"), *scales], {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def config(folder: Path) -> Target:
    """config.json and the index of shards beside sound tensors."""
    seeds = []
    for name, published in PUBLISHED.items():
        at = folder / name
        _write_checkpoint(at, _small(published))
        infos, _ = parse_header((at / "model.safetensors").read_bytes(), "sound", in_place=False)
        index = {"metadata": {}, "weight_map": dict.fromkeys(infos, "model.safetensors")}
        HfCheckpoint(at)
        seeds.append((at, _small(published), index))
        seeds.append((at, dict(published), index))

    def read(at: Path) -> None:
        source = HfCheckpoint(at)
        for name in source.shapes():
            source.floats(name, 0, 1)

    def make(rng: random.Random) -> Case:
        at, sound, index = rng.choice(seeds)
        text = dump(rng, change_json(rng, sound, ODD_CONFIG))
        index_path = at / "model.safetensors.index.json"
        index_path.unlink(missing_ok=True)
        if rng.random() < 0.2:
            text = json.dumps(sound).encode()
            names = ("../x", "config.json", "model.safetensors.index.json", "model.safetensors")
            index_path.write_bytes(dump(rng, change_json(rng, index, names)))
        (at / "config.json").write_bytes(text)
        return Case(text, lambda: read(at))

    return Target(make, ModelError, SPARE_BYTES, BYTES_A_BYTE)


def adapter(folder: Path) -> Target:
    """PEFT's two files, against the model that they add to, and in a loaded engine."""
    from tests.model.test_adapter import write_adapter
    from tests.tiny import make_model

    shapes = open_checkpoint(_once(folder / "model", make_model)).shapes()
    model = LoadedModel(folder / "model", context=64)
    write_adapter(folder / "sound")
    at = folder / "fuzz"
    at.mkdir(exist_ok=True)
    settings = json.loads((folder / "sound" / "adapter_config.json").read_text())
    settings |= {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 8}, "use_rslora": True}
    weights = (folder / "sound" / "adapter_model.safetensors").read_bytes()
    prompt = model.encode("ab", None)

    def read() -> None:
        check_adapter(at, shapes)
        model.set_adapter(at)
        list(model.generate(prompt, Params(max_tokens=2)))

    def make(rng: random.Random) -> Case:
        text, data = json.dumps(settings).encode(), weights
        if rng.random() < 0.5:
            text = dump(rng, change_json(rng, settings, ("LORA", "q_proj", "none", ["v_proj"])))
        if text == json.dumps(settings).encode() or rng.random() < 0.3:
            data = change_safetensors(rng, weights)
        (at / "adapter_config.json").write_bytes(text)
        (at / "adapter_model.safetensors").unlink(missing_ok=True)  # the old one stays mapped
        (at / "adapter_model.safetensors").write_bytes(data)
        return Case(text + data, read)

    return Target(make, ModelError, SPARE_BYTES, BYTES_A_BYTE)


def _once(path: Path, make: Callable[[Path], Path]) -> Path:
    return path if path.is_dir() else make(path)


def directory(folder: Path) -> Target:
    """A model directory of ours, its hashes made to agree: Python's checks and C's."""
    from tests.tiny import make_model

    at = _once(folder / "model", make_model)
    sound = {file.name: file.read_bytes() for file in at.iterdir()}
    release = read_release(at)
    names = sorted(name for name in sound if name not in ("release.json", "tokenizer.json"))

    def changed(rng: random.Random, name: str) -> bytes:
        if name.endswith(".safetensors"):
            return change_safetensors(rng, sound[name])
        odd = (*ODD_CONFIG, *names, 1, 2, 3, 8, 16)
        return dump(rng, change_json(rng, json.loads(sound[name]), odd))

    def read() -> None:
        said = read_json(at / "config.json").get("max_position_embeddings")
        fewer = isinstance(said, int) and 0 < said < CONTEXT
        model = LoadedModel(at, context=said if fewer else CONTEXT)
        with suppress(ContextFull):  # of a model of one position
            list(model.generate(model.encode("ab", None), Params(max_tokens=2)))
        source = open_ours(at)
        for name in source.shapes():
            source.floats(name, 0, 1)

    def make(rng: random.Random) -> Case:
        name = rng.choice(names)
        data = changed(rng, name)
        for file, text in sound.items():
            if (at / file).read_bytes() != text:
                (at / file).unlink()
                (at / file).write_bytes(text)
        (at / name).unlink()
        (at / name).write_bytes(data)
        new = make_release(
            release.name, release.version, release.counter, hash_files(at), release.health
        )
        (at / "release.json").write_bytes(new.text)
        return Case(data, read)

    size = sum(map(len, sound.values()))
    return Target(make, ModelError, SPARE_BYTES + BYTES_A_BYTE * size, BYTES_A_BYTE, trace_every=4)


TARGETS = {
    "safetensors": safetensors, "gguf": gguf, "config": config, "adapter": adapter,
    "directory": directory,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(fuzzing.main(__doc__, TARGETS))
