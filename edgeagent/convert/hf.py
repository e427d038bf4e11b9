"""A Hugging Face directory of safetensors as a checkpoint.

What a projection is, is decided by what is stored, tensor by tensor:

    stored weight                weight_scale   it is
    U8 [out / 4, in]             yes            packed trits
    floats [out, in]             yes            trits as floats (saved from a loaded model)
    floats [out, in], BitNet     no             masters: ternarised here, as the model does itself
    floats [out, in], else       no             ternary times scales if exactly so, else floats

`weight_scale` has two opposite meanings: `linear_class` autobitlinear stores mean|w|, which is
multiplied by; bitlinear, the default, stores its reciprocal (transformers, `integrations/bitnet`).
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeagent.convert import configs
from edgeagent.convert.checkpoint import TokenizerFiles, TritMatrix
from edgeagent.convert.disk import DiskFile, to_float32
from edgeagent.convert.exact import exact_ternary, sample
from edgeagent.convert.gguf_types import decode_hf
from edgeagent.convert.pack import ternarise_absmean
from edgeagent.errors import ModelError
from edgeagent.model.files import CONFIG_NAME, INDEX_NAME, QUANT_METHOD, read_json
from edgeagent.model.safetensors import TensorInfo, parse_header

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MAX_FILES = 4096
_HEAD = "lm_head.weight"
_SCALE = ".weight_scale"
_RENAMED = {
    ".self_attn.inner_attn_ln.weight": ".self_attn.attn_sub_norm.weight",
    ".mlp.ffn_layernorm.weight": ".mlp.ffn_sub_norm.weight",
}
_IGNORED = (".rotary_emb.inv_freq",)  # a constant that old versions saved
_BITNETS = (configs.BITNET, configs.BITNET_1BITLLM)


def is_projection(name: str) -> bool:
    """Say whether a tensor is one of the seven matrices of a layer."""
    return name.startswith("model.layers.") and name.endswith(
        tuple(f".{projection}.weight" for projection in PROJECTIONS)
    )


def _canonical(name: str, where: str) -> str:
    if name.endswith((".rms_norm.weight", "_proj.norm.weight")):
        raise ModelError(
            f"{where}: {name}: a norm before each projection (use_rms_norm, BitNet embedding "
            "models) is not supported: the engine has norms a layer only"
        )
    for old, new in _RENAMED.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


class _Shards:
    """The tensors of some safetensors files by their canonical names."""

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        self.places: dict[str, tuple[DiskFile, TensorInfo]] = {}
        self.files: list[DiskFile] = []
        for name in names:
            self._add(DiskFile(path / name))

    def _add(self, file: DiskFile) -> None:
        where = file.path.name
        self.files.append(file)
        try:
            with file.path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as m:
                infos, _ = parse_header(m, where, in_place=False)
        except (OSError, ValueError) as err:  # ValueError: an empty file
            raise ModelError(f"{where}: cannot be mapped: {err}") from err
        for name, info in infos.items():
            if name.endswith(_IGNORED):
                continue
            name = _canonical(name, where)
            if name in self.places:
                raise ModelError(f"{where}: {name} is in two files")
            self.places[name] = (file, info)

    def rows(self, name: str, begin: int = 0, end: int | None = None) -> NDArray[np.uint8]:
        """Read the bytes of some rows."""
        file, info = self.places[name]
        n_rows = info.shape[0] if info.shape else 1
        begin, end, _ = slice(begin, end).indices(n_rows)
        row_bytes = (info.end - info.begin) // n_rows if n_rows else 0
        return file.read(info.begin + begin * row_bytes, max(end - begin, 0) * row_bytes)

    def floats(self, name: str, begin: int = 0, end: int | None = None) -> NDArray[np.float32]:
        """Read some rows as float32."""
        file, info = self.places[name]
        try:
            values = to_float32(info.dtype, self.rows(name, begin, end))
        except ModelError as err:
            raise ModelError(f"{file.path.name}: {name}: {err}") from err
        return values.reshape(-1, *info.shape[1:]) if info.shape else values


def _shard_names(path: Path) -> list[str]:
    if (path / INDEX_NAME).is_file():
        weight_map = read_json(path / INDEX_NAME).get("weight_map")
        values = list(weight_map.values()) if isinstance(weight_map, dict) else []
        are_names = all(isinstance(name, str) for name in values)
        names = sorted(set(values)) if are_names else []
        if not names or len(names) > MAX_FILES:
            raise ModelError(f"{INDEX_NAME}: expected a weight_map of tensor names to files")
        for name in names:
            if Path(name).name != name or "\0" in name:
                raise ModelError(f"{INDEX_NAME}: {name!r}: expected a file of the directory")
        return names
    names = sorted(
        file.name for file in path.glob("*.safetensors") if not file.name.startswith("adapter_")
    )
    if "model.safetensors" in names:
        return ["model.safetensors"]
    if not names:
        hint = "; pickles (*.bin) are not read" if any(path.glob("*.bin")) else ""
        raise ModelError(f"{path}: expected *.safetensors, found none{hint}")
    return names


class HfCheckpoint:
    """A Hugging Face directory; see `checkpoint.Checkpoint`."""

    def __init__(self, path: Path) -> None:
        """Read the config and the headers of `path`; no tensor yet.

        Raises:
            ModelError: not a checkpoint of a family that we know.
        """
        self._path = path
        raw = read_json(path / CONFIG_NAME)
        where = CONFIG_NAME
        quantization = raw.get("quantization_config")
        self._quantization: dict[str, Any] = dict(_check_method(quantization, where))
        self._shards = _Shards(path, _shard_names(path))
        config = configs.normalise(raw, where)
        configs.settle_tying(config, _HEAD in self._shards.places, where)
        if config["tie_word_embeddings"]:
            self._shards.places.pop(_HEAD, None)
        self.config: Mapping[str, Any] = config
        self._is_bitnet = config["architectures"][0] in _BITNETS or bool(self._quantization)
        self._exact: dict[str, bool] = {}
        self._shapes = self._read_shapes()
        configs.check_tensors(config, self._shapes, str(path))
        self.activation_bits = self._activation_bits(raw)

    @property
    def identity(self) -> str:
        """Return a hash that changes when a file of the source does."""
        text = "\n".join(file.identity() for file in self._shards.files)
        return hashlib.sha256(text.encode()).hexdigest()

    def _read_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = {}
        for name, (_, info) in self._shards.places.items():
            if name.endswith(_SCALE):
                if name.removesuffix("_scale") not in self._shards.places:
                    raise ModelError(f"{self._path}: {name}: a scale without its weight")
                continue
            packed = is_projection(name) and info.dtype == "U8" and len(info.shape) == 2
            shapes[name] = (info.shape[0] * 4, info.shape[1]) if packed else info.shape
        return shapes

    def _activation_bits(self, raw: Mapping[str, Any]) -> int:
        """8 where the model is a BitNet; 16 where trits are found and nothing says so."""
        if self._is_bitnet or raw.get("is_bitnet_config"):
            return 8
        first = next(name for name in self._shapes if is_projection(name))
        return 16 if self.is_ternary(first) else 8

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name every tensor and its logical shape."""
        return self._shapes

    def _info(self, name: str) -> TensorInfo:
        return self._shards.places[name][1]

    def is_ternary(self, name: str) -> bool:
        """Say whether `trits` answers for this tensor."""
        if not is_projection(name):
            return False
        if self._info(name).dtype == "U8" or f"{name}_scale" in self._shards.places:
            return True
        return self._is_bitnet or self._is_exact(name)

    def _is_exact(self, name: str) -> bool:
        if name not in self._exact:
            rows = [self._shards.floats(name, r, r + 1) for r in sample(self._shapes[name][0])]
            self._exact[name] = exact_ternary(np.concatenate(rows)) is not None
        return self._exact[name]

    def _scale(self, name: str) -> np.float32:
        stored = f"{name}_scale"
        if stored not in self._shards.places:
            raise ModelError(f"{self._path}: {stored} is missing beside packed trits")
        values = self._shards.floats(stored).ravel()
        if values.size != 1 or not np.isfinite(values[0]) or values[0] <= 0:
            raise ModelError(f"{self._path}: {stored}: expected one number above 0, got {values}")
        if self._quantization.get("linear_class", "bitlinear") == "bitlinear":
            return np.float32(1 / values[0])
        return np.float32(values[0])

    def trits(self, name: str) -> TritMatrix:
        """Read a whole ternary matrix.

        Raises:
            ModelError: the bytes are no trits.
        """
        info = self._info(name)
        try:
            if info.dtype == "U8":
                packed = self._shards.rows(name).reshape(info.shape)
                return _scaled(decode_hf(packed), self._scale(name))
            values = self._shards.floats(name)
            if f"{name}_scale" in self._shards.places:
                return _scaled(_unpacked(values), self._scale(name))
            return self._found(values)
        except ModelError as err:
            raise ModelError(f"{self._path}: {name}: {err}") from err

    def _found(self, values: NDArray[np.float32]) -> TritMatrix:
        """Return the trits of a matrix that is stored as floats alone."""
        if self._is_bitnet:
            if not np.isfinite(values).all():
                raise ModelError("expected finite weights, found infinity or NaN")
            return _scaled(*ternarise_absmean(values))
        exact = exact_ternary(values)
        if exact is None:
            raise ModelError("floats that are not ternary: say how to ternarise them")
        return exact

    def floats(self, name: str, begin: int = 0, end: int | None = None) -> NDArray[np.float32]:
        """Read rows as float32.

        Raises:
            ModelError: the tensor has no numbers that we know.
        """
        if self._info(name).dtype == "U8" or f"{name}_scale" in self._shards.places:
            matrix = self.trits(name)
            return np.asarray(matrix.trits[begin:end] * matrix.scales[0, 0], np.float32)
        return self._shards.floats(name, begin, end)

    def tokenizer(self) -> TokenizerFiles | None:
        """Read the tokenizer; None when there is none.

        Raises:
            ModelError: there is one that we cannot use.
        """
        from edgeagent.convert.tokenizers import from_hf_dir

        return from_hf_dir(self._path)


def _check_method(quantization: Any, where: str) -> Mapping[str, Any]:
    if quantization is None:
        return {}
    if not isinstance(quantization, dict):
        raise ModelError(f"{where}: quantization_config: expected an object")
    method = quantization.get("quant_method")
    if method == QUANT_METHOD:
        raise ModelError(f"{where}: this is a directory of ours without its release.json")
    if method != "bitnet":
        raise ModelError(f"{where}: quant_method: expected 'bitnet' or none, got {method!r}")
    if quantization.get("use_rms_norm"):
        raise ModelError(
            f"{where}: use_rms_norm: a norm before each projection is not supported: "
            "the engine has norms a layer only"
        )
    linear_class = quantization.get("linear_class", "bitlinear")
    if linear_class not in ("bitlinear", "autobitlinear"):
        raise ModelError(
            f"{where}: linear_class: expected bitlinear or autobitlinear, got {linear_class!r}: "
            "it decides whether weight_scale is multiplied or divided by"
        )
    return quantization


def _scaled(trits: NDArray[np.int8], scale: np.float32) -> TritMatrix:
    return TritMatrix(trits, np.full((1, 1), scale, np.float32))


def _unpacked(values: NDArray[np.float32]) -> NDArray[np.int8]:
    trits = np.clip(np.nan_to_num(values), -2, 2).astype(np.int8)
    if not np.array_equal(trits, values) or (np.abs(trits) > 1).any():
        raise ModelError("floats beside a weight_scale: expected -1, 0 and 1 only")
    return trits
