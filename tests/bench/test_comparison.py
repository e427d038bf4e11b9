"""The formats that ternary is compared with: packed, and multiplied by the engine."""

import numpy as np
import pytest

from edgeagent import _core
from edgeagent.bench.comparison import COMPARISONS, ensure_comparison, pack_binary, pack_int8
from edgeagent.bench.model_dir import Wanted, ensure_model
from edgeagent.bench.shapes import SHAPES
from edgeagent.bench.subject import greedy
from edgeagent.errors import ModelError
from edgeagent.model.files import open_model


def test_bit_f_of_a_byte_is_an_output_of_field_f():
    signs = np.zeros((130, 6), bool)
    signs[16 * 3 + 5, 4] = signs[129, 1] = True
    packed = pack_binary(signs)
    assert packed.shape == (2, 2, 16, 4)
    assert packed[0, 1, 5, 0] == 1 << 3
    assert packed[1, 0, 1, 1] == 1
    assert np.count_nonzero(packed) == 2


def test_an_int8_weight_is_stored_with_128_added():
    weights = np.zeros((18, 5), np.int8)
    weights[17, 4], weights[0, 0] = -127, 127
    packed = pack_int8(weights)
    assert packed.shape == (2, 2, 16, 4)
    assert packed[1, 1, 1, 0] == 1
    assert packed[0, 0, 0, 0] == 255
    assert packed[0, 0, 1, 0] == 128


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    wanted = Wanted(SHAPES["tiny"], 0.5, 0.4)
    return ensure_model(wanted, tmp_path_factory.mktemp("cache"), lambda _: None)


def logits_of(path, kernel, threads, parts=1, steps=4):
    files = open_model(path, comparison=True)
    model = _core.Model(dict(files.config), files.tensors, kernel)
    session = _core.Session(model, 64, threads, True)
    prompt = list(range(2, 22))
    cut = len(prompt) // parts
    for part in (prompt[:cut], prompt[cut:]):
        if part:
            session.eval(part)
    tokens = [token for _, token in zip(range(steps), greedy(session), strict=False)]
    return tokens, bytes(session.logits())


@pytest.mark.parametrize("weights", sorted(COMPARISONS))
def test_logits_do_not_depend_on_variant_threads_or_split(tiny, weights):
    path = ensure_comparison(tiny, SHAPES["tiny"], weights, lambda _: None)
    want = logits_of(path, "scalar", 1)
    assert logits_of(path, None, 2) == want
    assert logits_of(path, None, 1, parts=2) == want


def test_only_a_measurement_opens_them(tiny):
    path = ensure_comparison(tiny, SHAPES["tiny"], "int8", lambda _: None)
    with pytest.raises(ModelError, match="layout 1 or 2, got 'edgeagent' layout 4"):
        open_model(path)


def test_repacked_trits_are_the_same_model(tiny):
    want = logits_of(tiny, None, 1)
    for weights in ("lines", "tiles"):
        path = ensure_comparison(tiny, SHAPES["tiny"], weights, lambda _: None)
        assert logits_of(path, None, 1) == want


def test_eight_bits_are_float16_but_for_the_activations(tiny):
    logits = {}
    for weights in ("int8", "f16"):
        path = ensure_comparison(tiny, SHAPES["tiny"], weights, lambda _: None)
        _, data = logits_of(path, None, 1, steps=0)
        logits[weights] = np.frombuffer(data, "<f4")
    assert np.corrcoef(logits["int8"], logits["f16"])[0, 1] > 0.9


def test_an_unknown_layout_is_one_clear_line(tiny):
    files = open_model(tiny)
    config = dict(files.config) | {"quantization_config": {"layout": 6}}
    with pytest.raises(ValueError, match="layout: expected 1 to 5, got 6"):
        _core.Model(config, files.tensors)
