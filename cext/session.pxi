# One conversation.

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
    cdef Adapter _adapter
    cdef tern_state *state
    cdef bytearray _logits
    cdef bint has_hidden, has_logits, is_busy
    cdef readonly Py_ssize_t context
    cdef size_t _threads
    cdef bint _zero_skip
    cdef readonly int kv_bits, kv_group_size

    def __cinit__(self, Model model not None, Py_ssize_t context, int threads=1,
                  bint zero_skip=True, int kv_bits=16, int kv_group_size=64,
                  Adapter adapter=None):
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
        self.set_adapter(adapter)

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

    @property
    def adapter(self):
        return self._adapter

    def set_adapter(self, Adapter adapter):
        """Use ``adapter``, or none, from now on; the KV cache is of another function: forget it."""
        self.check_idle()
        if adapter is self._adapter:
            return
        if adapter is not None and adapter.model is not self.model:
            raise ValueError("adapter: expected one that was made for this session's model")
        if not tern_state_set_adapter(self.state, NULL if adapter is None else &adapter.adapter):
            raise MemoryError("no memory for an adapter")
        self._adapter = adapter
        self.has_hidden = self.has_logits = False

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


def kv_bytes(*, size_t n_layers, size_t n_kv_heads, size_t head_dim, size_t context,
             int kv_bits=16, int kv_group_size=64):
    """Return the bytes of a KV cache when every position is used, of a model that is not loaded."""
    check_kv(kv_bits, kv_group_size)
    cdef tern_config config
    memset(&config, 0, sizeof(config))
    config.n_layers, config.n_kv_heads, config.head_dim = n_layers, n_kv_heads, head_dim
    return tern_kv_bytes(&config, context, kv_bits, kv_group_size)


cdef check_kv(int bits, int group_size):
    if bits not in (4, 8, 16, 32):
        raise ValueError(f"kv_bits: expected 4, 8, 16 or 32, got {bits}")
    if not 0 < group_size <= TERN_KV_GROUP_MAX or group_size % TERN_KV_GROUP_STEP:
        raise ValueError(f"kv_group_size: expected a multiple of {TERN_KV_GROUP_STEP} up to "
                         f"{TERN_KV_GROUP_MAX}, got {group_size}")


cdef check_threads(int n):
    if not 1 <= n <= TERN_THREADS_MAX:
        raise ValueError(f"threads: expected 1 to {TERN_THREADS_MAX}, got {n}")
