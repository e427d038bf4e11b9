"""Leave out the tests that need an optional library this machine lacks, and say so."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

_NEEDS = {
    "test_torch_model.py": ("torch", "numpy", "safetensors"),
    "test_torch_loop.py": ("torch", "numpy", "safetensors", "tokenizers"),
    "test_tokenizer.py": ("tokenizers",),
    "test_data.py": ("numpy", "tokenizers"),
    "test_corpus_home.py": ("yaml", "zstandard"),
    "test_archive.py": ("zstandard",),
}


def _missing(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if importlib.util.find_spec(name) is None]


_LEFT_OUT = {file: gone for file, needs in _NEEDS.items() if (gone := _missing(needs))}

collect_ignore = list(_LEFT_OUT)


if _LEFT_OUT and "NOT_RUN_FILE" in os.environ:  # `make test` says it in its last line
    _GONE = sorted({name for names in _LEFT_OUT.values() for name in names})
    with Path(os.environ["NOT_RUN_FILE"]).open("a") as _file:
        _file.write(f"{', '.join(sorted(_LEFT_OUT))}: {', '.join(_GONE)} not installed\n")
