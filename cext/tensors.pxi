# The tensors of a model directory, checked one by one.

_SCAN = "lm_head.scan."

_ELEMENT_BYTES = {"U8": 1, "F16": 2, "F32": 4}

_ORIENTATIONS = {TERN_ROWS: "rows", TERN_LINES: "lines", TERN_CHANNELS: "channels",
                 TERN_TILES: "tiles"}

_SHARED_BY_INPUTS = ("o_proj", "down_proj")  # only these may be channels: nothing else is as wide

# docs/formats.md, sections 3 and 3b.
_PACKINGS = {1: TERN_2BIT, 2: TERN_BASE3, 3: TERN_BINARY, 4: TERN_INT8, 5: TERN_F16}


cdef class _Buffer:
    """A hold on the bytes of one tensor."""

    cdef Py_buffer view
    cdef bint is_held

    def __cinit__(self, data):
        PyObject_GetBuffer(data, &self.view, PyBUF_SIMPLE)
        self.is_held = True

    def __dealloc__(self):
        if self.is_held:
            PyBuffer_Release(&self.view)


cdef class _Tensors:
    """The tensors of a model directory, handed out once each, with their checks."""

    cdef object given
    cdef set used
    cdef list held
    cdef int layout
    cdef readonly Py_ssize_t ternary_bytes, other_bytes, scan_bytes, n_parameters

    def __cinit__(self, given, layout):
        if type(layout) is not int or layout not in _PACKINGS:
            raise ValueError(f"layout: expected 1 to {len(_PACKINGS)}, got {layout!r}")
        self.given = given
        self.layout = layout
        self.used = set()
        self.held = []

    cdef bint has(self, name):
        return name in self.given

    cdef const void *take(self, name, dtype, shape) except NULL:
        """Return the bytes of a tensor that must have this dtype and one of these shapes."""
        try:
            got_dtype, got_shape, data = self.given[name]
        except KeyError:
            raise ValueError(f"tensor {name}: missing") from None
        got_shape = tuple(got_shape)
        if got_dtype != dtype:
            raise ValueError(f"tensor {name}: expected dtype {dtype}, got {got_dtype}")
        if got_shape != shape:
            raise ValueError(f"tensor {name}: expected shape {shape}, got {got_shape}")
        expected = _ELEMENT_BYTES[dtype]
        for n in shape:
            expected *= n
        cdef _Buffer buffer = _Buffer(data)
        if buffer.view.len != expected:
            raise ValueError(f"tensor {name}: expected {expected} bytes, got {buffer.view.len}")
        if <uintptr_t>buffer.view.buf % <uintptr_t>_ELEMENT_BYTES[dtype]:
            raise ValueError(f"tensor {name}: expected its bytes aligned to "
                             f"{_ELEMENT_BYTES[dtype]}, got an unaligned address")
        self.held.append(buffer)
        self.used.add(name)
        if name.startswith(_SCAN):  # the head once more: no parameters of their own
            self.scan_bytes += expected
        elif dtype == "U8":
            self.ternary_bytes += expected
        else:
            self.other_bytes += expected
            self.n_parameters += expected // _ELEMENT_BYTES[dtype]
        return buffer.view.buf

    cdef const float *norm(self, name, n) except NULL:
        return <const float *>self.take(name, "F32", (n,))

    cdef tern_matrix matrix(self, prefix, n_out, n_in) except *:
        """Return a packed plane of an orientation that its layout has, and its scale."""
        cdef tern_matrix m
        weight = f"{prefix}.weight"
        shapes = self.shapes(prefix, n_out, n_in)
        shape = tuple(self.given[weight][1]) if weight in self.given else None
        if shape is not None and shape not in shapes.values():
            allowed = " or ".join(f"{shape} ({_ORIENTATIONS[o]})" for o, shape in shapes.items())
            raise ValueError(f"tensor {weight}: expected shape {allowed}, got {shape}")
        m.orientation = next((o for o, s in shapes.items() if s == shape), TERN_ROWS)
        m.packing = _PACKINGS[self.layout]
        dtype = "F16" if m.packing == TERN_F16 else "U8"
        shape = shape or next(iter(shapes.values()))
        m.plane = <const uint8_t *>self.take(weight, dtype, shape)
        if m.packing == TERN_F16:  # counted with the weights that it is compared with
            self.ternary_bytes += 2 * n_out * n_in
            self.other_bytes -= 2 * n_out * n_in
            self.n_parameters -= n_out * n_in
        m.n_out = n_out
        m.n_in = n_in
        self.n_parameters += n_out * n_in
        self.read_scales(f"{prefix}.weight_scale", &m)
        return m

    cdef read_scales(self, name, tern_matrix *m):
        """Take ``weight_scale``: one of the matrix, or one of each group of inputs and output."""
        cdef size_t i, n
        shape = tuple(self.given[name][1]) if name in self.given else (1,)
        m.scale, m.scales, m.n_groups = 1, NULL, 1
        if len(shape) == 2:
            m.n_groups = self.groups_of(name, shape, m)
            n = m.n_groups * m.n_out
        else:
            shape, n = (1,), 1
        scales = <const float *>self.take(name, "F32", shape)
        self.n_parameters -= n  # a scale is not a parameter
        for i in range(n):
            if not (isfinite(scales[i]) and (scales[i] > 0 or n > 1 and scales[i] == 0)):
                least = "from" if n > 1 else "above"  # a dead row or group has scale 0
                raise ValueError(f"tensor {name}: expected a finite number {least} 0, "
                                 f"got {scales[i]}")
        if len(shape) == 2:
            m.scales = scales
        else:
            m.scale = scales[0]

    cdef size_t groups_of(self, name, shape, const tern_matrix *m) except 0:
        """Return G of a ``weight_scale`` (G, out)."""
        groups, n_out, n_in = shape[0], m.n_out, m.n_in
        if self.layout not in (1, 2):
            raise ValueError(f"tensor {name}: expected shape (1,) in layout {self.layout}, "
                             f"got {shape}")
        if shape[1] != n_out or groups < 1 or n_in % groups:
            raise ValueError(f"tensor {name}: expected shape (1,) or (G, {n_out}) with G a divisor "
                             f"of {n_in}, got {shape}")
        if groups > 1 and m.orientation != TERN_LINES:
            raise ValueError(f"tensor {name}: expected a plane of lines (layout 1) for {groups} "
                             f"groups, got {_ORIENTATIONS[m.orientation]}")
        if groups > 1 and n_in // groups % TERN_GROUP_STEP:
            raise ValueError(f"tensor {name}: expected groups of a multiple of {TERN_GROUP_STEP} "
                             f"inputs, got {groups} groups of {n_in // groups}")
        return groups

    cdef dict shapes(self, prefix, n_out, n_in):
        """Return the shape of a plane in each orientation it may have."""
        if self.layout == 1:
            return {TERN_ROWS: (n_out, -(-n_in // TERN_BLOCK) * TERN_BLOCK_BYTES),
                    TERN_LINES: (-(-n_out // TERN_PANEL), n_in, TERN_LINE_BYTES)}
        if self.layout == 5:
            return {TERN_ROWS: (n_out, n_in)}
        quads = -(-n_in // TERN_TILE_CHANNELS)
        if self.layout in (3, 4):
            outputs = TERN_BINARY_OUTPUTS if self.layout == 3 else TERN_INT8_OUTPUTS
            return {TERN_TILES: (-(-n_out // outputs), quads, 16, TERN_TILE_CHANNELS)}
        shapes = {TERN_ROWS: (n_out, -(-n_in // TERN_BLOCK3) * TERN_BLOCK3_BYTES),
                  TERN_TILES: (-(-n_out // TERN_TILE_OUTPUTS), quads, 16,
                               TERN_TILE_CHANNELS)}
        if prefix.endswith(_SHARED_BY_INPUTS):
            shapes[TERN_CHANNELS] = (n_in, -(-n_out // TERN_BLOCK3), TERN_BLOCK3_BYTES)
        return shapes

    cdef tern_head_scan head_scan(self, vocab, hidden) except *:
        """Return the scan planes of the head; ``codes`` is NULL when there are none."""
        cdef tern_head_scan s
        memset(&s, 0, sizeof(s))
        if not any(name.startswith(_SCAN) for name in self.given):
            return s
        panels, groups = -(-vocab // TERN_SCAN_ROWS), -(-hidden // TERN_SCAN_GROUP)
        lines = groups * TERN_SCAN_LINES
        refine = -(-hidden // TERN_REFINE_BLOCK) * TERN_LINE_BYTES
        s.codes = <const uint8_t *>self.take(
            _SCAN + "codes", "U8", (panels, lines, TERN_LINE_BYTES))
        s.scales = <const uint8_t *>self.take(
            _SCAN + "scales", "U8", (panels, groups, TERN_SCAN_ROWS))
        s.levels = <const uint8_t *>self.take(_SCAN + "levels", "U8", (TERN_SCAN_LEVELS,))
        s.refine = <const uint8_t *>self.take(_SCAN + "refine", "U8", (vocab, refine))
        rows = <const float *>self.take(_SCAN + "rows", "F32", (_SCAN_ROWS, vocab))
        check_scan(rows, vocab, s.levels)
        s.scale, s.refine_scale = rows, rows + <size_t>vocab
        s.norm, s.rest = rows + 2 * <size_t>vocab, rows + 3 * <size_t>vocab
        s.refined_rest = rows + 4 * <size_t>vocab
        return s

    cdef refuse_rest(self):
        unknown = sorted(set(self.given) - self.used)
        if unknown:
            raise ValueError(f"tensor {unknown[0]}: unknown ({len(unknown)} in all)")
        self.given = None  # each buffer is held on its own


# The proof in head.c needs numbers that are 0 or far from both ends of float32.
cdef float _SCAN_LEAST = 2.0 ** -60
cdef float _SCAN_MOST = 2.0 ** 60

_SCAN_ROWS = 5  # scale, refine scale, norm, rest, refined rest


cdef check_scan(const float *rows, size_t vocab, const uint8_t *levels):
    cdef size_t i, n = _SCAN_ROWS * vocab
    for i in range(n):
        if not (rows[i] == 0 or _SCAN_LEAST <= rows[i] <= _SCAN_MOST):
            raise ValueError(f"tensor {_SCAN}rows: expected 0 or 2^-60 to 2^60, "
                             f"got {rows[i]} in element {i}")
    for i in range(<size_t>TERN_SCAN_LEVELS):
        if levels[i] > 2 * TERN_SCAN_ZERO:
            raise ValueError(f"tensor {_SCAN}levels: expected 0 to {2 * TERN_SCAN_ZERO}, "
                             f"got {levels[i]} in element {i}")
    for i in range(vocab):
        if rows[2 * vocab + i] < rows[3 * vocab + i] / 2:
            raise ValueError(f"tensor {_SCAN}rows: expected a rest of at most twice the norm, "
                             f"got {rows[3 * vocab + i]} for {rows[2 * vocab + i]} in row {i}")
