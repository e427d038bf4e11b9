from edgeagent.errors import MAX_LINE_CHARS, ModelError, QueryRefused


def test_a_message_is_one_line_whatever_it_quotes():
    assert str(ModelError("café: expected a, got 'b'")) == "café: expected a, got 'b'"
    assert str(QueryRefused("a\nb\x1b[1m\ud800")) == "a\ufffdb\ufffd[1m\ufffd"
    long = str(ModelError("first " + "x" * 10**6 + " what to do"))
    assert len(long) == MAX_LINE_CHARS
    assert long.startswith("first ")
    assert long.endswith(" what to do")
