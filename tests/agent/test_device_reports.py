import asyncio
import json
import sys

from edgeagent import device_reports
from edgeagent.device_reports import DeviceReports
from edgeagent.errors import AdapterError
from edgeagent.progress import Progress

TOPIC = "edge/v1/n1/model/report"
SIGNS = (sys.executable, "-c", "import sys; sys.stdin.read()")
FAILS = (sys.executable, "-c", "import sys; sys.exit('no space')")


class Broker:
    """Confirms at once, unless it is away or says no."""

    def __init__(self):
        self.sent, self.waiting = [], []
        self.is_up, self.error = True, None

    def publish(self, topic, payload, *, qos=0, correlation=None):
        assert (topic, qos, correlation) == (TOPIC, 1, None)
        self.sent.append(json.loads(payload)["n"])
        done = asyncio.get_running_loop().create_future()
        if not self.is_up:
            self.waiting.append(done)
        elif self.error is not None:
            done.set_exception(self.error)
        else:
            done.set_result(None)
        return done


def ring(path, *numbers):
    directory = path / "ota"
    directory.mkdir(exist_ok=True)
    (directory / "history.jsonl").touch()
    lines = [json.dumps({"seq": n, "end": "e", "envelope": {"n": n}}) for n in numbers]
    (directory / "reports.jsonl").write_text("\n".join([*lines, "{torn"]))


def live(path, body, broker=None, command=SIGNS):
    broker = broker or Broker()

    async def main():
        reports = DeviceReports(broker, TOPIC, "n1", path, dict, Progress(1.0), command)
        task = asyncio.create_task(reports.run())
        try:
            await body(reports)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    return broker.sent


async def until(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not in time")


def noted(path, number):
    sent = path / "ota" / "reports.sent"
    return lambda: sent.exists() and sent.read_text() == f"{number}\n"


def test_what_was_not_confirmed_goes_out_in_order_once(tmp_path):
    ring(tmp_path, 2, 1, 3)
    (tmp_path / "ota" / "reports.sent").write_text("1\n")

    async def body(reports):
        await until(noted(tmp_path, 3))
        ring(tmp_path, 1, 2, 3, 4)
        reports.ended()
        await until(noted(tmp_path, 4))

    assert live(tmp_path, body) == [2, 3, 4]


def test_all_of_them_go_out_again_when_somebody_asks(tmp_path):
    ring(tmp_path, 1, 2)
    broker = Broker()

    async def body(reports):
        await until(lambda: len(broker.sent) == 2)
        await until(noted(tmp_path, 2))
        reports.again()
        await until(lambda: len(broker.sent) == 4)
        await asyncio.sleep(0.05)

    assert live(tmp_path, body, broker) == [1, 2, 1, 2]
    assert noted(tmp_path, 2)()


def test_an_outage_is_waited_for_and_nothing_is_sent_twice(tmp_path):
    ring(tmp_path, 1, 2)
    broker = Broker()
    broker.is_up = False

    async def body(_):
        await until(lambda: broker.waiting)
        await asyncio.sleep(0.2)
        assert broker.sent == [1]
        broker.is_up = True
        broker.waiting[0].set_result(None)
        await until(noted(tmp_path, 2))

    assert live(tmp_path, body, broker) == [1, 2]


def test_a_refusal_and_a_failed_signature_are_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(device_reports, "RETRY_S", 0.05)
    ring(tmp_path, 1)
    broker = Broker()
    broker.error = AdapterError("not authorised")

    async def body(_):
        await until(lambda: len(broker.sent) >= 2)
        broker.error = None
        await until(lambda: (tmp_path / "ota" / "reports.sent").exists())

    assert set(live(tmp_path, body, broker)) == {1}

    async def silent(_):
        await asyncio.sleep(0.5)

    (tmp_path / "ota" / "reports.sent").unlink()
    assert live(tmp_path, silent, command=FAILS) == []


def test_a_node_without_updates_starts_no_child(tmp_path):
    async def body(_):
        await asyncio.sleep(0.2)

    assert live(tmp_path, body, command=("/nonexistent",)) == []
