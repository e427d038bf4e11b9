"""Build the compiled modules, ``edgeagent._core`` and ``ota._flips``.

Static metadata lives in pyproject.toml.
"""

from __future__ import annotations

from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

# No -march: every variant names its instruction set on its own functions, and the best one is
# chosen at start.  No contraction to FMA: all machines must round alike.
CFLAGS = [
    "-std=c11",
    "-O3",
    "-ffp-contract=off",
    "-fno-trapping-math",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-pthread",
    "-Wextra",
]

core = Extension(
    "edgeagent._core",
    sources=["cext/_core.pyx", *sorted(map(str, Path("cext/src").glob("*.c")))],
    include_dirs=["cext/include"],
    depends=sorted(str(p) for kind in ("*.h", "*.pxi", "*.pxd") for p in Path("cext").rglob(kind)),
    extra_compile_args=CFLAGS,
    extra_link_args=["-pthread"],
)

# The entropy coder of deltas knows nothing of the engine, and an operator's machine needs no other.
flips = Extension(
    "ota._flips",
    sources=["cext/delta/_flips.pyx", "cext/delta/flips.c"],
    include_dirs=["cext/delta"],
    depends=sorted(map(str, Path("cext/delta").glob("*.h"))),
    extra_compile_args=CFLAGS,
)

setup(ext_modules=cythonize([core, flips], build_dir="build", include_path=["cext"]))
