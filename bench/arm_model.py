"""From executed instructions to predicted tokens per second: pure functions for bench/arm.py.

    logs of two runs   -> executions of every instruction in one call   executions, per_call
                       -> straight pieces of code, each with its count  pieces
                       -> assembly for llvm-mca, one region a piece     mca_input
    report of llvm-mca -> cycles of one call                            cycles_per_call
    cycles, bytes, a board -> seconds of one token                      token_s

What a token costs is the sum over its matrices of the slower of two things: the cycles of the
kernel, shared by the threads, and the bytes from memory.  Left out: attention over the context,
norms, quantisation, synchronisation, heat.  A prediction is therefore a bound from above.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

INSTRUCTION_BYTES = 4
ITERATIONS = 200  # of a piece in llvm-mca: enough for the filling of the pipeline to vanish

# ---- what was executed ----


def executions(log: Iterable[bytes]) -> Counter[int]:
    """How often each instruction ran, from QEMU's log of blocks of one instruction.

    A line is ``Trace 0: <host> [<base>/<address>/<flags>/<flags>] <symbol>``.
    """
    addresses = Counter(line.split(b"/", 2)[1] for line in log if line.startswith(b"Trace"))
    return Counter({int(address, 16): n for address, n in addresses.items()})


def per_call(few: Counter[int], many: Counter[int], more_calls: int) -> dict[int, float]:
    """Executions in one call: what `more_calls` further calls added.  The start cancels out."""
    added = {address: many[address] - few[address] for address in many | few}
    if any(n < 0 for n in added.values()):
        raise ValueError("the longer run executed less: the two runs are not the same program")
    return {address: n / more_calls for address, n in added.items() if n}


@dataclass(frozen=True, slots=True)
class Piece:
    """Instructions that ran one after the other, equally often."""

    code: tuple[str, ...]
    runs: float  # in one call


_JUMPS = re.compile(r"(b|br|ret)\b")
_MAY_JUMP = re.compile(r"(b\.|cbn?z|tbn?z)")
_TARGET = re.compile(r"0x([0-9a-f]+) <")


def _leaves(address: int, text: str) -> bool:
    """Whether a piece ends here: a jump that is always taken, or the end of a loop."""
    target = _TARGET.search(text)
    backwards = target is not None and int(target[1], 16) <= address
    return bool(_JUMPS.match(text)) or (bool(_MAY_JUMP.match(text)) and backwards)


def pieces(counts: Mapping[int, float], listing: Mapping[int, str]) -> list[Piece]:
    """Cut what ran into straight pieces, the costliest first."""
    found: list[Piece] = []
    code: list[str] = []
    for address in sorted(counts):
        code.append(listing[address])
        following = counts.get(address + INSTRUCTION_BYTES)
        if following != counts[address] or _leaves(address, listing[address]):
            found.append(Piece(tuple(code), counts[address]))
            code = []
    return sorted(found, key=lambda piece: -piece.runs * len(piece.code))


def parse_listing(objdump: str) -> dict[int, str]:
    """Address to instruction, from ``llvm-objdump -d --no-show-raw-insn``."""
    lines = re.findall(r"^ *([0-9a-f]+):\s+(\S.*?)\s*(?://.*)?$", objdump, re.MULTILINE)
    return {int(address, 16): re.sub(r"\s+", " ", text) for address, text in lines}


# ---- cycles ----


_CALLS = re.compile(r"^(bl|blr|br|ret)\b.*")


def _for_mca(text: str) -> str:
    """Where a jump leads does not matter to llvm-mca, and it would charge a call 100 cycles."""
    return re.sub(r"#?0x[0-9a-f]+ <[^>]*>", "#0", _CALLS.sub("b #0", text))


def mca_input(parts: Sequence[Piece]) -> str:
    """One region a piece."""
    lines: list[str] = []
    for i, piece in enumerate(parts):
        body = [_for_mca(text) for text in piece.code]
        lines += [f"# LLVM-MCA-BEGIN p{i}", *body, f"# LLVM-MCA-END p{i}"]
    return "\n".join(lines) + "\n"


def cycles_per_call(parts: Sequence[Piece], report: Mapping[str, object]) -> float:
    """Cycles of one call, every piece in its steady state and its data in the first cache."""
    regions = {region["Name"]: region["SummaryView"] for region in report["CodeRegions"]}
    views = [regions[f"p{i}"] for i in range(len(parts))]
    return sum(
        piece.runs * view["TotalCycles"] / view["Iterations"]
        for piece, view in zip(parts, views, strict=True)
    )


# ---- a token ----


@dataclass(frozen=True, slots=True)
class Board:
    """A board: its clock, and the bytes a second that its cores read from memory."""

    name: str
    cpu: str  # key of the cycles
    ghz: float
    gb_s: Mapping[int, float]  # by threads


@dataclass(frozen=True, slots=True)
class Phase:
    """One kind of matrix of a token, all layers together."""

    name: str
    kernel: str
    weights: int
    bits: float  # a weight, as stored
    read: float = 1.0  # share that is not skipped


def phase_s(phase: Phase, cycles_per_weight: float, board: Board, threads: int) -> float:
    """Seconds: the slower of computing and reading."""
    weights = phase.weights * phase.read
    compute = weights * cycles_per_weight / (board.ghz * 1e9 * threads)
    return max(compute, weights * phase.bits / 8 / (board.gb_s[threads] * 1e9))


def token_s(
    phases: Sequence[Phase], cycles: Mapping[str, float], board: Board, threads: int
) -> float:
    """Seconds of one token; `cycles` are those of a weight, by kernel."""
    return sum(phase_s(phase, cycles[phase.kernel], board, threads) for phase in phases)


def compute_bound(
    phases: Sequence[Phase], cycles: Mapping[str, float], board: Board, threads: int
) -> float:
    """Share of the token's time in which the cores, and not the memory, are the limit."""
    endless = replace(board, gb_s={threads: float("inf")})
    bound = 0.0
    for phase in phases:
        seconds = phase_s(phase, cycles[phase.kernel], board, threads)
        if seconds == phase_s(phase, cycles[phase.kernel], endless, threads):
            bound += seconds
    return bound / token_s(phases, cycles, board, threads)


@dataclass(frozen=True, slots=True)
class Shape:
    """Dimensions of a model."""

    name: str
    layers: int
    hidden: int
    ffn: int
    kv: int  # width of keys
    vocab: int


def body(shape: Shape) -> dict[str, int]:
    """Weights of the ternary matrices, by what can be skipped in them."""
    layer_wide = shape.hidden * shape.ffn
    attention = 2 * shape.hidden * shape.hidden + 2 * shape.hidden * shape.kv
    return {
        "attention": shape.layers * attention,
        "gate": shape.layers * layer_wide,
        "up": shape.layers * layer_wide,
        "down": shape.layers * layer_wide,
    }
