# cython: language_level=3, boundscheck=False, wraparound=False
"""Binding of cext/delta/flips.c: owns the coder, checks arguments, feeds it; computes nothing."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

cdef extern from "flips.h" nogil:
    const size_t FLIPS_INPUT_MARGIN
    enum:
        FLIPS_OK, FLIPS_MORE, FLIPS_ILLEGAL, FLIPS_EARLY, FLIPS_BUG
        FLIPS_WORDS_AT_ONCE
    ctypedef struct flips_shape:
        uint32_t base3, line_bytes, valid, tail_lines, tail_valid, period, segment
        uint32_t k_line, k_cross, blind
    ctypedef struct flips_coder:
        uint8_t *out
        size_t n_out
        const uint8_t *inp "in"
        size_t at, n_in
        int at_end
        uint32_t past_end
        uint64_t line, n_flips
    void flips_plain(int level)
    void flips_start(flips_coder *c, int writes)
    void flips_guess(flips_coder *c, uint64_t mean_gap)
    void flips_free(flips_coder *c)
    int flips_shape_ok(const flips_shape *s)
    int flips_begin(flips_coder *c, const flips_shape *s, uint64_t n_bytes)
    int flips_lines(flips_coder *c, const flips_shape *s, const uint8_t *old, uint8_t *new_,
                    uint64_t n_lines)
    int trits_lines(flips_coder *c, const flips_shape *s, uint8_t *plane, uint64_t n_lines)
    int words_code(flips_coder *c, uint32_t width, int blind, const uint8_t *old, uint8_t *new_,
                   uint64_t n_words)
    void flips_open(flips_coder *c)
    int flips_end(flips_coder *c)

WORDS_AT_ONCE = FLIPS_WORDS_AT_ONCE
_WHY = {
    FLIPS_ILLEGAL: "the old plane holds an illegal code",
    FLIPS_EARLY: "the coded stream ended early",
    FLIPS_BUG: "a shape breaks its bounds",
}


class CodeError(ValueError):
    """The stream, the old plane or a shape breaks a rule."""


cdef int _check(int status) except -1:
    if status != FLIPS_OK:
        raise CodeError(_WHY[status])
    return 0


cdef flips_shape _shape(tuple fields) except *:
    cdef flips_shape s
    (s.base3, s.line_bytes, s.valid, s.tail_lines, s.tail_valid, s.period, s.segment, s.k_line,
     s.k_cross, s.blind) = fields
    return s


def use_plain(int level):
    """Make later coders do without what only some CPUs have (1), and without the quick reader (2).

    For tests: the bits are the same.
    """
    flips_plain(level)


def shape_ok(tuple fields not None):
    """Say whether the ten numbers of a shape are within bounds."""
    cdef flips_shape s = _shape(fields)
    return bool(flips_shape_ok(&s))


cdef class _Coder:
    cdef flips_coder *_c
    cdef flips_shape _s

    def __cinit__(self):
        self._c = <flips_coder *>calloc(1, sizeof(flips_coder))
        if self._c == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self._c != NULL:
            flips_free(self._c)
            free(self._c)

    def guess(self, uint64_t mean_gap):
        """Say how many trits a flip is expected in, before the first plane of flips."""
        flips_guess(self._c, mean_gap)

    def begin(self, tuple shape not None, uint64_t n_bytes):
        """Begin a plane of `n_bytes`."""
        self._s = _shape(shape)
        _check(flips_begin(self._c, &self._s, n_bytes))

    cdef uint64_t _lines(self, size_t n_bytes) except? 0:
        if self._s.line_bytes == 0 or n_bytes % self._s.line_bytes:
            raise CodeError(f"{n_bytes} bytes are no whole lines")
        return n_bytes // self._s.line_bytes


cdef class Writer(_Coder):
    """Writes one stream; `take` what is finished as often as you like."""

    def __init__(self):
        flips_start(self._c, 1)

    @property
    def n_flips(self):
        """Flips of the plane at hand."""
        return self._c.n_flips

    def flips(self, const uint8_t[::1] old, const uint8_t[::1] new):
        """Code whole lines of a plane."""
        cdef uint64_t n = self._lines(len(old))
        cdef int status = FLIPS_OK
        if len(old) != len(new):
            raise CodeError("planes of different lengths")
        if n:
            with nogil:
                status = flips_lines(self._c, &self._s, &old[0], <uint8_t *>&new[0], n)
        _check(status)

    def trits(self, const uint8_t[::1] plane):
        """Code whole lines of a plane that comes from nothing."""
        cdef uint64_t n = self._lines(len(plane))
        cdef int status = FLIPS_OK
        if n:
            with nogil:
                status = trits_lines(self._c, &self._s, <uint8_t *>&plane[0], n)
        _check(status)

    def words(self, const uint8_t[::1] old, const uint8_t[::1] new, uint32_t width, bint blind):
        """Code words of `width` bytes."""
        cdef size_t n = len(new) // width, at = 0, some
        if len(old) != len(new) or len(new) % width:
            raise CodeError("words of different lengths")
        while at < n:
            some = min(n - at, <size_t>FLIPS_WORDS_AT_ONCE)
            _check(words_code(self._c, width, blind, &old[at * width],
                              <uint8_t *>&new[at * width], some))
            at += some

    def take(self):
        """Return what is finished since the last call."""
        out = (<char *>self._c.out)[:self._c.n_out] if self._c.n_out else b""
        self._c.n_out = 0
        return out

    def end(self):
        """End the stream; `take` once more."""
        _check(flips_end(self._c))


cdef class Reader(_Coder):
    """Reads one stream from an iterator of pieces."""

    cdef object _pieces
    cdef bytes _held  # keeps what `inp` points to alive

    def __init__(self, pieces):
        flips_start(self._c, 0)
        self._pieces = iter(pieces)
        self._held = b""

    cdef int _feed(self) except -1:
        """Add pieces until the margin is there, or the stream is at its end."""
        cdef list parts = [self._held[self._c.at:]]
        cdef size_t n = len(parts[0])
        while n < FLIPS_INPUT_MARGIN and not self._c.at_end:
            piece = next(self._pieces, None)
            if piece is None:
                self._c.at_end = 1
            else:
                parts.append(piece)
                n += len(piece)
        self._held = b"".join(parts)
        self._c.inp = self._held
        self._c.at = 0
        self._c.n_in = len(self._held)
        return 0

    def flips(self, uint8_t[::1] lines):
        """Turn whole old lines into new ones, in place."""
        self._run(lines, 0)

    def trits(self, uint8_t[::1] lines):
        """Fill whole lines."""
        self._run(lines, 1)

    cdef int _run(self, uint8_t[::1] lines, int whole) except -1:
        cdef uint64_t n = self._lines(len(lines)), first = self._c.line, done
        cdef int status = FLIPS_MORE
        while n:
            done = self._c.line - first
            if done >= n:
                break
            with nogil:
                if whole:
                    status = trits_lines(self._c, &self._s, &lines[done * self._s.line_bytes],
                                         n - done)
                else:
                    status = flips_lines(self._c, &self._s, NULL,
                                         &lines[done * self._s.line_bytes], n - done)
            if status == FLIPS_MORE:
                self._feed()
            else:
                _check(status)
        return 0

    def words(self, uint8_t[::1] words, uint32_t width, bint blind):
        """Turn old words into new ones, in place."""
        cdef size_t n, at = 0, some
        cdef int status
        if width == 0 or len(words) % width:
            raise CodeError("no whole words")
        n = len(words) // width
        while at < n:
            some = min(n - at, <size_t>FLIPS_WORDS_AT_ONCE)
            status = words_code(self._c, width, blind, NULL, &words[at * width], some)
            if status == FLIPS_MORE:
                self._feed()
            else:
                _check(status)
                at += some

    def end(self):
        """Check that nothing is left of the stream."""
        if not self._c.at_end or self._c.at < self._c.n_in:
            self._feed()
        flips_open(self._c)
        if self._c.at < self._c.n_in or next(self._pieces, None) is not None:
            raise CodeError("the coded stream is longer than the planes")
