"""Open any source of a model by what lies there."""

from __future__ import annotations

from pathlib import Path

from edgeagent.convert.checkpoint import Checkpoint, TokenizerFiles
from edgeagent.errors import ModelError
from edgeagent.model.files import CONFIG_NAME
from ota.release import RELEASE_FILE

GGUF_MAGIC = b"GGUF"
I2S_DEFAULT = "canonical"


def open_checkpoint(
    path: Path, *, tokenizer: Path | None = None, i2s_variant: str = I2S_DEFAULT
) -> Checkpoint:
    """Open a Hugging Face directory, a GGUF file, a file of llama2.c, or a directory of ours.

    Args:
        path: file or directory.
        tokenizer: of a llama2.c file, which has none: `tokenizer.model` or `tokenizer.bin`.
        i2s_variant: how an I2_S tensor is laid out (`gguf_types.I2S_VARIANTS`); no file says.

    Raises:
        ModelError: what is there is no model that we read, or nothing is there.
    """
    if path.is_dir():
        return _open_directory(path)
    try:
        with path.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
    except OSError as err:
        raise ModelError(
            f"{path}: expected a GGUF file or a directory with {CONFIG_NAME}: {err.strerror}"
        ) from err
    if magic == GGUF_MAGIC:
        from edgeagent.convert.gguf import GgufCheckpoint

        return GgufCheckpoint(path, i2s_variant=i2s_variant)
    if path.suffix == ".bin":
        from edgeagent.convert.llama2c import Llama2cCheckpoint

        return Llama2cCheckpoint(path, tokenizer)
    raise ModelError(f"{path}: expected a GGUF file or a directory with {CONFIG_NAME}")


def _open_directory(path: Path) -> Checkpoint:
    if (path / RELEASE_FILE).is_file():
        from edgeagent.convert.ours import open_ours

        return open_ours(path)
    if not (path / CONFIG_NAME).is_file():
        raise ModelError(f"{path}: expected a directory with {CONFIG_NAME}")
    from edgeagent.convert.hf import HfCheckpoint

    return HfCheckpoint(path)


def open_tokenizer(path: Path) -> TokenizerFiles:
    """Read the tokenizer of another directory.

    Raises:
        ModelError: there is none, or one that we cannot use.
    """
    from edgeagent.convert.tokenizers import from_hf_dir

    found = from_hf_dir(path) if path.is_dir() else None
    if found is None:
        raise ModelError(f"{path}: expected a directory with tokenizer.json or tokenizer.model")
    return found
