"""Blind deltas add up and turn round without any model."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ota.compose import compose, invert
from ota.container import Container
from ota.errors import DeltaFormatError, PayloadError
from tests.ota.codec import decode, encode, release_of
from tests.ota.fakes import Bytes, Files
from tests.ota.models import pack, random_trits, safetensors


def model(rng, text=b"{}"):
    trits = random_trits(rng, 128 * 40)
    floats = {"h": rng.normal(size=300).astype(np.float16), "f": np.ones(9, np.float32)}
    return {"trits": trits, **floats, "text": text}


def changed(old, rng, rate):
    hit = rng.random(old["trits"].size) < rate
    trits = np.where(hit, (old["trits"] + 2) % 3 - 1, old["trits"])
    half = old["h"] + (rng.random(300) < rate).astype(np.float16)
    return {**old, "trits": trits, "h": half, "f": old["f"] * np.float32(1.01 if rate else 1)}


def files(model):
    planes = pack(model["trits"]).reshape(40, 32)
    shard = safetensors({"w": planes, "v": planes[:3], "h": model["h"], "f": model["f"]})
    return {"m.safetensors": shard, "config.json": model["text"], "same": b"always"}


def delta(old, new):
    return encode(old, new, reversible=True)


def make(data, old, base):
    """Decode with a base whose release may have any version."""
    container = Container(Bytes(data), base)
    made = {name: old[old_name] for name, old_name in container.kept.items()}
    made |= {name: b"".join(pieces) for name, pieces in container.make(Files(old))}
    return made


def composed(one, two, base, middle):
    out = io.BytesIO()
    compose((Bytes(one), base), (Bytes(two), middle), out)
    return out.getvalue()


RATES = st.sampled_from([0.0, 0.01, 0.3])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32), RATES, RATES, st.booleans())
def test_two_steps_are_one(seed, first, second, new_text):
    rng = np.random.default_rng(seed)
    a = model(rng)
    b = changed(a, rng, first)
    c = changed(b, rng, second)
    if new_text:
        b, c = {**b, "text": b'{"b": 1}'}, {**c, "text": b'{"c": 2}'}
    a, b, c = files(a), files(b), files(c)
    middle = release_of(b, "1.1.0", 2)  # what encode() gives its result
    one = delta(a, b)
    assert Container(Bytes(one), release_of(a)).release.root == middle.root
    both = composed(one, encode_from(b, middle, c), release_of(a), middle)
    assert decode(both, a) == c


def encode_from(old, base, new):
    from ota.encoder import Encoder

    out = io.BytesIO()
    result = (release_of(new, "1.2.0", 3), Files(new))
    Encoder((base, Files(old)), result, reversible=True).write(out)
    return out.getvalue()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32), RATES)
def test_there_and_back_again(seed, rate):
    rng = np.random.default_rng(seed)
    old = model(rng)
    new = files(changed(old, rng, rate))
    old = files(old)
    out = io.BytesIO()
    invert((Bytes(delta(old, new)), release_of(old)), out)
    assert make(out.getvalue(), new, release_of(new, "1.1.0", 2)) == old


def test_three_steps_are_one_in_any_order_of_adding():
    rng = np.random.default_rng(4)
    models = [model(rng)]
    for rate in (0.02, 0.05, 0.1):
        models.append(changed(models[-1], rng, rate))
    models = [files(m) for m in models]
    releases = [release_of(m, f"1.{k}.0", k + 1) for k, m in enumerate(models)]
    steps = [encode_between(models, releases, k) for k in range(3)]
    left = composed(composed(steps[0], steps[1], *releases[:2]), steps[2], releases[0], releases[2])
    right = composed(steps[0], composed(steps[1], steps[2], *releases[1:3]), *releases[:2])
    for data in (left, right):
        assert make(data, models[0], releases[0]) == models[3]


def encode_between(models, releases, k):
    from ota.encoder import Encoder

    out = io.BytesIO()
    ends = [(releases[i], Files(models[i])) for i in (k, k + 1)]
    Encoder(*ends, reversible=True).write(out)
    return out.getvalue()


def test_what_is_no_difference_has_no_way_back():
    rng = np.random.default_rng(5)
    old = model(rng)
    new = files({**old, "text": b"other"})
    with pytest.raises(DeltaFormatError, match="config.json holds bytes"):
        invert((Bytes(delta(files(old), new)), release_of(files(old))), io.BytesIO())


def test_a_delta_that_looks_at_the_base_is_refused():
    rng = np.random.default_rng(6)
    old = model(rng)
    new = files(changed(old, rng, 0.1))
    data = encode(files(old), new)
    with pytest.raises(DeltaFormatError, match="--reversible"):
        invert((Bytes(data), release_of(files(old))), io.BytesIO())


def test_steps_that_do_not_follow_each_other_are_refused():
    rng = np.random.default_rng(7)
    old = model(rng)
    new = files(changed(old, rng, 0.1))
    old = files(old)
    one = delta(old, new)
    with pytest.raises(PayloadError):
        composed(one, one, release_of(old), release_of(old))


def test_planes_that_are_walked_in_lines_of_different_lengths_add_up():
    """Flips of one delta are everywhere, and its lines are joined; those of the other cluster."""
    rng = np.random.default_rng(8)
    models, hot = [random_trits(rng, 128 * 1024)], np.where(rng.random(128) < 0.1, 0.5, 0.001)
    for rates in (np.full((128, 1), 0.01), hot[:, None]):
        last = models[-1].reshape(128, 1024)
        hit = rng.random(last.shape) < rates
        models.append(np.where(hit, (last + 2) % 3 - 1, last).reshape(-1))
    a, b, c = ({"m.safetensors": safetensors({"w": pack(m).reshape(128, 256)})} for m in models)
    one, two = delta(a, b), delta(b, c)
    lines = [
        Container(Bytes(d), release_of(m)).plan.shapes[0].line_bytes
        for d, m in ((one, a), (two, b))
    ]
    assert lines[0] != lines[1]
    base, middle = release_of(a), release_of(b, "1.1.0", 2)
    assert make(composed(one, two, base, middle), a, base) == c
