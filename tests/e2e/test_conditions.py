"""Updates that wait for the board, the link, the owner and the hour, with all parts real."""

import shutil
import threading
import time
from pathlib import Path

import pytest

from tests.brokers import Mosquitto
from tests.e2e.house import NODE, House, edgeota
from tests.sysroots.boards import put
from tests.tiny import make_model

pytestmark = pytest.mark.system

#: Large enough for its speed to be measured.
BIG = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "head_dim": 64}
ZONE = "/sys/class/thermal/thermal_zone0"
QUERY = {"prompt": "hello", "max_tokens": 200, "temperature": 1.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    return [
        make_model(path / f"v{n}", seed=n, version=f"{n}.0.0", counter=n, **BIG) for n in (1, 2, 3)
    ]


class Scene:
    """A house whose repository has 1.0.0, on a board that the test heats and cools."""

    def __init__(self, path: Path, broker, models):
        self.path, self.broker, self.models = path, broker, models
        self.repo, self.board, self.link = path / "repo", path / "board", path / "metered"
        made = edgeota("init", self.repo, "--name", "house")["root_file"]
        self.root_file = shutil.copy(made, path / "root.json")
        self.is_at(40)
        self.link.write_text("no")
        self.publish(0)

    def is_at(self, celsius):
        put(self.board, {f"{ZONE}/type": "cpu-thermal", f"{ZONE}/temp": celsius * 1000})

    def publish(self, number, base=None):
        edgeota("release", self.repo, self.models[number])
        if base is not None:
            edgeota("delta", self.repo, self.models[base], self.models[number])
        edgeota("publish", self.repo, "--mqtt", f"127.0.0.1:{self.broker.port}")

    def house(self, settings):
        settings = f'metered_file = "{self.link}"\n{settings}\n[power]\nsysroot = "{self.board}"\n'
        return House(
            self.path, self.broker, self.models[0], root_file=self.root_file, settings=settings
        )


@pytest.fixture
def scene(tmp_path, mosquitto, models):
    with Mosquitto() as broker:
        yield Scene(tmp_path, broker, models)


def begin(house, scene):
    house.serve(scene.repo)
    return house.start_daemon()


def gated(house, reason):
    state = house.wait_for(house.topics.model_state, phase="gated")
    assert state["gated"]["reason"] == reason, state
    assert state["installed_version"] == "1.0.0"
    return state


def installed(house, version):
    return house.wait_for(house.topics.model_state, installed_version=version, phase="idle")


def request(house, action):
    with house.client() as client:
        client.publish(house.topics.update_request, {"action": action})


def updates(house):
    return house.log.read_text().count("update.started")


def test_a_hot_board_waits_and_takes_the_latest_release_when_it_has_cooled(scene):
    with scene.house("max_temperature_c = 70") as house:
        begin(house, scene)
        scene.is_at(85)
        scene.publish(1, base=0)
        assert gated(house, "temperature")["latest_version"] == "1.0.0"
        scene.publish(2, base=0)  # the second release supersedes the one that waits
        house.wait_for(house.topics.model_state, phase="gated")
        n_updates = updates(house)
        time.sleep(4 * 2.0)  # four looks at the condition
        assert updates(house) - n_updates <= 1  # the notice's own; no updater runs while it is hot
        scene.is_at(50)
        installed(house, "3.0.0")
        assert "version=2.0.0" not in house.log.read_text()


def test_a_metered_link_is_left_alone_and_a_cancel_wins_until_somebody_installs(scene):
    scene.link.write_text("yes")
    with scene.house("when_metered = false") as house:
        begin(house, scene)
        scene.publish(1, base=0)
        assert "not metered" in gated(house, "metered")["release_summary"]
        request(house, "cancel")
        house.wait_for(house.topics.model_state, phase="failed", code="cancelled")
        scene.link.write_text("no")
        edgeota("publish", scene.repo, "--mqtt", f"127.0.0.1:{scene.broker.port}")  # says no more
        time.sleep(5)
        state = house.wait_for(house.topics.model_state, phase="failed", code="cancelled")
        assert state["installed_version"] == "1.0.0"
        request(house, "install")
        installed(house, "2.0.0")


def test_a_model_that_somebody_waits_for_is_not_disturbed(scene):
    stop = threading.Event()

    def ask(house):
        with house.client() as client:
            while not stop.is_set():
                assert client.ask(NODE, QUERY)["status"] == "ok"

    with scene.house("when_busy = false") as house:
        begin(house, scene)
        asking = [threading.Thread(target=ask, args=(house,)) for _ in range(3)]
        for thread in asking:
            thread.start()
        try:
            scene.publish(1, base=0)
            assert gated(house, "busy")["gated"]["stage"] == "stage"  # fetching disturbs nobody
        finally:
            stop.set()
            for thread in asking:
                thread.join()
        installed(house, "2.0.0")


def test_outside_its_hours_a_device_says_when_it_goes_on(scene):
    hour = time.localtime().tm_hour
    closed = f'window = "{(hour + 2) % 24:02}:00-{(hour + 4) % 24:02}:00"'
    scene.publish(1, base=0)
    with scene.house(closed) as house:
        daemon = begin(house, scene)
        again_s = gated(house, "window")["gated"]["again_at_s"] - time.time()
        assert 3600 - 60 < again_s < 2 * 3600 + 60
        house.kill_daemon(daemon)
    with scene.house(f'window = "{hour:02}:00-{(hour + 2) % 24:02}:00"') as house:
        begin(house, scene)
        installed(house, "2.0.0")
