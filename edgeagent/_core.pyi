"""What type checkers see of the compiled core; cext/_core.pyx is the code."""

from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import Buffer

def variants() -> list[str]:
    """Name every variant that is compiled in, best first."""

def supported_variants() -> list[str]:
    """Name every variant that this CPU can run, best first."""

def check_trits(buffer: Buffer, layout: int = 1) -> None:
    """Raise ValueError when a packed plane of this layout holds an illegal byte."""

def read_bandwidth(data: Buffer, threads: int = 1) -> tuple[float, int]:
    """Read all of ``data`` once; return bytes a second and the xor of its 64-bit words.

    Raises:
        ValueError: no bytes, or ``threads`` is out of range.
    """

def kv_bytes(
    *,
    n_layers: int,
    n_kv_heads: int,
    head_dim: int,
    context: int,
    kv_bits: int = 16,
    kv_group_size: int = 64,
) -> int:
    """Return the bytes of a KV cache when every position is used, of a model that is not loaded.

    Raises:
        ValueError: ``kv_bits`` or ``kv_group_size`` is out of range.
    """

class Kernels:
    """The kernel table of one variant, chosen once.  Its methods exist for tests and benchmarks."""

    def __init__(self, variant: str | None = None) -> None:
        """Choose ``variant``, else $EDGEAGENT_KERNEL, else the best one.

        Raises:
            ValueError: it is unknown, or this CPU cannot run it.
        """
    @property
    def name(self) -> str: ...
    def gemv_rows(
        self,
        plane: Buffer,
        x: Buffer,
        y: Buffer,
        rows: Buffer | None = None,
        *,
        layout: int = 1,
        repeat: int = 1,
    ) -> None:
        """Write ``y[r] = sum_k W[r, k] x[k]`` of a plane of rows.

        Args:
            plane: (out, ceil(in / 128) * 32) uint8; in layout 2 (out, ceil(in / 320) * 64).
            layout: 1 (2 bit) or 2 (base 3).
            x: (in,) int8, from -127 to 127.
            y: (out,) int32; only the named rows are written.
            rows: (n,) uint32, or None for all.
            repeat: how often to do it, for benchmarks.
        """
    def gemv_cols(
        self,
        plane: Buffer,
        x: Buffer,
        y: Buffer,
        live: Buffer | None = None,
        units: tuple[int, int] | None = None,
        *,
        repeat: int = 1,
    ) -> None:
        """Write ``y[o] = sum_k W[o, k] x[k]`` of a plane of lines (layout 1).

        Args:
            plane: (panels, in, 64) uint8.
            x: (in,) int8, from -127 to 127.
            y: (panels * 256,) int32; only the units' outputs are written.
            live: (n,) uint32, ascending: the only inputs to visit; None for all.
            units: range of 128 outputs each; None for all.
            repeat: how often to do it, for benchmarks.
        """
    def gemv_tiles(self, plane: Buffer, x: Buffer, y: Buffer, *, repeat: int = 1) -> None:
        """Write ``y[o] = sum_k W[o, k] x[k]`` of a plane of tiles (layout 2).

        Args:
            plane: (panels, ceil(in / 4), 16, 4) uint8.
            x: (in,) int8, from -127 to 127.
            y: (panels * 80,) int32.
            repeat: how often to do it, for benchmarks.
        """
    def gemv_channels(
        self, plane: Buffer, x: Buffer, y: Buffer, live: Buffer | None = None, *, copies: int = 1
    ) -> None:
        """Write ``y[o] = sum_k W[o, k] x[k]`` of a plane of channels (layout 2).

        Args:
            plane: (copies * in, blocks, 64) uint8.
            x: (in,) int8, from -127 to 127.
            y: (blocks * 320,) int32.
            live: (n,) uint32, ascending: the only inputs to visit; None for all.
            copies: planes that lie end to end and are all multiplied, for benchmarks.
        """
    def dot_f16(self, rows: Buffer, x: Buffer, y: Buffer, *, repeat: int = 1) -> None:
        """Write ``y[r] = rows[r] . x``: (n_rows, n) float16 bits, (n,) and (n_rows,) float32."""
    def dot_f32(self, rows: Buffer, x: Buffer, y: Buffer, *, repeat: int = 1) -> None:
        """Write ``y[r] = rows[r] . x``: (n_rows, n), (n,), (n_rows,) float32."""
    def mix_f32(self, rows: Buffer, w: Buffer, y: Buffer, *, repeat: int = 1) -> None:
        """Write ``y = sum_r w[r] rows[r]``: (n_rows, n), (n_rows,), (n,) float32."""

class Model:
    """A model's weights, checked once and used where they lie."""

    def __init__(
        self,
        config: dict[str, Any],
        tensors: Mapping[str, tuple[str, tuple[int, ...], memoryview]],
        kernel: str | None = None,
    ) -> None:
        """Check everything against ``config`` and keep a hold on the buffers; nothing is copied.

        Args:
            config: the keys of config.json.
            tensors: name to (safetensors dtype, shape, bytes).
            kernel: a variant's name; None for $EDGEAGENT_KERNEL, else the best one.

        Raises:
            ValueError: what was expected, what came, and of which key or tensor.
        """
    @property
    def kernel(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def context(self) -> int:
        """``max_position_embeddings``."""
    @property
    def n_layers(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def n_parameters(self) -> int:
        """Trits, embedding, head and norms; scales are not counted."""
    @property
    def ternary_bytes(self) -> int:
        """Bytes of all packed planes, padding included."""
    @property
    def other_bytes(self) -> int: ...
    @property
    def scan_bytes(self) -> int:
        """Bytes of the planes of the two-stage head; 0 when the model has none."""

class Adapter:
    """Low-rank additions for the projections of one model, checked once, in float32."""

    def __init__(
        self,
        model: Model,
        modules: Mapping[
            str,
            tuple[
                float,
                tuple[str, tuple[int, ...], memoryview],
                tuple[str, tuple[int, ...], memoryview],
            ],
        ],
    ) -> None:
        """Check everything against the model and copy it: y += scale * B (A x).

        Args:
            model: the only one whose sessions may use it.
            modules: "model.layers.N.self_attn.q_proj", ... to (scale, A, B); A is (rank, in) and B
                (out, rank), each (F32, F16 or BF16; shape; bytes).

        Raises:
            ValueError: what was expected, what came, and of which module.
        """
    @property
    def n_parameters(self) -> int: ...

class Session:
    """A KV cache, its threads and the last hidden state.  One thread at a time may use it."""

    def __init__(
        self,
        model: Model,
        context: int,
        threads: int = 1,
        zero_skip: bool = True,
        kv_bits: int = 16,
        kv_group_size: int = 64,
        adapter: Adapter | None = None,
    ) -> None:
        """Take memory and threads.

        Args:
            model: kept alive by the session.
            context: positions, at most the model's.
            threads: compute threads; the bits do not depend on it.
            zero_skip: skip zeros; the bits do not depend on it.
            kv_bits: bits of a number in the KV cache: 16, 8 or 4; 32 is the reference.
            kv_group_size: channels that share a scale in 8 and 4 bits, a multiple of 32.
            adapter: one of this model, or None.

        Raises:
            ValueError: something is out of range.
            MemoryError: there is no memory for the cache, or no thread.
        """
    @property
    def n_past(self) -> int:
        """Positions in the KV cache."""
    @property
    def context(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @threads.setter
    def threads(self, n: int) -> None: ...
    @property
    def zero_skip(self) -> bool: ...
    @zero_skip.setter
    def zero_skip(self, on: bool) -> None: ...
    @property
    def kv_bits(self) -> int: ...
    @property
    def kv_group_size(self) -> int: ...
    @property
    def kv_bytes(self) -> int:
        """Bytes of the KV cache when every position is used."""
    def eval(self, tokens: Sequence[int]) -> None:
        """Append ``tokens`` to the KV cache; the last one's logits can then be asked for.

        Raises:
            ValueError: no tokens, or an id outside the vocabulary; nothing was changed.
            OverflowError: they do not fit the free part of the KV cache; nothing was changed.
            RuntimeError: another thread is using this session.
        """
    @property
    def adapter(self) -> Adapter | None: ...
    def set_adapter(self, adapter: Adapter | None) -> None:
        """Use ``adapter``, or none, from now on; another one than before empties the KV cache.

        Raises:
            ValueError: it was made for another model; nothing was changed.
            MemoryError: there is no memory for it; nothing was changed.
            RuntimeError: another thread is using this session.
        """
    def truncate(self, n_past: int) -> None:
        """Forget every position from ``n_past`` on, and the logits."""
    def logits(self) -> memoryview:
        """Return (vocab,) float32 of the last position, read-only, valid until the next eval."""
    def hidden(self) -> memoryview:
        """Return (hidden,) float32: what the head multiplies; a copy."""
    def head_counters(self) -> dict[str, int]:
        """Return how the head was evaluated since the last reset.

        ``full_scans``; ``queries`` of candidates, of which ``fallbacks`` needed a full scan and
        ``grown`` found more than was guessed; rows ``scanned``, ``refined`` and ``rescored``.
        """
    def counters(self) -> list[dict[str, int]]:
        """Return what was computed and skipped since the last reset, one dictionary a layer.

        Keys: ``multiplications``, ``multiplications_skipped``, ``weight_bytes``,
        ``weight_bytes_skipped``; ``activations`` and ``zero_activations`` of all matrix inputs,
        ``down_inputs`` and ``zero_down_inputs`` of the last one; ``gates`` and ``closed_gates`` of
        the feed-forward part.
        """
    def reset_counters(self) -> None: ...

class Sampler:
    """Logits to a token; the same seed gives the same tokens on every machine.

    The order is: repetition penalty, temperature, top-k, top-p, min-p, draw.  Temperature 0 takes
    the largest logit, the lowest token of a tie.  A token in ``recent`` is penalised once.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
    ) -> None: ...
    def sample(self, session: Session, recent: Sequence[int] = ()) -> int:
        """Draw the next token of ``session``; tokens in ``recent`` are made less likely."""
