"""What pulling over MQTT makes of a broker and of a bad link.

    python bench/transport.py [--quick]     writes bench/results/transport-<date>.json

Part 1, loopback Mosquitto: MB/s by length of a request and fixed window, TCP_NODELAY on and off at
every end.  Part 2: the share of a 20 Mbit/s link with 100 ms and 2 % loss (``slow_link.py``) that
the adaptive window gets, payload bytes only.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import ota.mqtt
from bench.slow_link import Link as LinkShape
from bench.slow_link import SlowLink
from ota.device.mqtt_source import MqttSource
from ota.fleet.responder import Responder
from ota.mqtt import Broker
from ota.window import Window
from ota.wire import ranges
from tests.brokers import Mosquitto

ROOT = Path(__file__).parent
PIECES = (4 << 10, 16 << 10, 64 << 10, 126 << 10)
WINDOWS = (1, 8, 32)
BAD_LINK = LinkShape(20e6, 0.1, 0.02)
BUDGET_S = 1.2  # of one cell of the table


class FixedWindow(Window):
    def answered(self, took_s: float, *, was_repeated: bool) -> None:
        pass


@contextmanager
def no_delay(is_on: bool):
    kept = ota.mqtt._no_delay
    if not is_on:
        ota.mqtt._no_delay = lambda *_: None
    try:
        yield
    finally:
        ota.mqtt._no_delay = kept


def pull(source: MqttSource, length: int, piece: int, budget_s: float) -> tuple[int, float]:
    """Pull for up to ``budget_s``; returns bytes and seconds after the first answer."""
    started_s = time.monotonic()
    n_bytes = 0
    for got in source.pull("targets/data", ranges(length, piece)):
        n_bytes += len(got.data)
        if time.monotonic() - started_s > budget_s:
            break
    return n_bytes, time.monotonic() - started_s


def table(repo: Path, length: int) -> list[dict]:
    rows = []
    for is_on in (True, False):
        extra = "" if is_on else "set_tcp_nodelay false"
        with no_delay(is_on), Mosquitto(extra=extra) as broker:
            at = Broker(broker.host, broker.port)
            responder = Responder(at, "bench", repo)
            responder.open()
            for piece in PIECES:
                for size in WINDOWS:
                    with MqttSource(at, "bench", f"d{piece}-{size}") as source:
                        source.fetch("targets/data", 0, 1)
                        source._learnt = FixedWindow(piece, size=size)
                        n_bytes, took_s = pull(source, length, piece, BUDGET_S)
                    rows.append(
                        {
                            "no_delay": is_on,
                            "piece_bytes": piece,
                            "window": size,
                            "mb_per_s": round(n_bytes / took_s / 1e6, 2),
                        }
                    )
                    print(rows[-1], flush=True)
            responder.close()
    return rows


def bad_link(repo: Path, length: int, protocol: str) -> dict:
    with Mosquitto() as broker, SlowLink((broker.host, broker.port), BAD_LINK) as slow:
        responder = Responder(Broker(broker.host, broker.port), "bench", repo)
        responder.open()
        with MqttSource(Broker("127.0.0.1", slow.port, protocol=protocol), "bench", "d") as source:
            started_s = time.monotonic()
            n_bytes = sum(len(p.data) for p in source.pull("targets/data", ranges(length, 65536)))
            took_s = time.monotonic() - started_s
            window = source._learnt
        responder.close()
    row = {
        "protocol": protocol,
        "bytes": n_bytes,
        "seconds": round(took_s, 2),
        "mbit_per_s": round(8 * n_bytes / took_s / 1e6, 2),
        "share_of_link": round(8 * n_bytes / took_s / BAD_LINK.bits_per_s, 3),
        "window_at_end": window.n_requests,
        "piece_bytes_at_end": window.piece_bytes,
    }
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the bad link, 4 MB")
    parser.add_argument("--part", choices=("table", "link"))
    args = parser.parse_args()
    length = (4 if args.quick else 24) * 1_000_000
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "targets" / "data"
        path.parent.mkdir()
        path.write_bytes(bytes(range(251)) * (200_000_000 // 251))
        result = {"date": str(datetime.datetime.now(datetime.UTC).date())}
        if not args.quick and args.part != "link":
            result["loopback"] = table(Path(scratch), path.stat().st_size)
        if args.part != "table":
            result["bad_link"] = {
                "mbit_per_s": 20,
                "round_trip_ms": 100,
                "loss": 0.02,
                "runs": [bad_link(Path(scratch), length, protocol) for protocol in ("5", "3.1.1")],
            }
    if not args.quick:
        name = f"transport-{args.part or 'all'}-{result['date']}.json"
        (ROOT / "results" / name).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
