# cython: language_level=3, freethreading_compatible=False
"""The compiled core: kernels, the forward pass and the sampler.

The binding owns, checks and converts; it computes nothing.  Every shape, type and length is checked
here against the model's config, because nothing behind this border checks again.  Buffers are not
copied: a Model keeps a hold on each of them (a read-only mmap stays mapped) as long as it lives.
"""

import operator
import os

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.math cimport isfinite
from libc.stdint cimport int8_t, int32_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from engine cimport *


# ---- variants ----

def variants():
    """Name every variant that is compiled in, best first."""
    names = []
    cdef const tern_kernels *const *v = tern_variants()
    while v[0] != NULL:
        names.append(v[0].name.decode())
        v += 1
    return names


def supported_variants():
    """Name every variant that this CPU can run, best first."""
    names = []
    cdef uint32_t cpu = tern_cpu_features()
    cdef const tern_kernels *const *v = tern_variants()
    while v[0] != NULL:
        if (v[0].needs & cpu) == v[0].needs:
            names.append(v[0].name.decode())
        v += 1
    return names


cdef const tern_kernels *select_kernels(variant) except NULL:
    """Return the table of ``variant``, else of $EDGEAGENT_KERNEL, else the best one."""
    forced = variant or os.environ.get("EDGEAGENT_KERNEL") or None
    encoded = None if forced is None else forced.encode()
    cdef const char *name = NULL
    if encoded is not None:
        name = encoded
    cdef const tern_kernels *table = tern_select(tern_cpu_features(), name)
    if table == NULL:
        raise ValueError(
            f"kernel {forced!r} is unknown or not supported by this CPU; "
            f"have {', '.join(supported_variants())}"
        )
    return table


cdef class _Activations:
    """A tern_act with memory of its own, for tests."""

    cdef tern_act act
    cdef int8_t *x
    cdef int8_t *live_x
    cdef uint32_t *live

    def __cinit__(self, const int8_t[::1] x, const uint32_t[::1] live=None):
        cdef size_t n = x.shape[0], i, n_live = 0 if live is None else live.shape[0]
        if not 0 < n <= TERN_IN_MAX:
            raise ValueError(f"x: expected 1 to {TERN_IN_MAX} inputs, got {n}")
        self.x = <int8_t *>calloc(n + TERN_X_PAD, 1)
        self.live_x = <int8_t *>calloc(n_live + 1, 1)
        self.live = <uint32_t *>calloc(n_live + 1, sizeof(uint32_t))
        if self.x == NULL or self.live_x == NULL or self.live == NULL:
            raise MemoryError
        for i in range(n):
            if x[i] == -128:
                raise ValueError(f"x[{i}]: expected -{TERN_X_MAX} to {TERN_X_MAX}, got -128")
            self.x[i] = x[i]
        for i in range(n_live):
            if live[i] >= n or (i and live[i] <= live[i - 1]):
                raise ValueError(f"live[{i}]: expected an ascending list of indices below {n}")
            self.live[i] = live[i]
            self.live_x[i] = x[live[i]]
        self.act.x = self.x
        self.act.n = n
        if live is not None:
            self.act.live = self.live
            self.act.live_x = self.live_x
            self.act.n_live = n_live
        for i in range(n if live is None else n_live):
            self.act.sum += x[i] if live is None else self.live_x[i]

    def __dealloc__(self):
        free(self.x)
        free(self.live_x)
        free(self.live)


cdef class Kernels:
    """The kernel table of one variant, chosen once.  Its methods exist for tests and benchmarks."""

    cdef const tern_kernels *table

    def __cinit__(self, variant=None):
        self.table = select_kernels(variant)

    @property
    def name(self):
        return self.table.name.decode()

    def gemv_rows(self, const uint8_t[:, ::1] plane, const int8_t[::1] x, int32_t[::1] y,
                  const uint32_t[::1] rows=None, *, int layout=1, int repeat=1):
        """Write ``y[r] = sum_k W[r, k] x[k]`` of a plane of rows, for all or some rows."""
        cdef _Activations a = _Activations(x)
        cdef tern_packing packing = packing_of(layout)
        cdef size_t row_bytes = tern_row_bytes(packing, a.act.n), i
        cdef size_t end = plane.shape[0] if rows is None else rows.shape[0]
        cdef const uint32_t *list = NULL
        if <size_t>plane.shape[1] != row_bytes or plane.shape[0] != y.shape[0]:
            raise ValueError(
                f"gemv_rows: expected plane ({y.shape[0]}, {row_bytes}), "
                f"got ({plane.shape[0]}, {plane.shape[1]})"
            )
        if rows is not None:
            for i in range(end):
                if rows[i] >= <size_t>plane.shape[0]:
                    raise ValueError(f"rows[{i}]: expected below {plane.shape[0]}, got {rows[i]}")
            list = &rows[0] if end else NULL
        if end == 0:
            return
        with nogil:
            for _ in range(repeat):
                self.table.gemv_rows[<int>packing](&plane[0, 0], &a.act, &y[0], list, 0, end)

    def gemv_cols(self, const uint8_t[:, :, ::1] plane, const int8_t[::1] x, int32_t[::1] y,
                  const uint32_t[::1] live=None, units=None, *, int repeat=1):
        """Write ``y[o] = sum_k W[o, k] x[k]`` of an input-major plane, for all or some units."""
        cdef _Activations a = _Activations(x, live)
        cdef size_t begin = 0, end = 2 * plane.shape[0]
        if <size_t>plane.shape[1] != a.act.n or plane.shape[2] != TERN_LINE_BYTES:
            raise ValueError(
                f"gemv_cols: expected plane (panels, {a.act.n}, {TERN_LINE_BYTES}), "
                f"got ({plane.shape[0]}, {plane.shape[1]}, {plane.shape[2]})"
            )
        if y.shape[0] != plane.shape[0] * TERN_PANEL:
            raise ValueError(f"y: expected {plane.shape[0] * TERN_PANEL} outputs, got {y.shape[0]}")
        if units is not None:
            if not 0 <= units[0] <= units[1] <= end:
                raise ValueError(f"units: expected a range inside (0, {end}), got {units}")
            begin, end = units
        if begin == end:
            return
        with nogil:
            for _ in range(repeat):
                self.table.gemv_cols(&plane[0, 0, 0], &a.act, &y[0], begin, end)

    def gemv_tiles(self, const uint8_t[:, :, :, ::1] plane, const int8_t[::1] x, int32_t[::1] y,
                   *, int repeat=1):
        """Write ``y[o] = sum_k W[o, k] x[k]`` of a plane of tiles."""
        cdef _Activations a = _Activations(x)
        cdef size_t panels = plane.shape[0], tiles = (a.act.n + 3) // TERN_TILE_CHANNELS
        if (<size_t>plane.shape[1], plane.shape[2], plane.shape[3]) != (tiles, 16, 4):
            raise ValueError(f"gemv_tiles: expected plane (panels, {tiles}, 16, 4), got "
                             f"({', '.join(str(plane.shape[i]) for i in range(4))})")
        if <size_t>y.shape[0] != panels * TERN_TILE_OUTPUTS or not panels:
            raise ValueError(f"y: expected {panels * TERN_TILE_OUTPUTS} outputs, more than 0, "
                             f"got {y.shape[0]}")
        with nogil:
            for _ in range(repeat):
                self.table.gemv_tiles(&plane[0, 0, 0, 0], &a.act, &y[0], 0, panels)

    def gemv_channels(self, const uint8_t[:, :, ::1] plane, const int8_t[::1] x, int32_t[::1] y,
                      const uint32_t[::1] live=None, *, int copies=1):
        """Write ``y[o] = sum_k W[o, k] x[k]`` of a plane of channels, all or the live ones."""
        cdef _Activations a = _Activations(x, live)
        cdef size_t blocks = plane.shape[1], end = a.act.n_live if live is not None else a.act.n
        cdef size_t i, bytes_of_copy = a.act.n * blocks * TERN_BLOCK3_BYTES
        if (copies < 1 or <size_t>plane.shape[0] != a.act.n * copies
                or plane.shape[2] != TERN_BLOCK3_BYTES or not blocks):
            raise ValueError(
                f"gemv_channels: expected plane ({a.act.n * copies}, blocks, {TERN_BLOCK3_BYTES}), "
                f"got ({plane.shape[0]}, {plane.shape[1]}, {plane.shape[2]})"
            )
        if <size_t>y.shape[0] != blocks * TERN_BLOCK3:
            raise ValueError(f"y: expected {blocks * TERN_BLOCK3} outputs, got {y.shape[0]}")
        with nogil:
            for i in range(<size_t>copies):
                self.table.gemv_channels(&plane[0, 0, 0] + i * bytes_of_copy, &a.act,
                                         blocks * TERN_BLOCK3, &y[0], 0, end)

    def dot_f16(self, const uint16_t[:, ::1] rows, const float[::1] x, float[::1] y, *,
                int repeat=1):
        """Write ``y[r] = rows[r] . x``; rows hold float16 bits."""
        check_dot(rows.shape[0], rows.shape[1], x.shape[0], y.shape[0])
        with nogil:
            for _ in range(repeat):
                self.table.dot_f16(&rows[0, 0], rows.shape[0], rows.shape[1], &x[0], &y[0])

    def dot_f32(self, const float[:, ::1] rows, const float[::1] x, float[::1] y, *,
                int repeat=1):
        """Write ``y[r] = rows[r] . x``."""
        check_dot(rows.shape[0], rows.shape[1], x.shape[0], y.shape[0])
        with nogil:
            for _ in range(repeat):
                self.table.dot_f32(&rows[0, 0], rows.shape[0], rows.shape[1], &x[0], &y[0])

    def mix_f32(self, const float[:, ::1] rows, const float[::1] w, float[::1] y, *,
                int repeat=1):
        """Write ``y = sum_r w[r] rows[r]``."""
        check_dot(rows.shape[0], rows.shape[1], y.shape[0], w.shape[0])
        with nogil:
            for _ in range(repeat):
                self.table.mix_f32(&rows[0, 0], rows.shape[0], rows.shape[1], &w[0], &y[0])


cdef check_dot(Py_ssize_t n_rows, Py_ssize_t n, Py_ssize_t x, Py_ssize_t y):
    if not n_rows or not n or x != n or y != n_rows:
        raise ValueError(f"expected x ({n},) and y ({n_rows},) for rows ({n_rows}, {n}), "
                         f"not empty; got x ({x},) and y ({y},)")


cdef tern_packing packing_of(int layout) except *:
    if layout not in (1, 2):
        raise ValueError(f"layout: expected 1 (2 bit) or 2 (base 3), got {layout}")
    return TERN_BASE3 if layout == 2 else TERN_2BIT


def check_trits(buffer, int layout=1):
    """Raise ValueError when a packed plane of this layout holds an illegal byte."""
    cdef _Buffer held = _Buffer(buffer)
    cdef tern_packing packing = packing_of(layout)
    cdef size_t at, n = held.view.len
    with nogil:
        at = tern_find_bad_code(packing, <const uint8_t *>held.view.buf, n)
    if at != n:
        want = "bytes below 243" if layout == 2 else "codes 0, 1 and 2"
        got = (<const uint8_t *>held.view.buf)[at] if layout == 2 else "code 3"
        raise ValueError(f"packed trits: expected {want}, got {got} in byte {at}")


def read_bandwidth(data, int threads=1):
    """Read all of ``data`` once; return bytes a second and the xor of its 64-bit words."""
    check_threads(threads)
    cdef _Buffer held = _Buffer(data)
    cdef uint64_t fold = 0
    cdef double seconds
    if held.view.len == 0:
        raise ValueError("data: expected at least one byte, got none")
    with nogil:
        seconds = tern_read_seconds(<const uint8_t *>held.view.buf, held.view.len, threads, &fold)
    if seconds <= 0.0:
        raise MemoryError(f"no memory or threads for {threads} threads")
    return held.view.len / seconds, fold


# ---- the model ----

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


_SCAN = "lm_head.scan."

_ELEMENT_BYTES = {"U8": 1, "F16": 2, "F32": 4}

_DIMENSION_MAX = TERN_IN_MAX  # of everything that enters a matrix: int32 sums must not overflow

_ARCHITECTURES = ["BitNetForCausalLM", "BitnetForCausalLM", "LlamaForCausalLM"]

_ORIENTATIONS = {TERN_ROWS: "rows", TERN_LINES: "lines", TERN_CHANNELS: "channels",
                 TERN_TILES: "tiles"}

_SHARED_BY_INPUTS = ("o_proj", "down_proj")  # only these may be channels: nothing else is as wide

_ACTIVATIONS = {"relu2": TERN_RELU2, "silu": TERN_SILU}


def _integer(config, key, largest, default=None):
    """Return config[key], checked to be an integer from 1 to ``largest``."""
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
        raise ValueError(f"config {key}: expected an integer from 1 to {largest}, got {value!r}")
    return value


def _number(config, key, low, high):
    """Return config[key], checked to be a number in [low, high]."""
    value = config.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"config {key}: expected a number from {low:g} to {high:g}, got {value!r}")
    return float(value)


def _choice(config, key, allowed):
    value = config.get(key)
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"config {key}: expected one of {', '.join(allowed)}, got {value!r}")
    return value


# docs/formats.md, sections 3 and 3b.
_PACKINGS = {1: TERN_2BIT, 2: TERN_BASE3, 3: TERN_BINARY, 4: TERN_INT8, 5: TERN_F16}


cdef class _Tensors:
    """The tensors of a model directory, handed out once each, with their checks."""

    cdef object given
    cdef set used
    cdef list held
    cdef int layout
    cdef readonly Py_ssize_t ternary_bytes, other_bytes, scan_bytes, n_parameters

    def __cinit__(self, given, int layout):
        if layout not in _PACKINGS:
            raise ValueError(f"layout: expected 1 to {len(_PACKINGS)}, got {layout}")
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
        m.scale = (<const float *>self.take(f"{prefix}.weight_scale", "F32", (1,)))[0]
        if not (isfinite(m.scale) and m.scale > 0):
            raise ValueError(f"tensor {prefix}.weight_scale: expected a finite number above 0, "
                             f"got {m.scale}")
        self.n_parameters += n_out * n_in - 1  # the scale is not a parameter
        return m

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
        lines = groups * (TERN_SCAN_GROUP // TERN_SCAN_LINE_INPUTS)
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


cdef class Model:
    """A model's weights, checked once and used where they lie."""

    cdef tern_model model
    cdef _Tensors tensors
    cdef readonly Py_ssize_t context

    def __cinit__(self, config, tensors, kernel=None):
        self.model.kernels = select_kernels(kernel)
        self.read_config(config)
        quantization = config.get("quantization_config") or {}
        self.tensors = _Tensors(tensors, quantization.get("layout", 1))
        self.model.layers = <tern_layer *>calloc(self.model.config.n_layers, sizeof(tern_layer))
        if self.model.layers == NULL:
            raise MemoryError
        self.read_ends(config.get("tie_word_embeddings", False))
        attn_sub_norm = self.tensors.has("model.layers.0.self_attn.attn_sub_norm.weight")
        ffn_sub_norm = self.tensors.has("model.layers.0.mlp.ffn_sub_norm.weight")
        for i in range(self.model.config.n_layers):
            self.read_layer(i, attn_sub_norm, ffn_sub_norm)
        self.tensors.refuse_rest()
        self.model.ternary_bytes = self.tensors.ternary_bytes

    def __dealloc__(self):
        free(self.model.layers)

    cdef read_config(self, config):
        cdef tern_config *c = &self.model.config
        architectures = config.get("architectures")
        if not isinstance(architectures, list) or architectures[:1] not in (
            [name] for name in _ARCHITECTURES
        ):
            raise ValueError(f"config architectures: expected one of {', '.join(_ARCHITECTURES)}, "
                             f"got {architectures!r}")
        if config.get("rope_scaling") is not None:
            raise ValueError(f"config rope_scaling: expected null, got {config['rope_scaling']!r}")
        c.vocab = _integer(config, "vocab_size", 1 << 24)
        c.hidden = _integer(config, "hidden_size", _DIMENSION_MAX)
        c.ffn = _integer(config, "intermediate_size", _DIMENSION_MAX)
        c.n_layers = _integer(config, "num_hidden_layers", 1024)
        c.n_heads = _integer(config, "num_attention_heads", 1024)
        c.n_kv_heads = _integer(config, "num_key_value_heads", c.n_heads, c.n_heads)
        c.head_dim = _integer(config, "head_dim", 1024, c.hidden // c.n_heads)
        if c.n_heads * c.head_dim > _DIMENSION_MAX:
            raise ValueError(f"config: expected at most {_DIMENSION_MAX} attention outputs, got "
                             f"{c.n_heads} heads of {c.head_dim}")
        c.eps = _number(config, "rms_norm_eps", 1e-12, 1.0)
        c.rope_theta = _number(config, "rope_theta", 1.0, 1e12)
        c.act = _ACTIVATIONS[_choice(config, "hidden_act", _ACTIVATIONS)]
        self.context = _integer(config, "max_position_embeddings", TERN_CONTEXT_MAX)
        if c.n_heads % c.n_kv_heads:
            raise ValueError(f"config num_key_value_heads: expected a divisor of {c.n_heads} "
                             f"heads, got {c.n_kv_heads}")
        if c.head_dim % 2:
            raise ValueError(f"config head_dim: expected an even number, got {c.head_dim}")

    cdef read_ends(self, is_tied):
        cdef tern_config *c = &self.model.config
        shape = (c.vocab, c.hidden)
        self.model.embed = <const uint16_t *>self.tensors.take(
            "model.embed_tokens.weight", "F16", shape)
        self.model.final_norm = self.tensors.norm("model.norm.weight", c.hidden)
        if is_tied:
            self.model.head = self.model.embed
        else:
            self.model.head = <const uint16_t *>self.tensors.take("lm_head.weight", "F16", shape)
        self.model.scan = self.tensors.head_scan(c.vocab, c.hidden)

    cdef read_layer(self, size_t i, attn_sub_norm, ffn_sub_norm):
        cdef tern_config *c = &self.model.config
        cdef tern_layer *w = &self.model.layers[i]
        cdef _Tensors t = self.tensors
        at = f"model.layers.{i}"
        attention, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
        w.input_norm = t.norm(f"{at}.input_layernorm.weight", c.hidden)
        w.post_norm = t.norm(f"{at}.post_attention_layernorm.weight", c.hidden)
        if attn_sub_norm:
            w.attn_sub_norm = t.norm(f"{at}.self_attn.attn_sub_norm.weight", attention)
        if ffn_sub_norm:
            w.ffn_sub_norm = t.norm(f"{at}.mlp.ffn_sub_norm.weight", c.ffn)
        w.q = t.matrix(f"{at}.self_attn.q_proj", attention, c.hidden)
        w.k = t.matrix(f"{at}.self_attn.k_proj", kv, c.hidden)
        w.v = t.matrix(f"{at}.self_attn.v_proj", kv, c.hidden)
        w.o = t.matrix(f"{at}.self_attn.o_proj", c.hidden, attention)
        w.gate = t.matrix(f"{at}.mlp.gate_proj", c.ffn, c.hidden)
        w.up = t.matrix(f"{at}.mlp.up_proj", c.ffn, c.hidden)
        w.down = t.matrix(f"{at}.mlp.down_proj", c.hidden, c.ffn)

    @property
    def kernel(self):
        return self.model.kernels.name.decode()

    @property
    def vocab_size(self):
        return self.model.config.vocab

    @property
    def n_layers(self):
        return self.model.config.n_layers

    @property
    def hidden_size(self):
        return self.model.config.hidden

    @property
    def n_parameters(self):
        return self.tensors.n_parameters

    @property
    def ternary_bytes(self):
        return self.tensors.ternary_bytes

    @property
    def other_bytes(self):
        return self.tensors.other_bytes

    @property
    def scan_bytes(self):
        return self.tensors.scan_bytes


# ---- one conversation ----

cdef class _Tokens:
    """A checked list of token ids in C memory."""

    cdef uint32_t *ids
    cdef size_t n

    def __cinit__(self, tokens, size_t vocab):
        self.n = len(tokens)
        self.ids = <uint32_t *>malloc((self.n + 1) * sizeof(uint32_t))
        if self.ids == NULL:
            raise MemoryError
        for i, token in enumerate(tokens):
            value = operator.index(token)
            if not 0 <= value < vocab:
                raise ValueError(f"token {i}: expected an id from 0 to {vocab - 1}, got {value}")
            self.ids[i] = value

    def __dealloc__(self):
        free(self.ids)


cdef class Session:
    """A KV cache, its threads and the last hidden state.  One thread at a time may use it."""

    cdef Model model
    cdef tern_state *state
    cdef bytearray _logits
    cdef bint has_hidden, has_logits, is_busy
    cdef readonly Py_ssize_t context
    cdef size_t _threads
    cdef bint _zero_skip
    cdef readonly int kv_bits, kv_group_size

    def __cinit__(self, Model model not None, Py_ssize_t context, int threads=1,
                  bint zero_skip=True, int kv_bits=16, int kv_group_size=64):
        if not 1 <= context <= model.context:
            raise ValueError(f"context: expected 1 to {model.context} positions, got {context}")
        check_threads(threads)
        check_kv(kv_bits, kv_group_size)
        self.model = model
        self.context = context
        self.kv_bits = kv_bits
        self.kv_group_size = kv_group_size
        self._threads = threads
        self._zero_skip = zero_skip
        self._logits = bytearray(4 * model.model.config.vocab)
        with nogil:
            self.state = tern_state_new(&model.model, context, threads, zero_skip, kv_bits,
                                        kv_group_size)
        if self.state == NULL:
            raise MemoryError(f"no memory or threads for a context of {context} positions")

    def __dealloc__(self):
        tern_state_free(self.state)

    cdef check_idle(self):
        if self.is_busy:
            raise RuntimeError("this session is in use by another thread")

    cdef check_ready(self):
        self.check_idle()
        if not self.has_hidden:
            raise RuntimeError("no logits: eval tokens first")

    cdef const float *last_logits(self) except NULL:
        """Compute all logits, unless that was done."""
        self.check_ready()
        cdef float *logits = <float *><char *>self._logits
        if not self.has_logits:
            self.is_busy = True
            with nogil:
                tern_head_logits(self.state, logits)
            self.is_busy = False
            self.has_logits = True
        return logits

    def eval(self, tokens):
        """Append ``tokens`` to the KV cache; the last one's logits can then be asked for.

        Raises:
            ValueError: no tokens, or an id outside the vocabulary; nothing was changed.
            OverflowError: they do not fit the free part of the KV cache; nothing was changed.
        """
        cdef _Tokens ids = _Tokens(tokens, self.model.model.config.vocab)
        self.check_idle()
        cdef size_t free_positions = self.context - tern_state_n_past(self.state)
        if ids.n == 0:
            raise ValueError("tokens: expected at least one, got none")
        if ids.n > free_positions:
            raise OverflowError(f"tokens: expected at most {free_positions} (context "
                                f"{self.context}, used {self.n_past}), got {ids.n}")
        self.is_busy = True
        with nogil:
            tern_forward(self.state, ids.ids, ids.n, NULL)
        self.has_hidden = True
        self.has_logits = False
        self.is_busy = False

    def truncate(self, Py_ssize_t n_past):
        """Forget every position from ``n_past`` on, and the logits."""
        self.check_idle()
        if not 0 <= n_past <= self.n_past:
            raise ValueError(f"n_past: expected 0 to {self.n_past}, got {n_past}")
        tern_state_truncate(self.state, n_past)
        self.has_hidden = self.has_logits = False

    def logits(self):
        """Return (vocab,) float32 of the last position, read-only, valid until the next eval."""
        self.last_logits()
        return memoryview(self._logits).cast("f").toreadonly()

    def counters(self):
        """Return what was computed and skipped since the last reset, one dictionary a layer."""
        self.check_idle()
        cdef tern_counters *all = tern_state_counters(self.state)
        return [all[i] for i in range(self.model.model.config.n_layers)]

    def hidden(self):
        """Return (hidden,) float32: what the head multiplies; a copy."""
        self.check_ready()
        cdef const float *hidden = tern_state_hidden(self.state)
        return memoryview((<const char *>hidden)[:4 * self.model.model.config.hidden]).cast("f")

    def head_counters(self):
        """Return how the head was evaluated since the last reset."""
        self.check_idle()
        return tern_state_head_counters(self.state)[0]

    def reset_counters(self):
        """Set all counters to zero."""
        self.check_idle()
        memset(tern_state_head_counters(self.state), 0, sizeof(tern_head_counters))
        memset(tern_state_counters(self.state), 0,
               self.model.model.config.n_layers * sizeof(tern_counters))

    @property
    def n_past(self):
        return tern_state_n_past(self.state)

    @property
    def threads(self):
        return self._threads

    @threads.setter
    def threads(self, int n):
        self.check_idle()
        check_threads(n)
        if not tern_state_set_threads(self.state, n):
            raise MemoryError(f"no memory or threads for {n} threads")
        self._threads = n

    @property
    def zero_skip(self):
        return self._zero_skip

    @zero_skip.setter
    def zero_skip(self, bint on):
        self.check_idle()
        tern_state_set_zero_skip(self.state, on)
        self._zero_skip = on

    @property
    def kv_bytes(self):
        return tern_kv_bytes(&self.model.model.config, self.context, self.kv_bits,
                             self.kv_group_size)


cdef check_kv(int bits, int group_size):
    if bits not in (4, 8, 16, 32):
        raise ValueError(f"kv_bits: expected 4, 8, 16 or 32, got {bits}")
    if not 0 < group_size <= TERN_KV_GROUP_MAX or group_size % TERN_KV_GROUP_STEP:
        raise ValueError(f"kv_group_size: expected a multiple of {TERN_KV_GROUP_STEP} up to "
                         f"{TERN_KV_GROUP_MAX}, got {group_size}")


cdef check_threads(int n):
    if not 1 <= n <= TERN_THREADS_MAX:
        raise ValueError(f"threads: expected 1 to {TERN_THREADS_MAX}, got {n}")


# ---- the sampler ----

cdef check_range(name, double value, double low, double high):
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low:g} to {high:g}, got {value:g}")


cdef class Sampler:
    """Logits to a token; the same seed gives the same tokens on every machine."""

    cdef tern_sampler sampler
    cdef tern_candidate *scratch
    cdef size_t capacity
    cdef bint is_busy

    def __cinit__(self, double temperature=0.0, Py_ssize_t top_k=0, double top_p=1.0,
                  double min_p=0.0, double repetition_penalty=1.0, seed=0):
        check_range("temperature", temperature, 0.0, 100.0)
        check_range("top_k", top_k, 0, 1 << 24)
        check_range("top_p", top_p, 0.0, 1.0)
        check_range("min_p", min_p, 0.0, 1.0)
        check_range("repetition_penalty", repetition_penalty, 0.01, 100.0)
        self.sampler.temperature = temperature
        self.sampler.top_k = top_k
        self.sampler.top_p = top_p
        self.sampler.min_p = min_p
        self.sampler.repetition_penalty = repetition_penalty
        tern_sampler_seed(&self.sampler, operator.index(seed) & 0xffffffffffffffff)

    def __dealloc__(self):
        free(self.scratch)

    def sample(self, Session session not None, recent=()):
        """Draw the next token of ``session``; tokens in ``recent`` are made less likely."""
        cdef size_t vocab = session.model.model.config.vocab
        cdef _Tokens ids = _Tokens(recent, vocab)
        cdef tern_head_request request
        cdef size_t n = 0
        cdef uint32_t token = 0
        session.check_ready()
        self.reserve(vocab)
        if not session.has_logits and session.model.model.scan.codes != NULL \
                and tern_sampler_request(&self.sampler, vocab, ids.ids, ids.n, &request):
            session.is_busy = self.is_busy = True
            with nogil:
                n = tern_head_candidates(session.state, &request, self.scratch)
                if n:
                    token = tern_sample_candidates(&self.sampler, self.scratch, n, vocab, ids.ids,
                                                   ids.n)
            session.is_busy = self.is_busy = False
        return token if n else self.sample_all(session, ids)

    cdef reserve(self, size_t vocab):
        if self.is_busy:
            raise RuntimeError("this sampler is in use by another thread")
        if self.capacity < vocab:
            free(self.scratch)
            self.capacity = 0
            self.scratch = <tern_candidate *>malloc(vocab * sizeof(tern_candidate))
            if self.scratch == NULL:
                raise MemoryError
            self.capacity = vocab

    cdef sample_all(self, Session session, _Tokens ids):
        cdef size_t vocab = session.model.model.config.vocab
        cdef const float *logits = session.last_logits()
        cdef uint32_t token
        session.is_busy = self.is_busy = True
        with nogil:
            token = tern_sample(&self.sampler, logits, vocab, ids.ids, ids.n, self.scratch)
        session.is_busy = self.is_busy = False
        return token
