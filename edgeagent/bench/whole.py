"""The whole model: decode and prefill, in turn with other engines, beside the memory's roofline.

Prediction before measuring: a decode step reads every packed weight that it does not skip, the head
and the KV cache once, so `bandwidth / bytes_per_token` is the most that decode can do.  Exactness
is checked in the same run, before anything is timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeagent.bench import machine
from edgeagent.bench.bandwidth import Probe, read_files
from edgeagent.bench.energy import Joules
from edgeagent.bench.figures import Series, roofline, share_of
from edgeagent.bench.peer import Peer
from edgeagent.bench.start import measure_starts
from edgeagent.bench.subject import Subject, check_exact, decode, prefill, traffic
from edgeagent.bench.synthetic import Report
from edgeagent.model.files import read_release


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model is measured."""

    threads: int = 1
    zero_skip: bool = True
    kernel: str | None = None
    kv_bits: int | None = None
    past: int = 8  # tokens before a decode begins, as the peers have them
    decode_tokens: int = 32
    prefill_tokens: int = 128
    repetitions: int = 5
    cold: bool = True
    starts: bool = True
    bandwidth_bytes: int = 1 << 30
    peers: Sequence[str] = ()

    @property
    def context(self) -> int:
        """Positions of the longest run."""
        return max(self.past + self.decode_tokens, self.prefill_tokens) + 2


def _round(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


class Runs:
    """The alternating runs of one plan: ours, a peer, the next peer, ours, ..."""

    def __init__(self, subject: Subject, plan: Plan, peers: Sequence[Peer], probe: Probe) -> None:
        self._subject, self._plan, self._peers, self._probe = subject, plan, peers, probe
        self._session = subject.session(plan.threads, plan.zero_skip)
        self.ours = Series()
        self.theirs = {peer.name: Series() for peer in peers}
        self.traffic: dict[str, Any] = {}

    def one_round(self) -> None:
        """Measure everything once."""
        plan = self._plan
        self.ours.add(bandwidth_gb_s=self._probe.read(plan.threads))
        self.decode_once()
        for peer in self._peers:
            got = peer.ask(
                "decode", tokens=plan.decode_tokens, threads=plan.threads, past=plan.past
            )
            self.theirs[peer.name].add(decode_tok_s=got["decode_tok_s"])
        self.ours.add(bandwidth_gb_s=self._probe.read(plan.threads))
        prompt = self._subject.prompt(plan.prefill_tokens)
        self.ours.add(prefill_tok_s=prefill(self._session, prompt)["tok_s"])
        for peer in self._peers:
            got = peer.ask("prefill", tokens=plan.prefill_tokens, threads=plan.threads)
            self.theirs[peer.name].add(prefill_tok_s=got["prefill_tok_s"], rss_mb=got["rss_mb"])

    def decode_once(self) -> int:
        """Measure one decode; return its tokens."""
        plan, prompt = self._plan, self._subject.prompt(self._plan.past)
        got = decode(self._session, prompt, plan.decode_tokens)
        self.ours.add(decode_tok_s=got["tok_s"])
        self.traffic = traffic(self._subject, self._session, plan.past, plan.decode_tokens)
        return plan.decode_tokens

    def warm_up(self) -> None:
        """Touch every page, and let the clock rise."""
        plan = self._plan
        prefill(self._session, self._subject.prompt(plan.prefill_tokens))
        decode(self._session, self._subject.prompt(plan.past), 2)


def _peer_figures(runs: Runs, peers: Sequence[Peer], starts: bool, threads: int) -> dict[str, Any]:
    out = {}
    for peer in peers:
        series = runs.theirs[peer.name]
        figures: dict[str, Any] = {
            "decode_tok_s": _round(series.median("decode_tok_s"), 2),
            "prefill_tok_s": _round(series.median("prefill_tok_s"), 2),
            "rss_mb": series.median("rss_mb"),
            "package": peer.facts.get("package"),
            "model": peer.facts.get("model"),
            "cpu": peer.facts.get("cpu"),
            "file_bytes": peer.facts.get("file_bytes"),
            "load_ms": peer.facts.get("load_ms"),
            "spread": series.summary(2),
        }
        for name in ("decode_tok_s", "prefill_tok_s"):
            ratio = share_of(runs.ours.median(name), series.median(name))
            figures[f"ours_over_{name.removesuffix('_tok_s')}"] = _round(ratio, 3)
        if starts:
            figures["first_token_ms"] = peer.ask("first_token", threads=threads)["first_token_ms"]
        out[peer.name] = figures
    return out


def _our_figures(subject: Subject, plan: Plan, runs: Runs) -> dict[str, Any]:
    ours, traffic_now = runs.ours, runs.traffic
    decode_tok_s, bandwidth = ours.median("decode_tok_s"), ours.median("bandwidth_gb_s")
    if decode_tok_s is None or bandwidth is None:
        raise RuntimeError("a plan has at least one round")
    read_gb_s = traffic_now["bytes_per_token"] * decode_tok_s / 1e9
    limit = roofline(traffic_now["bytes_per_token"], bandwidth)
    return {
        "decode_tok_s": round(decode_tok_s, 2),
        "prefill_tok_s": _round(ours.median("prefill_tok_s"), 2),
        **traffic_now,
        "read_gb_s": round(read_gb_s, 2),
        "bandwidth_gb_s": round(bandwidth, 2),
        "roofline_tok_s": round(limit, 2),
        "of_roofline": round(decode_tok_s / limit, 3),
        "kernel": subject.core.kernel,
        "layout": subject.layout,
        "spread": ours.summary(2),
    }


def _start_figures(path: Path, plan: Plan) -> dict[str, Any]:
    found = measure_starts(path, plan.threads, plan.kernel, cold=plan.cold)
    warm = found["warm"]
    held_mb = warm["model_mb"]["median"] + warm["kv_mb"]["median"]
    return {
        "load_ms": warm["load_ms"]["median"],
        "first_token_ms": warm["first_token_ms"]["median"],
        "first_token_cold_ms": found.get("cold", {}).get("first_token_ms", {}).get("median"),
        "rss_mb": warm["rss_mb"]["median"],
        "rss_over_mapped_and_kv": round(warm["rss_mb"]["median"] / held_mb, 4),
        "start": found,
    }


def measure(path: Path, plan: Plan, report: Report) -> dict[str, Any]:
    """Measure the model in `path` and return the result's document.

    Raises:
        ModelError: the model is not sound, or the engine is not exact on it.
        ConfigError: the plan asks for what this engine does not have.
        AdapterError: a peer failed.
    """
    facts = machine.describe()
    read_release(path)
    report(f"{path.name}: fresh processes")
    # Before anything maps the files here: mapped pages cannot be made cold.
    start = _start_figures(path, plan) if plan.starts else {}
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer(text)) for text in plan.peers]
        subject = Subject(path, context=plan.context, kernel=plan.kernel, kv_bits=plan.kv_bits)
        report(f"{path.name}: checking exactness")
        exact = check_exact(subject, plan.threads, subject.prompt(plan.past))
        for peer in peers:
            report(f"waiting for {peer.name}")
            peer.wait()
        shards = sorted(path.glob("*.safetensors"))
        probe = Probe(plan.bandwidth_bytes, shards)
        runs = Runs(subject, plan, peers, probe)
        runs.warm_up()
        for turn in range(plan.repetitions):
            report(f"{path.name}: round {turn + 1} of {plan.repetitions}")
            runs.one_round()
        energy = Joules().of(runs.decode_once)
        ours = _our_figures(subject, plan, runs)
        probe.close()
        ours["mapped_bandwidth_gb_s"] = round(read_files(shards, plan.threads), 2)
        ours["peak_rss_of_this_process_mb"] = machine.status_mb("VmHWM")
        them = _peer_figures(runs, peers, plan.starts, plan.threads)
    return {
        "bench": "model",
        **facts,
        "model": {
            "name": subject.release.name,
            "version": subject.release.version,
            "root": subject.release.root,
            "bytes": subject.release.n_bytes,
            "parameters": subject.core.n_parameters,
            "ternary_bytes": subject.core.ternary_bytes,
        },
        "threads": plan.threads,
        "zero_skip": plan.zero_skip,
        "kv_bits": plan.kv_bits,
        "past": plan.past,
        "decode_tokens": plan.decode_tokens,
        "prefill_tokens": plan.prefill_tokens,
        "repetitions": plan.repetitions,
        **ours,
        **start,
        "energy": energy,
        "exact": exact,
        "peers": them,
    }
