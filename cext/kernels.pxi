# Kernels by name, for tests and benchmarks; what stands alone.

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
