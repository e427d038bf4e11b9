# Logits to tokens.

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
