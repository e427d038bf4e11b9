import json

from hypothesis import given
from hypothesis import strategies as st

from edgeagent.errors import EngineError, QueryRefused
from edgeagent.protocol.messages import Address
from edgeagent.protocol.replies import (
    BATCH_S,
    BATCH_TOKENS,
    Final,
    TokenBatch,
    final_answer,
    final_error,
    token_batch,
)

PLAIN = Address("q", "reply/q")
WITH_TRANSACTION = Address("q", "reply/q", None, "t-1")


def test_a_batch_carries_id_seq_and_text():
    assert json.loads(token_batch(PLAIN, 3, "é")) == {"id": "q", "seq": 3, "text": "é"}
    assert json.loads(token_batch(WITH_TRANSACTION, 0, ""))["transaction"] == "t-1"


def test_the_last_message_stands_alone():
    final = Final("all of it", "stop", {"prompt_tokens": 1}, {"queue_ms": 0.1})
    message = json.loads(final_answer(WITH_TRANSACTION, 9, final))
    assert message["final"] is True
    assert message["status"] == "ok"
    assert message["text"] == "all of it"
    assert set(message) >= {"usage", "timings", "energy", "thermal", "skipped", "model"}


def test_an_error_says_code_message_and_when_to_try_again():
    busy = QueryRefused("the queue is full", retry_after_s=2.345)
    assert json.loads(final_error(PLAIN, 0, busy)) == {
        "id": "q",
        "seq": 0,
        "final": True,
        "status": "error",
        "error": {"code": "busy", "message": "the queue is full", "retry_after_s": 2.3},
    }
    error = json.loads(final_error(PLAIN, 2, EngineError("gone")))["error"]
    assert error == {"code": "engine_failed", "message": "gone"}


def test_the_first_token_goes_out_at_once_and_the_next_wait_for_their_batch():
    batch = TokenBatch()
    assert batch.add("a", 0.0) == "a"
    assert batch.wait_s(0.0) is None
    assert batch.add("b", 0.01) is None
    assert batch.wait_s(0.01) == BATCH_S - 0.01
    assert batch.add("c", BATCH_S) == "bc"
    assert batch.flush(1.0) is None


def test_a_batch_is_bounded_in_tokens():
    batch = TokenBatch()
    batch.add("first", 0.0)
    sent = [batch.add("x", 0.0) for _ in range(BATCH_TOKENS)]
    assert sent == [None] * (BATCH_TOKENS - 1) + ["x" * BATCH_TOKENS]


def test_empty_tokens_make_no_batch():
    batch = TokenBatch()
    assert batch.add("", 0.0) is None
    assert batch.add("", 1.0) is None
    assert batch.add("a", 2.0) == "a"


@given(st.lists(st.tuples(st.text(max_size=3), st.floats(0, 0.2)), max_size=60))
def test_batches_put_together_are_the_text(tokens):
    batch, now_s, sent = TokenBatch(), 0.0, []
    for text, pause_s in tokens:
        now_s += pause_s
        sent.append(batch.add(text, now_s))
    sent.append(batch.flush(now_s))
    assert "".join(filter(None, sent)) == "".join(text for text, _ in tokens)
