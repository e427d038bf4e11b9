# ruff: noqa: E501, RUF001  the odd characters are what it is for
"""Lines of text that tokenizers disagree about: made, the same ones everywhere.

python -m tests.lines 12000 > lines.json      (a JSON array: lines hold any character but "\\n")
"""

from __future__ import annotations

import json
import random
import sys

WORDS = [
    "the",
    "a",
    "of",
    "and",
    "to",
    "in",
    "is",
    "it",
    "was",
    "on",
    "Once",
    "upon",
    "time",
    "there",
    "little",
    "girl",
    "dog",
    "I'm",
    "you're",
    "WE'VE",
    "they'll",
    "don't",
    "it'd",
    "Isn't",
    "naïve",
    "café",
    "résumé",
    "Zürich",
    "Ångström",
    "straße",
    "ΑΒΓ",
    "λόγος",
    "Привет",
    "мир",
    "שלום",
    "مرحبا",
    "नमस्ते",
    "ไทย",
    "한국어",
    "日本語",
    "中文字符",
    "kitchen",
    "lights",
    "temperature",
    "21.5°C",
    "100%",
    "$3.50",
    "€20",
    "№5",
    "½",
    "x²",
    "H₂O",
    "ﬁne",
    "ǅ",
    "İstanbul",
]
CODE = [
    "def f(x: int) -> str:", "    return {k: v for k, v in d.items()}", "if (a && b || !c) { x += 1; }",
    "\tfor (int i = 0; i < n; ++i)", "#include <stdio.h>", "SELECT * FROM t WHERE id='1' -- x",
    "<div class=\"a\">&nbsp;</div>", "s/\\d+(?=px)/\\n/g", "0xDEADBEEF 1e-9 3.14159 1_000_000",
    "https://example.org/a?b=c&d=%20#e", "foo_bar.bazQux(--i)[0]->y::z", "{\"a\": [1, 2, {\"b\": null}]}",
    "$ sudo rm -rf /tmp/*.o | grep -v '^$'", "/* ---- */ // ===== ///", "''' \"\"\" ``` $$ @@ ##",
]  # fmt: skip
EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🇩🇪", "🏳️‍🌈", "❤️", "1️⃣", "🫠", "⌚", "🀄", "𝔘𝔫𝔦", "𠮷"]
CJK = "的一是不了人我在有他这为之大来以个中上们日本語のひらがなカタカナ漢字한국어조선글，。！？「」、　Ａ１"
MARKS = [
    "e\u0301",
    "A\u030a",
    "o\u0308\u0323",
    "\u0915\u094d\u0937",
    "\u1100\u1161\u11a8",
    "\ufb01",
    "\u212b",
]
CONTROL = [
    "\x00",
    "\x01",
    "\x07",
    "\x08",
    "\x0b",
    "\x0c",
    "\r",
    "\x1b[31m",
    "\x7f",
    "\x85",
    "\xa0",
    "\xad",
]
CONTROL += [
    "\u200b",
    "\u200d",
    "\u2028",
    "\u2029",
    "\u202e",
    "\ufeff",
    "\ufffd",
    "\u2581",
    "\ue000",
    "\U000e0001",
]
SPACES = [" ", "  ", "   ", "    ", "\t", "\t\t", " \t ", "\u3000", "\u2003", "\r\r"]
MARKUP = [
    "<s>",
    "</s>",
    "<unk>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|im_start|>user",
    "[INST]",
    "<0x0A>",
    "<0x41>",
]


def _char(r: random.Random) -> str:
    while True:
        c = r.choice((r.randrange(0x20, 0x250), r.randrange(0x250, 0x3000), r.randrange(0x110000)))
        if not 0xD800 <= c < 0xE000 and c != 0x0A:
            return chr(c)


def _long_word(r: random.Random) -> str:
    kind = r.randrange(4)
    if kind == 0:
        return r.choice("aAx0 -=_.▁中") * r.randrange(20, 300)
    if kind == 1:
        return "".join(r.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(r.randrange(40, 400)))
    if kind == 2:
        return "".join(r.choice("0123456789") for _ in range(r.randrange(20, 200)))
    return r.choice(["ab", "aba", "the", "Donau", "😀", "é"]) * r.randrange(10, 60)


def _piece(r: random.Random) -> str:
    kind = r.randrange(100)
    if kind < 45:
        return r.choice(WORDS)
    if kind < 55:
        return r.choice(CODE)
    if kind < 62:
        return r.choice(EMOJI)
    if kind < 70:
        return "".join(r.choice(CJK) for _ in range(r.randrange(1, 20)))
    if kind < 75:
        return r.choice(MARKS)
    if kind < 82:
        return r.choice(CONTROL)
    if kind < 87:
        return str(r.randrange(10 ** r.randrange(1, 12)))
    if kind < 90:
        return r.choice(MARKUP)
    if kind < 92:
        return _long_word(r)
    return "".join(_char(r) for _ in range(r.randrange(1, 12)))


def line(r: random.Random) -> str:
    parts = []
    for _ in range(r.randrange(1, 14)):
        parts.append(_piece(r))
        parts.append(" " if r.random() < 0.75 else r.choice(["", *SPACES]))
    text = "".join(parts)
    return text.replace("\n", " ") if r.random() < 0.5 else text.replace("\n", " ").strip()


def lines(n: int, seed: int = 1) -> list[str]:
    r = random.Random(seed)
    return [line(r) for _ in range(n)]


if __name__ == "__main__":
    json.dump(lines(int(sys.argv[1])), sys.stdout)
