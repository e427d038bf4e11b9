"""What bench/arm.py counts and predicts: CPUs, kernels, boards, models; and the tables it writes.

Bandwidths are published measurements where there are any, each with its source.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from arm_model import Board, Phase, Shape, body, compute_bound, token_s

THREADS = (1, 4)


@dataclass(frozen=True, slots=True)
class Cpu:
    """A core: what QEMU emulates, and which of LLVM's models describe it.

    LLVM gives its models of single cores to few: its `cortex-a72`, `cortex-a76` and `cortex-a78`
    are all the one of the Cortex-A57.  The first name is the model that predictions use: Neoverse
    N1 is the server's version of the A76; N2 is the nearest described core to the A78, which has
    the same two vector pipes.
    """

    name: str  # of GCC too
    qemu: str
    mca: tuple[str, ...]
    variants: tuple[str, ...]  # of our kernels, best first
    peer: bool = True  # its SVE kernels depend on a width that the emulator does not know


CPUS = (
    Cpu("cortex-a72", "cortex-a72", ("cortex-a72",), ("neon",)),
    Cpu("cortex-a76", "cortex-a76", ("neoverse-n1", "cortex-a76"), ("neon_dotprod",)),
    Cpu("cortex-a78", "max", ("neoverse-n2", "cortex-a78"), ("neon_dotprod",)),
    Cpu("cortex-a710", "max", ("cortex-a710",), ("neon_i8mm",), peer=False),
)


# What QEMU emulates while it counts ours: the least core that a variant runs on.
QEMU_OF = {"neon": "cortex-a72", "neon_dotprod": "cortex-a76", "neon_i8mm": "max"}


@dataclass(frozen=True, slots=True)
class Kernel:
    """An op and the matrix it is counted on; large enough that rows and columns dominate."""

    op: str
    bits: float  # a weight
    n_out: int = 256
    n_in: int = 1280
    tokens: int = 1
    variants: tuple[str, ...] = ("neon", "neon_dotprod")  # that have one of their own

    @property
    def weights(self) -> int:
        """Products of one call."""
        return self.n_out * self.n_in * self.tokens


STRIPS = ("neon", "neon_dotprod", "neon_i8mm")
BASE3 = 1.6  # five trits a byte
GEMM_TOKENS = 16  # as in bench/arm_kernels.c: what goes through a layer together
OURS = (
    Kernel("gemv_rows_2bit", 2),
    Kernel("gemv_cols", 2),
    Kernel("gemv_rows_base3", BASE3),
    Kernel("gemv_tiles", BASE3, n_out=320),
    Kernel("gemv_channels", BASE3, n_out=640, n_in=512),
    Kernel("gemm_rows_2bit", 2, n_out=32, n_in=1280, tokens=GEMM_TOKENS),
    Kernel("gemm_cols", 2, n_out=128, n_in=512, tokens=GEMM_TOKENS, variants=STRIPS),
    Kernel("gemm_rows_base3", BASE3, n_out=32, n_in=1280, tokens=GEMM_TOKENS),
    Kernel("gemm_tiles", BASE3, n_out=80, n_in=512, tokens=GEMM_TOKENS, variants=STRIPS),
    Kernel("gemm_channels", BASE3, n_out=320, n_in=256, tokens=GEMM_TOKENS, variants=STRIPS),
    Kernel("scan", 5.25, n_out=32),
    Kernel("dot_f16", 16, n_out=32),
)
PEER = (
    Kernel("tq2_0", 2.0625),
    Kernel("tq1_0", 1.6875),
    Kernel("q6_K", 6.5625),
    Kernel("q8_0", 8.5),
)
BITS = {kernel.op: kernel.bits for kernel in (*OURS, *PEER)}


@dataclass(frozen=True, slots=True)
class Source:
    """A board and where its figures come from."""

    board: Board
    text: str


SOURCES = (
    Source(
        Board("Raspberry Pi 4", "cortex-a72", 1.8, {1: 4.8, 4: 4.8}),
        "STREAM triad, one core: 4.8 GB/s (sci-pi.org.uk/bench/stream.html)",
    ),
    Source(
        Board("Raspberry Pi 5", "cortex-a76", 2.4, {1: 9.26, 4: 11.59}),
        "reading only: 9.26 GB/s with one thread, 11.59 with four "
        "(github.com/ggml-org/llama.cpp/issues/26484)",
    ),
    Source(
        Board("Jetson Orin Nano 8 GB", "cortex-a78", 1.5, {1: 13.5, 4: 41.0}),
        "memcpy 6.73 GB/s with one thread, read and written "
        "(github.com/ThomasKaiser/sbc-bench/issues/65); four threads: assumed, 60 % of the "
        "68 GB/s peak",
    ),
    Source(
        Board("Jetson AGX Orin", "cortex-a78", 2.2, {1: 13.5, 4: 54.0}),
        "assumed: one thread as on the Orin Nano, four threads four times that, below 60 % of "
        "the 204 GB/s peak",
    ),
)

SHAPES = (
    Shape("small", layers=12, hidden=512, ffn=2048, kv=512, vocab=32_000),
    Shape("2b4t", layers=30, hidden=2560, ffn=6912, kv=640, vocab=128_256),
)

# Shares of `down` and `up` that are read: 80 % zero activations, 70 % closed gates.
ZEROS = {"down": 0.2, "up": 0.3}


def _ternary(
    shape: Shape, ops: Mapping[str, str], read: Mapping[str, float] | None = None
) -> list[Phase]:
    """The ternary matrices; `ops` names the kernel of each kind, "" of those not named."""
    return [
        Phase(kind, op, weights, BITS[op], (read or {}).get(kind, 1.0))
        for kind, weights in body(shape).items()
        if (op := ops.get(kind, ops[""]))
    ]


def engines(shape: Shape) -> dict[str, list[Phase]]:
    """The phases of a token, by engine."""
    head = shape.vocab * shape.hidden
    two_bit = {"": "gemv_cols", "up": "gemv_rows_2bit"}
    base3 = {"": "gemv_tiles", "down": "gemv_channels", "up": "gemv_rows_base3"}
    own_head = Phase("head", "scan", head, BITS["scan"])
    six = Phase("head", "q6_K", head, BITS["q6_K"])
    return {
        "edgeagent, 2 bit, no zeros": [*_ternary(shape, {"": "gemv_cols"}), own_head],
        "edgeagent, base 3, no zeros": [*_ternary(shape, {"": "gemv_tiles"}), own_head],
        "edgeagent, 2 bit, zeros": [*_ternary(shape, two_bit, ZEROS), own_head],
        "edgeagent, base 3, zeros": [*_ternary(shape, base3, ZEROS), own_head],
        "llama.cpp TQ2_0": [*_ternary(shape, {"": "tq2_0"}), six],
        "llama.cpp TQ1_0": [*_ternary(shape, {"": "tq1_0"}), six],
        "llama.cpp Q8_0": [
            *_ternary(shape, {"": "q8_0"}),
            Phase("head", "q8_0", head, BITS["q8_0"]),
        ],
    }


def prefills(shape: Shape) -> dict[str, list[Phase]]:
    """The phases of one of GEMM_TOKENS prompt tokens, by engine: memory is read once for all."""

    def share(ops: Mapping[str, str]) -> list[Phase]:
        return [replace(p, bits=p.bits / GEMM_TOKENS) for p in _ternary(shape, ops)]

    return {
        "edgeagent, 2 bit": share({"": "gemm_cols"}),
        "edgeagent, base 3": share({"": "gemm_tiles"}),
        "llama.cpp TQ2_0": share({"": "tq2_0"}),
        "llama.cpp TQ1_0": share({"": "tq1_0"}),
        "llama.cpp Q8_0": share({"": "q8_0"}),
    }


Figures = Mapping[str, Sequence[Mapping[str, object]]]  # CPU to figures of its kernels


def cycles_by_op(cpu: Cpu, figures: Figures) -> dict[str, float]:
    """Cycles of a weight by op, of the variant that the engine would choose."""
    found = {figure["kernel"]: figure["cycles"][cpu.mca[0]] for figure in figures[cpu.name]}
    own = {k.op: found[f"{k.op}, {cpu.variants[0]}"] for k in OURS}
    return own | {k.op: found[k.op] for k in PEER if k.op in found}


def _predict(
    what: str, shape: Shape, source: Source, cycles: Mapping[str, float]
) -> Iterator[dict]:
    makers = {"decode": engines, "prefill": prefills}
    for engine, phases in makers[what](shape).items():
        if any(phase.kernel not in cycles for phase in phases):
            continue  # without the peer
        for threads in THREADS:
            seconds = token_s(phases, cycles, source.board, threads)
            yield {
                "what": what,
                "shape": shape.name,
                "board": source.board.name,
                "engine": engine,
                "threads": threads,
                "tok_s": round(1 / seconds, 1),
                "mb_per_token": round(sum(p.weights * p.read * p.bits / 8e6 for p in phases), 1),
                "compute_bound": round(compute_bound(phases, cycles, source.board, threads), 2),
            }


def predictions(figures: Figures) -> list[dict]:
    """Tokens per second of every shape, board, engine and number of threads."""
    cpus = {cpu.name: cpu for cpu in CPUS}
    return [
        row
        for shape in SHAPES
        for source in SOURCES
        for what in ("decode", "prefill")
        for row in _predict(what, shape, source, cycles_by_op(cpus[source.board.cpu], figures))
    ]


# Published figures of llama.cpp, four threads, Q8_0: what the model of this file says to them.
@dataclass(frozen=True, slots=True)
class Published:
    """A measured speed that the prediction is held against."""

    board: str
    model: str
    gb: float  # of the file
    tok_s: float
    text: str


PUBLISHED = (
    Published("Raspberry Pi 5", "Q8_0, 0.531 GB", 0.531, 19.87, "llama.cpp issue 26484"),
    Published(
        "Raspberry Pi 5",
        "TinyLlama Q8_0, 1.17 GB",
        1.17,
        9,
        "LLaMA Now Goes Faster on CPUs (justine.lol, 2024)",
    ),
    Published(
        "Raspberry Pi 4",
        "TinyLlama Q8_0, 1.17 GB",
        1.17,
        3,
        "LLaMA Now Goes Faster on CPUs (justine.lol, 2024)",
    ),
)


def checks(figures: Figures) -> list[dict]:
    """The same arithmetic for speeds that others measured."""
    cpus = {cpu.name: cpu for cpu in CPUS}
    boards = {source.board.name: source.board for source in SOURCES}
    found = []
    for entry in PUBLISHED:
        board = boards[entry.board]
        cycles = cycles_by_op(cpus[board.cpu], figures)
        if "q8_0" not in cycles:
            continue
        phase = Phase("all", "q8_0", int(entry.gb * 8e9 / BITS["q8_0"]), BITS["q8_0"])
        predicted = 1 / token_s([phase], cycles, board, 4)
        found.append(
            {
                "board": entry.board,
                "model": entry.model,
                "measured": entry.tok_s,
                "predicted": round(predicted, 1),
                "source": entry.text,
            }
        )
    return found


# ---- Markdown ----


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _figure_cell(cpu: Cpu, figures: Figures, op: str) -> str:
    """``instructions / cycles``."""
    for figure in figures[cpu.name]:
        if figure["kernel"].split(",")[0] == op:
            return f"{figure['instructions']:.3f} / {figure['cycles'][cpu.mca[0]]:.3f}"
    return ""


def kernel_table(figures: Figures) -> str:
    """Instructions and cycles of a weight, a row a kernel."""
    cells = [[_figure_cell(cpu, figures, k.op) for cpu in CPUS] for k in (*OURS, *PEER)]
    names = [
        *(f"`{k.op}`" + (f", a token of {k.tokens}" if k.tokens > 1 else "") for k in OURS),
        *(f"llama.cpp `{k.op}`" for k in PEER),
    ]
    rows = [[name, *row] for name, row in zip(names, cells, strict=True) if any(row)]
    heads = [f"{cpu.name}, `{cpu.variants[0]}`" for cpu in CPUS]
    return table(["a weight: instructions / cycles", *heads], rows)


def speed_table(rows: Sequence[Mapping[str, object]], shape: str, what: str) -> str:
    """Predicted tokens/s, a row an engine, a column a board."""
    mine = [row for row in rows if row["shape"] == shape and row["what"] == what]
    boards = list(dict.fromkeys(row["board"] for row in mine))
    lines = []
    for engine in dict.fromkeys(row["engine"] for row in mine):
        found = {(r["board"], r["threads"]): r for r in mine if r["engine"] == engine}
        first = next(iter(found.values()))
        cells = [" / ".join(_cell(found[board, t]) for t in THREADS) for board in boards]
        lines.append([engine, first["mb_per_token"], *cells])
    return table([f"`{shape}` {what}, predicted", "MB a token", *boards], lines)


def _cell(row: Mapping[str, object]) -> str:
    return f"{row['tok_s']:g}" + ("*" if row["compute_bound"] > 0.5 else "")


def markdown(record: Mapping[str, object], name: str) -> str:
    """The page section that goes with a result file."""
    speeds = record["predictions"]
    parts = [
        f"From `bench/results/{name}`. **Predicted**: nothing here was measured on a board.",
        kernel_table(record["kernels"]),
        "Tokens per second with 1 / 4 threads, empty context. Zeros: 80 % of the activations at "
        "`down` and 70 % of the gates. A star: for more than half of the time the cores are the "
        "limit, else the memory is.",
        *[speed_table(speeds, s.name, what) for what in ("decode", "prefill") for s in SHAPES],
        "Bandwidths used:\n\n"
        + "\n".join(f"- {s.board.name} ({s.board.ghz} GHz): {s.text}" for s in SOURCES),
    ]
    if record["checks"]:
        rows = [list(check.values()) for check in record["checks"]]
        heads = ["board", "llama.cpp, 4 threads", "measured", "this arithmetic", "source"]
        parts += ["The same arithmetic for what others measured:", table(heads, rows)]
    return "\n\n".join(parts) + "\n"
