"""Read an .etd container by the book: docs/formats.md section 5, and nothing else of this project.

    files, release_json = read(delta, release_json_of_base, {name: bytes of the base's files})

Slow and plain on purpose: whole files in memory, trit by trit.  Needs the package zstandard.
"""

import hashlib
import json
import re

import zstandard

Q32, FLIPS, BYTES, TRITS, WORDS, NEW, ZSTD = 1 << 32, 1, 2, 3, 4, 5, b"\x28\xb5\x2f\xfd"
HITS = [1 << 62]
for _ in range(1024):
    HITS.append(HITS[-1] * 0xFC0FC0544AAF31D1 >> 64)
HITS = [((Q32 - (left >> 30)) * ((Q32 - 8192) >> 13)) >> 19 for left in HITS]


def hit(x):
    step, rest = x >> 26, x & (1 << 26) - 1
    return HITS[1024] if step >= 1024 else HITS[step] + ((HITS[step + 1] - HITS[step]) * rest >> 26)


def unzstd(frame, dictionary=b""):
    content = zstandard.ZstdCompressionDict(dictionary or b"\0", zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdDecompressor(dict_data=content).decompressobj().decompress(ZSTD + frame)


def number(data):
    byte = next(data)
    return byte if byte < 128 else byte & 127 | number(data) << 7


class Plane:
    """5.3: the trits of a packed plane, line by line."""

    def __init__(self, data, shape):
        self.data, self.base3, self.line_bytes, self.valid = data, *shape[:3]
        self.n_tail, self.tail, self.period, self.segment, self.k_line, self.k_cross = shape[3:]
        self.block, self.radix = (64, 3) if self.base3 else (32, 4)

    def lines(self):
        n = len(self.data) // self.line_bytes
        for line in range(n):
            self.start = line * self.line_bytes
            yield line, self.tail if n - line <= self.n_tail else self.valid

    def place(self, i):
        block, r = divmod(i, self.block * (5 if self.base3 else 4))
        return self.start + block * self.block + r % self.block, self.radix ** (r // self.block)

    def get(self, i):
        at, factor = self.place(i)
        return self.data[at] // factor % self.radix

    def add(self, i, step):
        at, factor = self.place(i)
        self.data[at] += step * factor


class Coder:
    """5.2: the range coder and its bits; 5.4 to 5.6: flips, whole planes, words."""

    def __init__(self, data, mean_gap, blind):
        self.data, self.at, self.range, self.blind = data, 8, Q32 * Q32 - 1, blind
        self.code = int.from_bytes(data[:8].ljust(8, b"\0"), "big")
        self.flips, self.gap = [1, 1], 3 * min(max(mean_gap, 1), 1 << 29) + 1
        self.trits = [self.gap // 4, self.gap // 2]
        self.ones, self.bits, self.whole = [0, 0, 0], [0, 24, 0], [0, 0, 0, 0]
        self.moving, self.recent = {}, 0

    def narrow(self, start, end):
        unit = self.range >> 32
        self.code -= unit * start
        self.range = self.range - unit * start if end == Q32 else unit * (end - start)
        while self.range < 1 << 48:
            two = self.data[self.at : self.at + 2].ljust(2, b"\0")
            self.code = self.code << 16 | int.from_bytes(two, "big")
            self.range, self.at = self.range << 16, self.at + 2

    def bit(self, p1):
        is_one = self.code < (self.range >> 32) * p1
        self.narrow(*((0, p1) if is_one else (p1, Q32)))
        return int(is_one)

    def counted(self, k):
        bit = self.bit((2 * self.ones[k] + 1 << 31) // (self.bits[k] + 1))
        half = self.bits[k] + 1 == 1 << 30
        self.ones[k], self.bits[k] = self.ones[k] + bit >> half, self.bits[k] + 1 >> half
        return bit

    def average(self, *key):
        fast, slow, seen = self.moving.get(key, (0x8000, 0x8000, 0))
        bit = self.bit(min((fast + slow + 2) << 15, Q32 - (1 << 16)))
        goal, seen = 0xFFFF * bit, min(seen + 1, 7)
        self.moving[key] = fast + (goal - fast >> min(seen, 4)), slow + (goal - slow >> seen), seen
        return bit

    def make_flips(self, plane):
        for k in (0, 1):
            if self.flips[k] > 256:
                self.trits[k], self.flips[k] = self.trits[k] * 256 // self.flips[k], 256
        for line, n in plane.lines():
            if line == 0 or (plane.period and line % plane.period == 0):
                self.cross, self.cross_expected = [plane.k_cross] * plane.valid, 0
            self.line_flips = self.line_expected = 0
            codes = [plane.get(i) for i in range(n)]  # as they were
            for at in range(0, n, plane.segment):
                self.make_segment(plane, at, codes[at : at + plane.segment])
            total = self.cross_expected + self.line_expected // max(n, 1)
            self.cross_expected = min(total, Q32 << 14)

    def predict(self, plane):
        factor = 1 << 16
        if plane.k_line:
            expected = (plane.k_line << 32) + min(self.line_expected, Q32 << 14)
            factor = (plane.k_line + min(self.line_flips, 1 << 14) << 48) // expected
        for flips, trits in zip(self.flips, self.trits, strict=True):
            rate = min((2 * flips + 1 << 32) // (2 * trits - flips + 2), 4 * Q32)
            hazard = rate * min(factor, 1 << 28) >> 16
            if plane.k_cross:
                hazard = (hazard << 16) // ((plane.k_cross << 16) + (self.cross_expected >> 16))
            yield rate, min(max(hazard, 1), 4 * Q32)

    def make_segment(self, plane, at, codes):
        rates = list(self.predict(plane))
        kinds = [int(not self.blind and code != 1) for code in codes]
        sums, i = [0], 0
        for place, kind in enumerate(kinds, at):
            own = rates[kind][1] * (self.cross[place] if plane.k_cross else 1)
            sums.append(sums[-1] + min(own, 4 * Q32))
        while i < len(codes):
            borders = [hit(sums[j] - sums[i]) + j - i for j in range(i, len(sums))] + [Q32]
            target = min(self.code // (self.range >> 32), Q32 - 1)
            j = max(k for k, border in enumerate(borders) if border <= target)
            self.narrow(borders[j], borders[j + 1])
            i += j
            if i == len(codes):
                break
            plane.add(at + i, self.value(codes[i]) - codes[i])
            self.flips[kinds[i]] += 1
            self.line_flips += 1
            self.cross[at + i] += plane.k_cross > 0 and self.cross[at + i] < 1 << 15
            i += 1
        for k in (0, 1):
            self.trits[k] += kinds.count(k)
            self.line_expected += kinds.count(k) * rates[k][0]
            half = self.trits[k] >= 1 << 30
            self.trits[k], self.flips[k] = self.trits[k] >> half, self.flips[k] >> half

    def value(self, old):
        if self.blind:
            return (old + 1 + self.counted(2)) % 3
        return 2 * self.counted(0) if old == 1 else 2 - old if self.counted(1) else 1

    def make_trits(self, plane):
        w = self.whole  # zeros, trits, pluses, signs
        if w[1] > 4096:
            w[:] = w[0] * 4096 // w[1], 4096, w[2] * 4096 // w[1], 4096 - w[0] * 4096 // w[1]
        plane.data[:] = bytes([121 if plane.base3 else 0x55]) * len(plane.data)
        for _, n in plane.lines():
            seen = 0
            for at in range(0, n, 64):
                share = (2 * w[0] + 1 << 31) // (w[1] + 1)
                zero = min(max(((seen << 32) + 64 * share) // (at + 64), 1 << 16), Q32 - (1 << 16))
                plus = (2 * w[2] + 1 << 31) // (w[3] + 1)
                some = range(min(64, n - at))
                codes = [1 if self.bit(zero) else 2 * self.bit(plus) for _ in some]
                for i, code in enumerate(codes, at):
                    plane.add(i, code - 1)
                counts = codes.count(1), len(codes), codes.count(2), len(codes) - codes.count(1)
                seen, half = seen + codes.count(1), w[1] + len(codes) >= 1 << 30
                w[:] = [a + b >> half for a, b in zip(w, counts, strict=True)]

    def make_words(self, words, width, blind):
        bits, mask, sign = 8 * width, (1 << 8 * width) - 1, 1 << 8 * width - 1
        for at in range(0, len(words), width):
            old = int.from_bytes(words[at : at + width], "little")
            kind = {1: 0, 2: old >> 10 & 31, 4: min(max((old >> 23 & 255) - 96, 0), 31)}[width]
            order = ~old & mask if old & sign else old | sign
            order = order + self.move(bits, 0 if blind or self.blind else kind) & mask
            new = order & sign - 1 if order & sign else ~order & mask
            words[at : at + width] = new.to_bytes(width, "little")

    def move(self, bits, kind):
        n = self.recent.bit_count()
        moves = self.average("moves", kind, (n > 0) + (n > 4) + (n > 16))
        self.recent = (self.recent << 1 | moves) & Q32 - 1
        if not moves:
            return 0
        down, length, size = self.average("sign", kind), 1, 1
        while length < bits and self.average("length", kind, length):
            length += 1
        for k in range(1, length):
            size = size << 1 | (self.average("top", length, size) if k < 5 else self.bit(Q32 // 2))
        return -size if down else size


def read(data, base_text, old):
    """Return the files of the result and its release.json; `old` maps names to bytes."""
    is_full, plan = not any(data[4:12]), iter(data[44:])
    base, n_packed = {} if is_full else json.loads(base_text)["files"], number(plan)
    at = len(data) - len(bytes(plan)) + n_packed
    plan = iter(unzstd(data[at - n_packed : at], b"" if is_full else base_text))
    flags, text = number(plan), bytes(next(plan) for _ in range(number(plan)))
    files, mean_gap, n_coded = json.loads(text)["files"], 1 << number(plan), number(plan)
    shapes = [shape(plan) for _ in range(number(plan))]
    coder, at = Coder(data[at : at + n_coded], mean_gap, flags & 1), at + n_coded
    have, made = {(entry["sha256"], entry["bytes"]): name for name, entry in base.items()}, {}
    for name in sorted(files, key=str.encode):
        n_regions, end, key = number(plan) - 1, 0, (files[name]["sha256"], files[name]["bytes"])
        made[name] = old[have[key]] if n_regions < 0 else b""
        for _ in range(n_regions):
            (has_skip, kind), length = divmod(number(plan), 8), number(plan)
            packed, skip = number(plan) if kind == BYTES else 0, number(plan) if has_skip else 0
            start = end + (~(skip >> 1) if skip & 1 else skip >> 1)
            extra = number(plan) if kind else 0
            reads = {BYTES: extra, TRITS: 0, NEW: 0}.get(kind, length)
            piece = bytearray(old.get(name, b"")[start : start + reads] or length)
            if kind in (FLIPS, TRITS):
                (coder.make_flips if kind == FLIPS else coder.make_trits)(
                    Plane(piece, shapes[extra])
                )
            elif kind in (WORDS, NEW):
                coder.make_words(piece, extra, kind == NEW)
            elif kind == BYTES:
                piece = unzstd(data[at : at + packed], bytes(piece) if reads else b"")
            at, end, made[name] = at + packed, start + reads or end, made[name] + piece
    hashes = {name: hashlib.sha256(made[name]).hexdigest() for name in files}
    lines = [f"{hashes[n]} {len(made[n])} {n}\n" for n in sorted(made, key=str.encode)]
    root = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert root == data[12:44].hex(), "the files are not what they should be"
    values = iter([*hashes.values(), root])  # 5.7: a hollow release.json gets its own
    pattern = b'(?<="sha256": ")[0-9a-f]{64}(?=")|(?<="root": ")[0-9a-f]{64}(?=")'
    return made, re.sub(pattern, lambda _: next(values).encode(), text) if flags & 2 else text


def shape(plan):
    """5.1: the nine numbers of a shape."""
    fields, size, segment = number(plan), 32 * number(plan), 1 << number(plan)
    some = [number(plan) if fields & 2 << k else 0 for k in range(6)]
    return [fields & 1, size, some[0] or size * (4 + fields % 2), *some[1:4], segment, *some[4:]]
