"""``edgeota device-enroll, device-list, device-forget, reports``: what devices say of updates."""

from __future__ import annotations

import argparse
import queue
import time
from collections.abc import Callable
from typing import Any

from ota.fleet.devices import Devices, Judgement, as_json
from ota.fleet.repository import Repository
from ota.mqtt import Broker, Link, Message

PREFIX = "edge/v1"
ASK = b'{"action":"report"}'
LISTEN_S = 5.0  # a ring of 64 reports over a slow link
PUBLISH_S = 10.0

Result = tuple[dict[str, Any], str]


def enroll(args: argparse.Namespace) -> Result:
    """Believe the reports of a device."""
    devices = Devices(_path(args))
    device = devices.enroll(args.node, args.key)
    devices.save()
    return {"node": args.node, "key": device.public}, f"{args.node} is believed from now on"


def forget(args: argparse.Namespace) -> Result:
    """Believe a device no longer."""
    devices = Devices(_path(args))
    devices.forget(args.node)
    devices.save()
    return {"node": args.node}, f"{args.node} is not believed any more"


def list_devices(args: argparse.Namespace) -> Result:
    """Say who is believed."""
    known = Devices(_path(args)).known
    fields: dict[str, dict[str, Any]] = {
        node: {"key": device.public, "last_seq": device.last_seq} for node, device in known.items()
    }
    lines = [f"{node:<24} {one['key'][:16]}  {one['last_seq']:>6}" for node, one in fields.items()]
    return {"devices": fields}, "\n".join(lines) or "no device is enrolled"


def reports(args: argparse.Namespace, broker: Broker) -> Result:
    """Ask devices for their reports and judge what comes."""
    devices = Devices(_path(args))
    nodes = sorted(devices.known) if args.node is None else [args.node]
    judged = [
        devices.judge(node, data, trust_new=args.trust_new)
        for node, data in _collect(broker, args.prefix, nodes, args.node, args.seconds)
    ]
    devices.save()
    bad = [each for each in judged if not each.kind.is_believed]
    silent = sorted(set(nodes) - {each.node for each in judged})
    lines = [_line(each) for each in judged] + [f"{node:<24} said nothing" for node in silent]
    fields = {"reports": [as_json(each) for each in judged], "silent": silent}
    return fields | {"not_believed": len(bad)}, "\n".join(lines) or "no report came"


def add_commands(
    add: Callable[[str, Callable[[argparse.Namespace], Result], str], Any],
    broker_of: Callable[[argparse.Namespace], Broker],
    add_mqtt: Callable[..., None],
) -> None:
    """Add the commands to the parser of ``edgeota``."""
    enrolling = add("device-enroll", enroll, "believe the signed reports of a device")
    enrolling.add_argument("node", metavar="NODE")
    enrolling.add_argument("key", metavar="KEY", help="what the device has in ota/device.pub")
    add("device-list", list_devices, "show whose reports are believed")
    forgetting = add("device-forget", forget, "believe a device no longer")
    forgetting.add_argument("node", metavar="NODE")
    asking = add(
        "reports", lambda args: reports(args, broker_of(args)), "ask devices what became of updates"
    )
    add_mqtt(asking, required=True)
    asking.add_argument("--node", help="only this one (every enrolled one, and who else speaks)")
    asking.add_argument("--seconds", type=float, default=LISTEN_S, help=f"to listen ({LISTEN_S:g})")
    asking.add_argument("--prefix", default=PREFIX, help=f"of the devices' topics ({PREFIX})")
    asking.add_argument(
        "--trust-new", action="store_true", help="enrol unknown nodes by the key in their report"
    )


def _path(args: argparse.Namespace) -> Any:
    Repository.open(args.repo, args.keys)  # or the list would lie anywhere
    return args.repo


def _collect(
    broker: Broker, prefix: str, nodes: list[str], only: str | None, seconds: float
) -> list[tuple[str, bytes]]:
    """Return what devices publish, as (node of the topic, bytes)."""
    inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
    topic = f"{prefix}/{only or '+'}/model/report"
    link = Link(broker, f"edgeota-reports-{time.time_ns()}", [topic], inbox.put)
    link.open()
    try:
        for node in nodes:
            request = f"{prefix}/{node}/model/update/request"
            link.publish(request, ASK, qos=1).wait_for_publish(PUBLISH_S)
        end_s, found = time.monotonic() + seconds, []
        while (left_s := end_s - time.monotonic()) > 0:
            try:
                message = inbox.get(timeout=left_s)
            except queue.Empty:
                break
            node = message.topic.removeprefix(f"{prefix}/").removesuffix("/model/report")
            found.append((node, bytes(message.payload)))
        return found
    finally:
        link.close()


def _line(judgement: Judgement) -> str:
    report = judgement.report
    start = f"{judgement.node:<24} {judgement.kind.value:<9}"
    if report is None:
        return f"{start} {judgement.why}"
    end = report.body.get("end")
    end = end if isinstance(end, dict) else {}
    said = " ".join(
        str(end[key])[:60] for key in ("type", "from", "version", "code") if end.get(key)
    )
    return f"{start} {report.seq:>5}  {said}{'  ' + judgement.why if judgement.why else ''}"
