"""Our engine as the subject: the exactness check must be able to fail."""

import pytest

from edgeagent.bench import subject as module
from edgeagent.bench.model_dir import Wanted, ensure_model
from edgeagent.bench.shapes import SHAPES
from edgeagent.bench.subject import Subject, check_exact, decode, traffic
from edgeagent.errors import ConfigError, ModelError

TINY = SHAPES["tiny"]


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    path = ensure_model(Wanted(TINY, 0.8, 0.7), tmp_path_factory.mktemp("cache"), lambda _: None)
    return Subject(path, context=64, kernel=None, kv_bits=None)


def test_settings_that_must_not_matter_do_not(subject):
    assert check_exact(subject, 3, subject.prompt(8))["ok"]


def test_a_setting_that_does_matter_is_found(subject, monkeypatch):
    real = module.Subject.session
    other = subject.prompt(1)

    def skewed(self, threads, zero_skip):
        session = real(self, threads, zero_skip)
        if threads == 2 and not zero_skip:
            session.eval(other)  # an engine that answers another prompt
        return session

    monkeypatch.setattr(module.Subject, "session", skewed)
    with pytest.raises(ModelError, match="exactness: 2 threads, zero-skip off"):
        check_exact(subject, 2, subject.prompt(8))


def test_traffic_is_what_the_counters_say(subject):
    dense = subject.session(1, zero_skip=False)
    decode(dense, subject.prompt(8), 4)
    seen = traffic(subject, dense, 8, 4)
    assert seen["ternary_bytes_per_token"] == subject.core.ternary_bytes
    assert seen["skipped_fraction"] == 0
    assert seen["head_bytes_per_token"] == TINY.vocab * TINY.hidden * 2
    assert seen["kv_bytes_per_token"] == round(dense.kv_bytes / 64 * 10.5)
    sparse = subject.session(1, zero_skip=True)
    decode(sparse, subject.prompt(8), 4)
    found = traffic(subject, sparse, 8, 4)
    assert found["skipped_fraction"] > 0.2
    assert found["zero_act"] == seen["zero_act"] == pytest.approx(0.8, abs=0.05)


def test_a_wrong_kernel_is_the_operators_error(subject):
    with pytest.raises(ConfigError, match="kernel"):
        Subject(subject.path, context=64, kernel="mmx", kv_bits=None)
