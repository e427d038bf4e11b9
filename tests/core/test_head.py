"""The two-stage head against the full scan: the same tokens, the same generator, fewer bytes.

A toy model gives the hidden state; an untied head does not change it, so heads are built around it
after it is known: rows that tie, rows one bit apart, rows that are the hidden state itself.
"""

import numpy as np
import pytest

from edgeagent import _core
from edgeagent.convert.head import PREFIX, make_scan
from tests.core.toy import Shape, make_toy

PROMPT = [3, 1, 4, 1, 5]
DRAWS = 400


def shape_of(hidden, vocab):
    return Shape(
        hidden=hidden,
        heads=2,
        kv_heads=1,
        head_dim=64,
        ffn=128,
        layers=1,
        vocab=vocab,
        tied=False,
        output_major=(),
    )


def with_head(toy, head, scan=None):
    """The tensors of a toy whose head is replaced, with scan planes when given."""
    tensors = toy.tensors() | {
        "lm_head.weight": ("F16", head.shape, memoryview(head).cast("B").toreadonly())
    }
    for name, dtype, shape, data in scan.tensors() if scan else ():
        tensors[name] = (dtype, shape, memoryview(data))
    return tensors


def sessions(toy, head, variant=None, threads=1, scan=None):
    """A session with scan planes, and one without."""
    scan = scan or make_scan(head)
    pair = []
    for planes in (scan, None):
        model = _core.Model(toy.config, with_head(toy, head, planes), variant)
        pair.append(_core.Session(model, 16, threads))
        pair[-1].eval(PROMPT)
    return pair


def hidden_of(toy):
    session = _core.Session(_core.Model(toy.config, toy.tensors()), 16)
    session.eval(PROMPT)
    return np.array(session.hidden())


def f16(array):
    return np.ascontiguousarray(array, np.float16)


def gaussian(rng, vocab, x):
    return f16(0.05 * rng.standard_normal((vocab, len(x))))


def duplicates(rng, vocab, x):
    return gaussian(rng, vocab, x)[rng.integers(0, vocab // 20, vocab)]


def one_bit_apart(rng, vocab, x):
    """Rows that differ from one row along the hidden state by one bit of one weight."""
    head = np.repeat(f16(x / np.linalg.norm(x))[None], vocab, 0)
    bits = head.view(np.uint16)
    bits[np.arange(vocab), rng.integers(0, len(x), vocab)] += rng.integers(0, 2, vocab, np.uint16)
    return head


def along_the_hidden_state(rng, vocab, x):
    lengths = rng.uniform(-1, 1, (vocab, 1))
    return f16(lengths * x / np.linalg.norm(x))


def one_hot(rng, vocab, x):
    head = np.zeros((vocab, len(x)), np.float16)
    head[np.arange(vocab), rng.integers(0, len(x), vocab)] = rng.choice([1, -1, 0.5], vocab)
    return head


def every_size(rng, vocab, x):
    """Zero rows, constant rows, subnormal weights and the largest float16."""
    head = rng.standard_normal((vocab, len(x))) * 2.0 ** rng.integers(-26, 14, (vocab, 1))
    head[::7] = 0
    head[1::7] = 2.0 ** rng.integers(-24, 10, (len(head[1::7]), 1))
    head[2::7] = 65504 * rng.choice([1, -1], head[2::7].shape)
    return f16(np.clip(head, -65504, 65504))


def outliers(rng, vocab, x):
    """Heavy tails: one weight of a row is as large as all others together."""
    head = 0.02 * rng.standard_t(2, (vocab, len(x)))
    return f16(np.clip(head, -100, 100))


HEADS = [gaussian, duplicates, one_bit_apart, along_the_hidden_state, one_hot, every_size, outliers]

SETTINGS = [
    {},
    {"repetition_penalty": 1.3},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.5, "top_k": 40, "top_p": 0.9},
    {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.2},
    {"temperature": 2.0, "top_k": 10, "repetition_penalty": 0.5},
    {"temperature": 0.8, "min_p": 0.1},
    {"temperature": 0.3, "min_p": 1.0},
    {"temperature": 1.0, "min_p": 0.5, "repetition_penalty": 1.5},
]


@pytest.mark.parametrize("make", HEADS, ids=lambda make: make.__name__)
@pytest.mark.parametrize(("hidden", "vocab"), [(128, 1000), (272, 3001)])
def test_tokens_are_those_of_the_full_scan(make, hidden, vocab):
    toy = make_toy(shape_of(hidden, vocab))
    rng = np.random.default_rng(hidden)
    fast, full = sessions(toy, make(rng, vocab, hidden_of(toy)))
    best = np.argsort(-np.array(full.logits()), kind="stable")
    for setting in SETTINGS:
        a, b = (_core.Sampler(**setting, seed=11) for _ in range(2))
        recent = [*best[:5].tolist(), int(best[0]), *rng.integers(0, vocab, 20).tolist()]
        for i in range(DRAWS if setting.get("temperature") else 3):
            seen = recent[i % 7 :]
            assert a.sample(fast, seen) == b.sample(full, seen), setting
    assert fast.head_counters()["queries"] > 0


def test_the_gaussian_head_is_not_read_in_full():
    toy = make_toy(shape_of(272, 3001))
    fast, _ = sessions(toy, gaussian(np.random.default_rng(1), 3001, np.zeros(272)))
    fast.reset_counters()
    _core.Sampler(temperature=1.0, top_k=5).sample(fast)
    n = fast.head_counters()
    assert (n["queries"], n["fallbacks"], n["full_scans"], n["rows_scanned"]) == (1, 0, 0, 3001)
    assert 5 <= n["rows_rescored"] < 100
    assert n["rows_rescored"] - 5 <= n["rows_refined"] < 3001 // 2


@pytest.mark.parametrize(
    "setting",
    [{"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}, {"temperature": 1.0, "top_k": 5000}],
    ids=str,
)
def test_what_needs_every_logit_is_a_full_scan(setting):
    toy = make_toy(shape_of(128, 1000))
    fast, full = sessions(toy, gaussian(np.random.default_rng(1), 1000, np.zeros(128)))
    a, b = (_core.Sampler(**setting, seed=2) for _ in range(2))
    assert [a.sample(fast) for _ in range(50)] == [b.sample(full) for _ in range(50)]
    assert fast.head_counters()["full_scans"] == 1
    assert fast.head_counters()["queries"] == 0


def test_rows_that_cannot_be_told_apart_are_a_counted_fallback():
    toy = make_toy(shape_of(128, 1000))
    fast, full = sessions(toy, np.ones((1000, 128), np.float16))
    assert _core.Sampler().sample(fast) == _core.Sampler().sample(full) == 0
    n = fast.head_counters()
    assert (n["queries"], n["fallbacks"], n["full_scans"]) == (1, 1, 1)


def test_a_wrong_guess_grows():
    """Estimates that are all equal: the guess is the lowest row, and the proof finds the others."""
    toy = make_toy(shape_of(128, 1000))
    x = hidden_of(toy)
    head = f16(np.zeros((1000, 128)))
    head[0], head[700] = x / 2**10, x / 2**8
    scan = make_scan(head)
    scan.rows[0] = scan.rows[1] = 0  # scales: nothing is left but the bounds of the norm
    scan.rows[3:] = scan.rows[2]
    fast, full = sessions(toy, head, scan=scan)
    assert _core.Sampler().sample(fast) == _core.Sampler().sample(full) == 700
    assert fast.head_counters()["grown"] == 1


@pytest.mark.parametrize("variant", _core.supported_variants())
def test_candidates_do_not_depend_on_variant_and_threads(variant):
    toy = make_toy(shape_of(272, 3001))
    head = gaussian(np.random.default_rng(4), 3001, np.zeros(272))
    results = []
    for kernel, threads in (("scalar", 1), (variant, 1), (variant, 3)):
        fast, _ = sessions(toy, head, kernel, threads)
        fast.reset_counters()
        sampler = _core.Sampler(temperature=2.0, top_k=20, seed=3)
        results.append(([sampler.sample(fast) for _ in range(30)], fast.head_counters()))
    assert results[0] == results[1] == results[2]


def test_logits_are_computed_when_asked_for_and_then_used():
    toy = make_toy(shape_of(128, 1000))
    fast, full = sessions(toy, gaussian(np.random.default_rng(5), 1000, np.zeros(128)))
    assert fast.head_counters()["full_scans"] == 0
    assert bytes(fast.logits()) == bytes(full.logits()) == bytes(fast.logits())
    assert fast.head_counters()["full_scans"] == 1
    _core.Sampler().sample(fast)
    assert fast.head_counters()["queries"] == 0


def test_the_bundled_head(bundled):
    """A trained head: far fewer rows are left than of a random one."""
    config, tensors = bundled
    embed = np.frombuffer(tensors["model.embed_tokens.weight"][2], np.float16)
    head = embed.reshape(tensors["model.embed_tokens.weight"][1])
    planes = {n: (d, s, memoryview(b)) for n, d, s, b in make_scan(head).tensors()}
    fast = _core.Session(_core.Model(config, tensors | planes), 256)
    full = _core.Session(_core.Model(config, tensors), 256)
    settings = [{}, {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1}]
    for setting in settings:
        a, b = (_core.Sampler(**setting, seed=1) for _ in range(2))
        for session in (fast, full):
            session.truncate(0)
            session.eval([0, 15, 27])
        seen = []
        for _ in range(100):
            token = a.sample(fast, seen[-64:])
            assert token == b.sample(full, seen[-64:])
            seen.append(token)
            fast.eval([token])
            full.eval([token])
    n = fast.head_counters()
    assert n["fallbacks"] == n["full_scans"] == 0
    assert n["rows_rescored"] < n["rows_scanned"] // 10


@pytest.fixture(scope="module")
def bundled():
    from edgeagent.model.files import open_model
    from edgeagent.paths import bundled_model

    files = open_model(bundled_model())
    return dict(files.config), files.tensors


REFUSALS = [
    ("codes", lambda a: a[:, :-1], "expected shape"),
    ("rows", lambda a: np.full_like(a, np.nan), "expected 0 or 2.-60 to 2.60, got nan"),
    ("rows", lambda a: -a, "expected 0 or"),
    ("rows", lambda a: a * np.array([[1], [1], [0], [1], [1]], np.float32), "twice the norm"),
    ("levels", lambda a: a + 127, "levels: expected 0 to 126"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), REFUSALS)
def test_planes_that_cannot_be_are_refused(name, spoil, message):
    toy = make_toy(shape_of(128, 100))
    head = gaussian(np.random.default_rng(6), 100, np.zeros(128))
    scan = make_scan(head)
    tensors = with_head(toy, head, scan)
    array = np.ascontiguousarray(spoil(getattr(scan, name)).astype(getattr(scan, name).dtype))
    tensors[PREFIX + name] = (tensors[PREFIX + name][0], array.shape, memoryview(array).cast("B"))
    with pytest.raises(ValueError, match=message):
        _core.Model(toy.config, tensors)


def test_planes_that_are_not_complete_are_refused():
    toy = make_toy(shape_of(128, 100))
    head = gaussian(np.random.default_rng(6), 100, np.zeros(128))
    tensors = with_head(toy, head, make_scan(head))
    del tensors[PREFIX + "refine"]
    with pytest.raises(ValueError, match=r"tensor lm_head.scan.refine: missing"):
        _core.Model(toy.config, tensors)
