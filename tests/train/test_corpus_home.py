"""Expansion of Home Assistant's sentence files."""

from __future__ import annotations

import io
import random
import tarfile

import pytest
import zstandard

from edgeagent.train.corpus_home import FILE, draw, draws_for, expand, read_tests
from edgeagent.train.home_words import AREAS, NAMES, spoken
from edgeagent.train.samples import CommandSample

AREA_DOMAIN = """
language: "en"
data:
  - sentences: ["<turn> on [<the>] {area} <light>"]
    inferred_domain: "light"
"""
COVER = """
data:
  - sentences: ["<open> the {cover_classes:device_class} <in> the {area}"]
    inferred_domain: "cover"
"""
NAME = """
data:
  - sentences: ["[<the>] {name}", "<turn> on [<the>] {name}"]
    name_domains: ["fan"]
"""


def test_the_domain_of_a_block_becomes_a_slot():
    samples = draw({"HassTurnOn/area_domain": AREA_DOMAIN}, random.Random(0))
    assert len(samples) > 50
    assert {s.slots["domain"] for s in samples} == {"light"}
    assert all(s.slots["area"] in s.utterance for s in samples)


def test_a_light_setting_has_no_domain_slot():
    (sample,) = {
        tuple(s.slots) for s in expand({"HassLightSet/x": AREA_DOMAIN}, random.Random(0), 5)
    }
    assert sample == ("area",)


def test_a_garage_is_not_a_room_beside_a_cover():
    samples = draw({"HassTurnOn/area_device_class_cover": COVER}, random.Random(0), base=200)
    assert "garage" not in {s.slots["area"] for s in samples}


def test_names_come_from_the_named_domains_and_never_alone():
    fans = {said for said, _ in NAMES["fan"]}
    samples = draw({"HassTurnOn/name_only": NAME}, random.Random(0))
    assert {s.slots["name"] for s in samples} <= fans
    assert not {s.utterance for s in samples} & fans


def test_no_device_name_begins_with_a_room():
    rooms = {said for said, _ in AREAS} - {"bar", "den"}
    for said, _ in NAMES["default"] + NAMES["cover"] + NAMES["climate"]:
        assert not any(said.startswith(f"{room} ") for room in rooms), said


def test_frequent_orders_are_drawn_more_often():
    assert draws_for("HassTurnOn/area_domain", 10) > draws_for("HassMediaNext/default", 10)


@pytest.mark.parametrize(
    ("number", "words"), [(1, "one"), (19, "nineteen"), (20, "twenty"), (45, "forty-five")]
)
def test_numbers_are_spoken(number, words):
    assert spoken(number) == words


def test_hand_written_sentences_are_read_with_their_intents(tmp_path):
    raw = io.BytesIO()
    text = b'tests:\n  - sentences: ["lights  on"]\n    slots: {area: "Kitchen"}\n'
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name in ("tests/en/HassTurnOn/a.yaml", "tests/en/HassRespond/b.yaml"):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
    path = tmp_path / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(zstandard.compress(raw.getvalue()))
    assert read_tests(tmp_path) == [CommandSample("lights on", "HassTurnOn")]
