# Adapters: low-rank additions beside the ternary products of one model.

_PROJECTIONS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]

_FLOATS = {"F32": (TERN_FLOAT32, 4), "F16": (TERN_FLOAT16, 2), "BF16": (TERN_BFLOAT16, 2)}


cdef class Adapter:
    """Low-rank additions for the projections of one model, checked once, in float32."""

    cdef Model model
    cdef tern_adapter adapter
    cdef tern_lora *loras
    cdef list owned
    cdef readonly Py_ssize_t n_parameters

    def __cinit__(self, Model model not None, modules):
        self.model = model
        self.owned = []
        self.loras = <tern_lora *>calloc(model.n_layers * TERN_PROJECTIONS, sizeof(tern_lora))
        if self.loras == NULL:
            raise MemoryError
        places = {f"model.layers.{i}.{name}": (i, p)
                  for i in range(model.n_layers) for p, name in enumerate(_PROJECTIONS)}
        if not modules:
            raise ValueError("adapter: expected at least one module, got none")
        for name, (scale, a, b) in modules.items():
            if name not in places:
                raise ValueError(f"adapter {name}: expected one of the seven projections of "
                                 f"{model.n_layers} layers")
            layer, projection = places[name]
            self.read(name, layer, projection, scale, a, b)
        self.adapter.loras = self.loras

    def __dealloc__(self):
        free(self.loras)

    cdef read(self, name, size_t layer, size_t projection, scale, a, b):
        """Take A (rank, in) and B (out, rank) of one module."""
        cdef tern_layer *w = &self.model.model.layers[layer]
        cdef tern_matrix *matrices[7]
        matrices[:] = [&w.q, &w.k, &w.v, &w.o, &w.gate, &w.up, &w.down]
        cdef const tern_matrix *m = matrices[projection]
        cdef tern_lora *lora = &self.loras[layer * TERN_PROJECTIONS + projection]
        rank = a[1][0] if len(a[1]) == 2 else 0
        if not 1 <= rank <= TERN_LORA_RANK_MAX:
            raise ValueError(f"adapter {name}: expected lora_A of (1 to {TERN_LORA_RANK_MAX}, "
                             f"{m.n_in}), got {tuple(a[1])}")
        if not _is_number(scale, -1e6, 1e6):
            raise ValueError(f"adapter {name}: expected a scale from -1e6 to 1e6, got {scale!r}")
        lora.a = self.floats(f"{name} lora_A", a, (rank, m.n_in))
        rows = self.floats(f"{name} lora_B", b, (m.n_out, rank))
        panels = -(-m.n_out // TERN_LORA_PANEL) * TERN_LORA_PANEL
        lora.b = self.take(panels * rank)
        tern_lora_pack(rows, m.n_out, rank, <float *>lora.b)
        self.owned.pop(-2)  # B as it came
        lora.scale = scale
        lora.rank = rank
        self.adapter.rank_max = max(self.adapter.rank_max, <size_t>rank)
        self.n_parameters += rank * (m.n_in + m.n_out)

    cdef float *take(self, size_t n) except NULL:
        """Return room for ``n`` numbers."""
        cdef bytearray block = bytearray(n * sizeof(float) + TERN_LINE_BYTES)
        self.owned.append(block)
        cdef uintptr_t at = <uintptr_t><char *>block
        return <float *>(at + (-at) % <uintptr_t>TERN_LINE_BYTES)

    cdef float *floats(self, name, tensor, shape) except NULL:
        """Return a tensor as float32, in memory of our own."""
        dtype, got, data = tensor
        if dtype not in _FLOATS:
            raise ValueError(f"adapter {name}: expected one of {', '.join(_FLOATS)}, got {dtype}")
        if tuple(got) != shape:
            raise ValueError(f"adapter {name}: expected shape {shape}, got {tuple(got)}")
        kind, width = _FLOATS[dtype]
        cdef size_t n = shape[0] * shape[1]
        cdef _Buffer held = _Buffer(data)
        if held.view.len != n * width:
            raise ValueError(f"adapter {name}: expected {n * width} bytes, got {held.view.len}")
        cdef float *to = self.take(n)
        tern_widen(kind, <const uint8_t *>held.view.buf, n, to)
        return to
