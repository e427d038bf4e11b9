"""`edgeagent bench` from end to end, on a model that is made for it.  No figure is judged here."""

import json
import sys

import pytest

from edgeagent.cli import main

FAST = ["--tokens", "4", "--prompt", "20", "--repeat", "2", "--bandwidth-mb", "1"]
FIELDS = {
    "decode_tok_s", "prefill_tok_s", "bytes_per_token", "read_gb_s", "bandwidth_gb_s",
    "skipped_fraction", "rss_mb", "load_ms", "first_token_ms", "kernel", "peers",
    "date", "commit", "machine", "cpu", "compiler", "threads", "repetitions", "spread", "exact",
}  # fmt: skip
WORKER = """
import json, sys
print(json.dumps({"event": "ready", "name": "other", "model": "m Q4"}), flush=True)
for line in sys.stdin:
    op = json.loads(line)["op"]
    figures = {f"{op}_tok_s": 2.5, "first_token_ms": 7.0, "rss_mb": 9.0}
    print(json.dumps({"op": op, **figures}), flush=True)
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def run(capsys, *argv):
    assert main(["bench", *argv]) == 0
    return capsys.readouterr().out


def test_the_fields_are_those_that_were_promised(capsys, cache, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    out = run(
        capsys, "--shape", "tiny", "--threads", "2", "--cache", str(cache), "--json",
        "--peer", f"{sys.executable} {worker}", "--out", str(tmp_path / "r" / "x.json"), *FAST,
    )  # fmt: skip
    result = json.loads(out)
    assert set(result) >= FIELDS
    assert result["peers"]["other Q4"]["decode_tok_s"] == 2.5
    assert result["peers"]["other Q4"]["prefill_tok_s"] == 2.5
    assert result["exact"]["ok"]
    assert result["spread"]["decode_tok_s"]["repetitions"] >= 2
    assert 0.2 < result["skipped_fraction"] < 0.8
    assert result["start"]["cold"]["first_token_ms"]["median"] > 0
    assert json.loads((tmp_path / "r" / "x.json").read_text()) == result


def test_no_zeros_asked_for_means_that_nothing_is_skipped(capsys, cache):
    options = ["--shape", "tiny", "--zero-act", "0", "--no-starts", "--cache", str(cache)]
    result = json.loads(run(capsys, *options, "--json", *FAST))
    assert result["zero_skip"] is False
    assert result["skipped_fraction"] == 0.0


def test_people_get_a_table_with_the_roofline(capsys, cache):
    out = run(capsys, "--shape", "tiny", "--cache", str(cache), "--no-starts", *FAST)
    assert "roofline" in out
    assert "exact:" in out


def test_formats_stand_side_by_side(capsys, cache):
    options = ["--formats", "--shape", "tiny", "--cache", str(cache)]
    result = json.loads(run(capsys, *options, "--json", *FAST))
    rows = {row["format"]: row for row in result["formats"]}
    assert all(
        row["skipped_fraction"] == 0 for name, row in rows.items() if "zero-skip" not in name
    )
    weights = {name: row["ternary_bytes_per_token"] for name, row in rows.items()}
    assert weights["f16"] == 2 * weights["int8"]
    assert weights["int8"] == 8 * weights["binary"]  # every matrix of `tiny` is whole tiles
    assert weights["binary"] < weights["ternary dense, base 3"] < weights["int8"]
    assert all(row["j_per_token"] is not None or row["reason"] for row in rows.values())
    assert "ternary zero-skip" in run(capsys, *options, *FAST)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--zero-act", "1.5"], "--zero-act: expected a fraction"),
        (["--closed-gates", "-1"], "--closed-gates: expected a fraction"),
        (["--repeat", "0"], "--repeat: expected at least 1"),
        (["--threads", "0"], "threads: expected 1"),
        (["--peer", "no-such-program"], "no-such-program"),
        (["--model", "no-such-directory"], "no-such-directory"),
    ],
)
def test_bad_input_is_one_line(capsys, cache, argv, words):
    shape = [] if "--model" in argv else ["--shape", "tiny"]
    assert main(["bench", *shape, "--cache", str(cache), *argv]) != 0
    err = capsys.readouterr().err
    assert words in err
    assert len(err.strip().splitlines()) == 1
