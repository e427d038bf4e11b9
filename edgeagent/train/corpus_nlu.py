"""The NLU home corpus: annotated requests to a home robot (CC BY 4.0).

Source: ``commands/nlu_home_train.tar.zst``; one semicolon-separated CSV an intent, its column
``answer_annotation`` marks slots as ``[house_place : kitchen]``.

Requests that mean what a Home Assistant or Snips intent means get that intent and its slot
names, so that the same words never carry two labels. The others keep names of their own.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgeagent.train.archive import read_tar
from edgeagent.train.samples import (
    UNKNOWN_INTENT,
    CommandSample,
    drop_contradictions,
    tidy,
)

FILE = "commands/nlu_home_train.tar.zst"

_SLOT = re.compile(r"\[\s*([a-z_]+)\s*:\s*([^\]]*?)\s*\]")


@dataclass(frozen=True)
class Mapped:
    """How one source intent becomes ours.

    Attributes:
        intent: our intent's name.
        slots: source slot to our slot; a source slot that is not named is left out.
        fixed: slots that the intent implies.
        refuse: source slots that our intent cannot express; such requests are dropped.
    """

    intent: str
    slots: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, str] = field(default_factory=dict)
    refuse: frozenset[str] = frozenset({"change_amount"})


def _same(*names: str) -> dict[str, str]:
    """Slots that keep their names."""
    return {name: name for name in names}


_WHEN = _same("date", "time", "timeofday")
_LIGHT = {"domain": "light"}
_PLACE = {"house_place": "area"}
_DEVICE = {"house_place": "area", "device_type": "name"}
_GENERIC_LIGHTS = frozenset({"light", "lights", "the lights", "lighting", "all lights"})

INTENTS: dict[str, Mapped] = {
    "alarm_query": Mapped("GetAlarms", _WHEN),
    "alarm_remove": Mapped("RemoveAlarm", _WHEN),
    "alarm_set": Mapped("SetAlarm", _WHEN),
    "audio_volume_down": Mapped("HassSetVolumeRelative", fixed={"volume_step": "down"}),
    "audio_volume_up": Mapped("HassSetVolumeRelative", fixed={"volume_step": "up"}),
    "audio_volume_mute": Mapped("HassMediaPlayerMute"),
    "calendar_query": Mapped("GetCalendar", {**_WHEN, "event_name": "event"}),
    "calendar_remove": Mapped("RemoveCalendarEvent", {**_WHEN, "event_name": "event"}),
    "calendar_set": Mapped("AddCalendarEvent", {**_WHEN, "event_name": "event"}),
    "cooking_recipe": Mapped("GetRecipe", {"food_type": "food"}),
    "email_query": Mapped("GetEmail", _same("person")),
    "email_querycontact": Mapped("GetContact", _same("person")),
    "email_sendemail": Mapped("SendEmail", _same("person", "relation")),
    "general_affirm": Mapped("Affirm"),
    "general_commandstop": Mapped("HassNevermind"),
    "general_explain": Mapped("Explain"),
    "general_joke": Mapped("TellJoke"),
    "general_negate": Mapped("Deny"),
    "general_praise": Mapped("Praise"),
    "general_quirky": Mapped(UNKNOWN_INTENT),
    "general_repeat": Mapped("Repeat"),
    "iot_cleaning": Mapped("HassVacuumStart", _PLACE),
    "iot_coffee": Mapped("MakeCoffee", {"coffee_type": "coffee"}),
    "iot_hue_lightchange": Mapped("HassLightSet", {"color_type": "color", **_PLACE}),
    "iot_hue_lightdim": Mapped("DimLight", _PLACE),
    "iot_hue_lightoff": Mapped("HassTurnOff", _DEVICE, _LIGHT),
    "iot_hue_lighton": Mapped("HassTurnOn", _DEVICE, _LIGHT),
    "iot_hue_lightup": Mapped("BrightenLight", _PLACE),
    "iot_wemo_off": Mapped("HassTurnOff", _DEVICE),
    "iot_wemo_on": Mapped("HassTurnOn", _DEVICE),
    "lists_createoradd": Mapped("CreateList", _same("list_name")),
    "lists_query": Mapped("GetList", _same("list_name")),
    "lists_remove": Mapped("RemoveList", _same("list_name")),
    "music_likeness": Mapped("LikeMusic", {"artist_name": "artist"}),
    "music_query": Mapped("GetCurrentSong"),
    "news_query": Mapped("GetNews", {"news_topic": "topic", "place_name": "place"}),
    "play_audiobook": Mapped("PlayAudiobook", {"audiobook_name": "title"}),
    "play_game": Mapped("PlayGame", {"game_name": "game"}),
    "play_music": Mapped(
        "PlayMusic",
        {
            "artist_name": "artist",
            "music_genre": "genre",
            "song_name": "track",
            "playlist_name": "playlist",
        },
        refuse=frozenset({"music_descriptor", "player_setting"}),
    ),
    "play_podcasts": Mapped("PlayPodcast", {"podcast_name": "podcast"}),
    "play_radio": Mapped("PlayRadio", {"radio_name": "station"}),
    "qa_currency": Mapped("GetExchangeRate"),
    "qa_definition": Mapped("Define", {"definition_word": "word"}),
    "qa_factoid": Mapped(UNKNOWN_INTENT),
    "qa_maths": Mapped("Calculate"),
    "qa_stock": Mapped("GetStockPrice", {"business_name": "company"}),
    "social_post": Mapped("PostMessage", {"media_type": "network"}),
    "takeaway_order": Mapped("OrderFood", {"food_type": "food", "business_name": "place"}),
    "transport_query": Mapped(UNKNOWN_INTENT),
    "transport_taxi": Mapped("CallTaxi", {"place_name": "place"}),
    "transport_ticket": Mapped("BookTicket", {"place_name": "place", **_same("date")}),
    "transport_traffic": Mapped("GetTraffic", {"place_name": "place"}),
    "weather_query": Mapped(
        "GetWeather",
        {
            "date": "timeRange",
            "place_name": "city",
            "time": "timeRange",
            "timeofday": "timeRange",
            "weather_descriptor": "condition_description",
        },
    ),
}
"""Source scenarios that are not here (other questions, recommendations) are left out."""


def parse_annotation(annotation: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the plain utterance and its (slot, value) pairs."""
    pairs = [(name, tidy(value)) for name, value in _SLOT.findall(annotation)]
    return tidy(_SLOT.sub(lambda match: match.group(2), annotation)), pairs


def map_sample(source: str, annotation: str) -> CommandSample | None:
    """Translate one annotated request, or drop it if it does not fit our intents."""
    rule = INTENTS.get(source)
    if rule is None or "[" in _SLOT.sub("", annotation):
        return None
    utterance, pairs = parse_annotation(annotation)
    slots: dict[str, str] = dict(rule.fixed)
    for name, value in pairs:
        ours = rule.slots.get(name)
        if name in rule.refuse or ours in slots:
            return None
        if ours is not None:
            slots[ours] = value
    return _settle(source, CommandSample(utterance, rule.intent, slots))


def _settle(source: str, sample: CommandSample) -> CommandSample | None:
    """Repair what a table cannot say: lights by name, rooms to clean, items on lists."""
    slots = dict(sample.slots)
    intent = sample.intent
    if source.startswith("iot_hue_light") and "name" in slots:
        slots.pop("name" if slots["name"].lower() in _GENERIC_LIGHTS else "domain")
    if source.startswith("iot_wemo") and "name" not in slots:
        return None
    if source == "iot_cleaning" and "area" in slots:
        intent = "HassVacuumCleanArea"
    if source == "lists_createoradd" and re.search(r"\b(add|put|include)\b", sample.utterance):
        return None
    if source == "play_music" and not slots and "music" not in sample.utterance:
        return None
    if source == "iot_hue_lightchange" and not slots:
        return None
    if any(
        value not in sample.utterance
        for name, value in slots.items()
        if name != "domain" and name != "volume_step"
    ):
        return None
    return CommandSample(sample.utterance, intent, slots)


def parse_csv(text: str) -> Iterator[CommandSample]:
    """Yield the mapped samples of one CSV file."""
    for row in csv.DictReader(io.StringIO(text), delimiter=";"):
        sample = map_sample(f"{row['scenario']}_{row['intent']}", row["answer_annotation"])
        if sample is not None and sample.utterance:
            yield sample


def load(data: Path) -> list[CommandSample]:
    """Return the samples of every CSV file in the archive."""
    samples: list[CommandSample] = []
    for name, content in sorted(read_tar(data / FILE).items()):
        if name.endswith(".csv"):
            samples.extend(parse_csv(content.decode("utf-8")))
    return drop_contradictions(samples)
