from edgeagent.bench.report import percent, table


def test_a_table_is_aligned_and_unknown_is_a_dash():
    text = table(["what", "n"], [["decode", 12345.6], ["x", None], ["share", 0.125], ["name", "y"]])
    assert text.splitlines() == [
        "what         n",
        "decode  12,346",
        "x            -",
        "share    0.125",
        "name         y",
    ]
    assert percent(None) == "-"
    assert percent(0.876) == "87.6%"
