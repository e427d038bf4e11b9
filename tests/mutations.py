"""Ways to damage bytes and JSON values: what fuzzers have in common."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

EXTREMES = (
    0, 1, 2, 7, 31, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**62, 2**63 - 1, 2**63,
    2**64 - 1,
)  # fmt: skip
ODD_BYTES = (b"[" * 5000, b'{"a":' * 2000, b"\xff\xfe", b"\n", b"\0", b"1e999", b"9" * 400)
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1.5, -0.0, 1e308, float("inf"), float("nan"), 2**31, 2**63,
    10**400, "", " ", "x", "a\nb", "\x00", "\ufffe", "../x", "a" * 5000, [], {}, [None], [[]],
    [10**30], {"a": {}}, [0] * 3000, {str(i): i for i in range(300)},
)  # fmt: skip
DEPTH = 60


def change_bytes(rng: random.Random, sound: bytes, upto: int | None = None) -> bytes:
    """Change something within the first `upto` bytes."""
    out = bytearray(sound)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(min(upto or len(out), len(out)) or 1)
        match rng.randrange(8):
            case 0 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 1 if out:
                out[at % len(out)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                out[at : at + 8] = struct.pack("<Q", rng.choice(EXTREMES))
            case 3:
                out[at : at + 4] = struct.pack("<I", rng.choice(EXTREMES) & 0xFFFFFFFF)
            case 4:
                del out[at : at + rng.randrange(1, 64)]
            case 5:
                out[at:at] = out[at : at + rng.randrange(1, 64)] * rng.choice((1, 2, 50))
            case 6:
                other = rng.randrange(len(out) or 1)
                out[at:at] = out[other : other + rng.randrange(1, 256)]
            case _:
                out[at:at] = rng.choice(ODD_BYTES) if rng.random() < 0.2 else rng.randbytes(3)
    return bytes(out[: rng.randrange(len(out) + 1)] if rng.random() < 0.05 else out)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of everything inside a JSON value."""
    found: list[tuple[Any, Any]] = []
    open_ = [value]
    while open_:
        here = open_.pop()
        keys = list(here) if isinstance(here, dict) else range(len(here))
        for key in keys:
            found.append((here, key))
            if isinstance(here[key], dict | list):
                open_.append(here[key])
    return found


def _number(rng: random.Random, value: float) -> Any:
    match rng.randrange(5):
        case 0:
            return value + rng.choice((-1, 1))
        case 1:
            return rng.choice(EXTREMES)
        case 2:
            return -value
        case 3:
            return value * rng.choice((2, 3, 4, 1000)) if rng.random() < 0.8 else value // 2
        case _:
            return rng.randrange(1 << rng.randrange(1, 70))


def _nested(value: Any) -> Any:
    for _ in range(DEPTH):
        value = [value]
    return value


def _other(rng: random.Random, value: Any, odd: tuple[Any, ...]) -> Any:
    kind = rng.random()
    if isinstance(value, int | float) and not isinstance(value, bool) and kind < 0.7:
        return _number(rng, value)
    if isinstance(value, str) and kind < 0.3:
        return value * rng.randrange(40) if rng.random() < 0.5 else value[: len(value) // 2]
    if isinstance(value, list) and value and kind < 0.5:
        i = rng.randrange(len(value))
        return rng.choice((value[:i] + value[i + 1 :], value[:i] + [value[i]] * 9, value[::-1]))
    return _nested(value) if kind > 0.98 else rng.choice(odd)


def change_json(rng: random.Random, sound: Any, odd: tuple[Any, ...] = ()) -> Any:
    """Return a copy with something changed: a value, a key, or two values exchanged.

    `odd` are values that mean something where this one goes.
    """
    value = copy.deepcopy(sound)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
        found = places(value)
        if not found:
            return copy.deepcopy(rng.choice(odd + ODD))
        here, key = rng.choice(found)
        alike = [place for place in found if type(place[0][place[1]]) is type(here[key])]
        there, other = rng.choice(found if rng.random() < 0.2 else alike)
        match rng.randrange(8):
            case 0:
                del here[key]
            case 1:
                here[key] = copy.deepcopy(there[other])  # a copy: no cycle comes of it
            case 2 if not isinstance(here[key], dict | list) and not isinstance(
                there[other], dict | list
            ):
                here[key], there[other] = there[other], here[key]
            case 3 if isinstance(here, dict):
                here[rng.choice(("", "x", f"{key}.", "a" * 300, str(key).upper()))] = here.pop(key)
            case _:
                here[key] = copy.deepcopy(_other(rng, here[key], odd + ODD))
    return value


def dump(rng: random.Random, value: Any) -> bytes:
    """Write JSON; now and then with a key that appears twice, or with damaged bytes."""
    text = json.dumps(value).encode()
    if rng.random() < 0.05 and isinstance(value, dict) and value:
        key = rng.choice(list(value))
        text = text[:-1] + b", " + json.dumps({key: value[key]}).encode()[1:]
    return change_bytes(rng, text) if rng.random() < 0.15 else text
