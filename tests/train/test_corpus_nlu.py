"""Parsing and mapping of the NLU home corpus."""

from __future__ import annotations

import pytest

from edgeagent.train.corpus_nlu import map_sample, parse_annotation, parse_csv


def test_annotations_become_text_and_pairs():
    text, pairs = parse_annotation("turn off lights in my [house_place : living room] now")
    assert text == "turn off lights in my living room now"
    assert pairs == [("house_place", "living room")]


@pytest.mark.parametrize(
    ("source", "annotation", "intent", "slots"),
    [
        (
            "iot_hue_lightoff",
            "lights off in the [house_place : den]",
            "HassTurnOff",
            {"domain": "light", "area": "den"},
        ),
        (
            "iot_hue_lighton",
            "put the [device_type : disco lights] on",
            "HassTurnOn",
            {"name": "disco lights"},
        ),
        (
            "iot_hue_lighton",
            "put the [device_type : lights] on",
            "HassTurnOn",
            {"domain": "light"},
        ),
        (
            "iot_wemo_off",
            "switch off the [device_type : wemo plug]",
            "HassTurnOff",
            {"name": "wemo plug"},
        ),
        (
            "iot_cleaning",
            "vacuum the [house_place : hall]",
            "HassVacuumCleanArea",
            {"area": "hall"},
        ),
        ("iot_cleaning", "start the [device_type : vacuum]", "HassVacuumStart", {}),
        ("audio_volume_up", "turn it up", "HassSetVolumeRelative", {"volume_step": "up"}),
        ("play_music", "play [music_genre : jazz]", "PlayMusic", {"genre": "jazz"}),
        (
            "weather_query",
            "weather in [place_name : rome] [date : today]",
            "GetWeather",
            {"city": "rome", "timeRange": "today"},
        ),
        ("general_quirky", "i had a nice day", "unknown", {}),
    ],
)
def test_home_requests_get_home_assistant_labels(source, annotation, intent, slots):
    sample = map_sample(source, annotation)
    assert sample is not None
    assert (sample.intent, sample.slots) == (intent, slots)


@pytest.mark.parametrize(
    ("source", "annotation"),
    [
        ("audio_volume_up", "turn it up by [change_amount : ten]"),
        ("weather_query", "rain [date : today] or [date : tomorrow]"),
        ("lists_createoradd", "add milk to the [list_name : shopping] list"),
        ("recommendation_events", "what is on"),
        ("iot_hue_lightoff", "lights off in the [house_place kitchen]"),
        ("iot_wemo_on", "turn yourself on"),
    ],
)
def test_requests_we_cannot_express_are_dropped(source, annotation):
    assert map_sample(source, annotation) is None


def test_a_csv_row_becomes_a_sample():
    text = (
        "answerid;scenario;intent;answer_annotation\n"
        '1;iot;hue_lightoff;"no lights in the [house_place : hall]"\n'
    )
    (sample,) = parse_csv(text)
    assert sample.utterance == "no lights in the hall"
