"""Arm without a board: instructions, cycles, predicted tokens/s: python bench/arm.py [--peer DIR]

Instructions are counted by QEMU (user mode, one instruction a block): the executions in one call
are what further calls add, so the start of the program cancels out.  The pieces of code that ran
go through llvm-mca, each weighted with its executions.  The kernels of llama.cpp, compiled for the
same CPU, go the same way: --peer names a directory with its `ggml` (`pip download --no-binary
llama-cpp-python --no-deps llama-cpp-python`, then unpack: vendor/llama.cpp).

Everything here is predicted, nothing measured on a board.  Results go to bench/results/.
Needs qemu-user, gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and LLVM 17 or later.
"""

import argparse
import datetime
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import arm_model as model
import arm_tables as tables

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "arm"
RESULTS = Path(__file__).parent / "results"
GCC = "aarch64-linux-gnu-gcc"
QEMU = "qemu-aarch64"
OLDEST_LLVM = 17  # the first with a model of Neoverse N1
CALLS = (1, 3)  # of the two runs that are compared
CFLAGS = ["-std=c11", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-pthread", "-static"]


@dataclass(frozen=True, slots=True)
class Job:
    """One kernel in one program: what bench/arm_kernels.c and bench/arm_peer.c take."""

    program: Path
    qemu: str  # the core that it runs on
    op: str
    variant: str
    n_out: int
    n_in: int
    weights: int  # that one call multiplies

    @property
    def name(self) -> str:
        return self.op if self.variant == "-" else f"{self.op}, {self.variant}"


def run(*command: object) -> str:
    """Output of a command; its last words when it fails."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]}: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


def llvm(tool: str) -> str:
    """The newest installed version of a tool of LLVM."""
    found = {
        int(version[1]): str(path)
        for path in Path("/usr/lib").glob(f"llvm-*/bin/{tool}")
        if (version := re.search(r"llvm-(\d+)/", str(path)))
    }
    if not found or max(found) < OLDEST_LLVM:
        raise SystemExit(f"{tool} of LLVM {OLDEST_LLVM} or later is missing: apt install llvm-19")
    return found[max(found)]


@cache
def build_ours() -> Path:
    """As shipped: no -mcpu, every variant names its own instruction set."""
    program = BUILD / "kernels"
    sources = sorted((ROOT / "cext/src").glob("*.c"))
    include = f"-I{ROOT / 'cext/include'}"
    run(GCC, *CFLAGS, include, ROOT / "bench/arm_kernels.c", *sources, "-lm", "-o", program)
    return program


def build_peer(ggml: Path, cpu: tables.Cpu) -> Path:
    """As llama.cpp builds itself on that board: -mcpu."""
    program = BUILD / f"peer-{cpu.name}"
    includes = [f"-I{ggml / d}" for d in ("include", "src", "src/ggml-cpu")]
    flags = ["-std=gnu11", "-O3", "-DNDEBUG", "-D_GNU_SOURCE", "-static", f"-mcpu={cpu.name}"]
    kernels = ggml / "src/ggml-cpu/arch/arm/quants.c"
    run(GCC, *flags, *includes, ROOT / "bench/arm_peer.c", kernels, "-lm", "-o", program)
    return program


def executed(job: Job, calls: int) -> Counter[int]:
    """Executions of every instruction in a run of `calls` calls."""
    with tempfile.NamedTemporaryFile() as log:
        flags = ["-singlestep", "-d", "exec,nochain", "-D", log.name, "-cpu", job.qemu]
        run(QEMU, *flags, job.program, job.op, job.variant, job.n_out, job.n_in, calls)
        return model.executions(log)


@cache
def listing(program: Path) -> dict[int, str]:
    return model.parse_listing(run(llvm("llvm-objdump"), "-d", "--no-show-raw-insn", program))


@cache
def pieces(job: Job) -> list[model.Piece]:
    """The code of one call."""
    few, many = (executed(job, calls) for calls in CALLS)
    return model.pieces(model.per_call(few, many, CALLS[1] - CALLS[0]), listing(job.program))


def figures(job: Job, cpu: tables.Cpu) -> dict[str, object]:
    """Instructions and cycles per weight of one kernel on one CPU."""
    parts = pieces(job)
    cycles = {}
    for mca in cpu.mca:
        with tempfile.NamedTemporaryFile("w", suffix=".s") as file:
            file.write(model.mca_input(parts))
            file.flush()
            flags = ["-mtriple=aarch64", f"-mcpu={mca}", f"-iterations={model.ITERATIONS}"]
            report = json.loads(run(llvm("llvm-mca"), *flags, "-json", file.name))
        cycles[mca] = round(model.cycles_per_call(parts, report) / job.weights, 4)
    executed_in_all = sum(part.runs * len(part.code) for part in parts)
    instructions = round(executed_in_all / job.weights, 4)
    return {"kernel": job.name, "instructions": instructions, "cycles": cycles}


def measure(cpu: tables.Cpu, peer: Path | None) -> list[dict[str, object]]:
    """All kernels of one CPU."""
    jobs = [
        Job(build_ours(), tables.QEMU_OF[variant], k.op, variant, k.n_out, k.n_in, k.weights)
        for variant in cpu.variants
        for k in tables.OURS
        if variant in k.variants
    ]
    if peer and cpu.peer:
        program = build_peer(peer, cpu)
        jobs += [Job(program, cpu.qemu, k.op, "-", k.n_out, k.n_in, k.weights) for k in tables.PEER]
    found = []
    for job in jobs:
        found.append(figures(job, cpu))
        cycles = found[-1]["cycles"][cpu.mca[0]]
        print(f"{cpu.name:11} {job.name:28} {found[-1]['instructions']:7.4f} {cycles:7.4f}")
        sys.stdout.flush()
    return found


def versions() -> dict[str, str]:
    first = {
        GCC: [GCC, "--version"],
        QEMU: [QEMU, "--version"],
        "llvm-mca": [llvm("llvm-mca"), "--version"],
    }
    found = {name: run(*command).strip().splitlines() for name, command in first.items()}
    llvm_line = next(line for line in found["llvm-mca"] if "version" in line)
    return {GCC: found[GCC][0], QEMU: found[QEMU][0], "llvm-mca": llvm_line.strip()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="llama.cpp's ggml directory")
    parser.add_argument("--out", type=Path, help="default: bench/results/arm-<date>.json")
    parser.add_argument("--table", type=Path, help="write the tables as Markdown there")
    arguments = parser.parse_args()
    missing = [tool for tool in (GCC, QEMU) if not shutil.which(tool)]
    if missing:
        raise SystemExit(f"missing: {' '.join(missing)} (gcc-aarch64-linux-gnu, qemu-user)")
    BUILD.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)
    kernels = {cpu.name: measure(cpu, arguments.peer) for cpu in tables.CPUS}
    record = {
        "date": now.isoformat(timespec="seconds"),
        "commit": run("git", "-C", ROOT, "describe", "--always", "--dirty").strip(),
        "what": "predicted: no figure here was measured on a board",
        "tools": versions(),
        "kernels": kernels,
        "predictions": tables.predictions(kernels),
        "checks": tables.checks(kernels),
    }
    out = arguments.out or RESULTS / f"arm-{now:%Y%m%dT%H%M%S}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
    markdown = tables.markdown(record, out.name)
    print(markdown)
    if arguments.table:
        arguments.table.write_text(markdown)


if __name__ == "__main__":
    main()
