import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.model.stop import StopMatcher


def run(stops, pieces):
    matcher, shown = StopMatcher(stops), ""
    for piece in pieces:
        text, met = matcher.push(piece)
        shown += text
        if met:
            return shown, True
    return shown + matcher.flush(), False


@pytest.mark.parametrize(
    ("stops", "pieces", "want"),
    [
        ([], ["abc", "d"], ("abcd", False)),
        (["b"], ["abc"], ("a", True)),
        (["END"], ["the E", "N", "D now"], ("the ", True)),
        (["END"], ["the EN", "ough"], ("the ENough", False)),
        (["aab"], ["aa", "ab"], ("a", True)),
        (["xyz", "y"], ["wxy"], ("wx", True)),
    ],
)
def test_nothing_of_a_stop_string_is_ever_shown(stops, pieces, want):
    assert run(stops, pieces) == want


TEXT = st.text(alphabet="abc", max_size=12)


@given(st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3), st.lists(TEXT))
def test_the_cut_does_not_depend_on_how_the_text_was_cut_into_pieces(stops, pieces):
    whole = "".join(pieces)
    ends = [at for stop in stops if (at := whole.find(stop)) >= 0]
    shown, met = run(stops, pieces)
    assert met == bool(ends)
    if not ends:
        assert shown == whole
    else:
        assert all(stop not in shown for stop in stops)
        assert whole.startswith(shown)
