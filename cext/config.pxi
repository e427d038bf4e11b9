# config.json: every key that the engine reads, checked.

_DIMENSION_MAX = TERN_IN_MAX  # of everything that enters a matrix: int32 sums must not overflow

_MINICPM, _QWEN3 = "MiniCPMForCausalLM", "Qwen3ForCausalLM"

_ARCHITECTURES = ["BitNetForCausalLM", "BitnetForCausalLM", "LlamaForCausalLM", _MINICPM, _QWEN3]

_ACTIVATIONS = {"relu2": TERN_RELU2, "silu": TERN_SILU}

_ROPE_TYPES = {"default": TERN_ROPE_DEFAULT, "linear": TERN_ROPE_LINEAR,
               "llama3": TERN_ROPE_LLAMA3, "longrope": TERN_ROPE_LONG}

_ROPE_FACTOR_MAX = 1e6  # of a frequency; beyond it every position would look the same in float32


def _integer(config, key, largest, default=None, least=1, where="config"):
    """Return config[key], checked to be an integer from ``least`` to ``largest``."""
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= largest:
        raise ValueError(f"{where} {key}: expected an integer from {least} to {largest}, "
                         f"got {value!r}")
    return value


def _is_number(value, low, high):
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _number(config, key, low, high, where="config"):
    """Return config[key], checked to be a number in [low, high]."""
    value = config.get(key)
    if not _is_number(value, low, high):
        raise ValueError(f"{where} {key}: expected a number from {low:g} to {high:g}, "
                         f"got {value!r}")
    return float(value)


def _choice(config, key, allowed, where="config"):
    value = config.get(key)
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{where} {key}: expected one of {', '.join(allowed)}, got {value!r}")
    return value


def _architecture(config):
    """Return the name of the model's family."""
    value = config.get("architectures")
    if not isinstance(value, list) or value[:1] not in ([name] for name in _ARCHITECTURES):
        raise ValueError(f"config architectures: expected one of {', '.join(_ARCHITECTURES)}, "
                         f"got {value!r}")
    return value[0]


def _activation_bits(quantization):
    """Return ``activation_bits``: 8 (the default) or 16."""
    bits = quantization.get("activation_bits", 8)
    if isinstance(bits, bool) or bits not in (8, 16):
        raise ValueError(f"quantization_config activation_bits: expected 8 or 16, got {bits!r}")
    return bits


def _quantization(config):
    value = config.get("quantization_config") or {}
    if not isinstance(value, dict):
        raise ValueError(f"config quantization_config: expected an object, got {value!r}")
    return value


# ---- rotary positions; docs/formats.md, section 1a ----

cdef class _Rope:
    """``rope_theta`` and ``rope_scaling``, checked; owns the lists of factors."""

    cdef tern_rope rope
    cdef double *factors  # short, then long: (2, head_dim / 2)

    def __cinit__(self, config, size_t head_dim, size_t context):
        cdef tern_rope *r = &self.rope
        r.theta = _number(config, "rope_theta", 1.0, 1e12)
        scaling = config.get("rope_scaling")
        if scaling is None:
            return
        if not isinstance(scaling, dict):
            raise ValueError(f"config rope_scaling: expected null or an object, got {scaling!r}")
        r.kind = _ROPE_TYPES[_choice(scaling, "rope_type", _ROPE_TYPES, "rope_scaling")]
        if r.kind in (TERN_ROPE_LINEAR, TERN_ROPE_LLAMA3):
            r.factor = _number(scaling, "factor", 1.0, _ROPE_FACTOR_MAX, "rope_scaling")
        if r.kind in (TERN_ROPE_LLAMA3, TERN_ROPE_LONG):  # 2: its logarithm is a divisor
            r.original_context = _integer(scaling, "original_max_position_embeddings",
                                          TERN_CONTEXT_MAX, least=2, where="rope_scaling")
        if r.kind == TERN_ROPE_LLAMA3:
            self.read_llama3(scaling)
        elif r.kind == TERN_ROPE_LONG:
            self.read_longrope(scaling, head_dim // 2, context)

    def __dealloc__(self):
        free(self.factors)

    cdef read_llama3(self, scaling):
        cdef tern_rope *r = &self.rope
        r.low_freq_factor = _number(scaling, "low_freq_factor", 1e-3, 1e6, "rope_scaling")
        r.high_freq_factor = _number(scaling, "high_freq_factor", 1e-3, 1e6, "rope_scaling")
        if r.low_freq_factor >= r.high_freq_factor:
            raise ValueError(f"rope_scaling: expected low_freq_factor below high_freq_factor, got "
                             f"{r.low_freq_factor:g} and {r.high_freq_factor:g}")

    cdef read_longrope(self, scaling, Py_ssize_t half, size_t context):
        cdef tern_rope *r = &self.rope
        cdef Py_ssize_t i
        r.factor = context / <double>r.original_context
        if scaling.get("factor") is not None:
            r.factor = _number(scaling, "factor", 1e-3, _ROPE_FACTOR_MAX, "rope_scaling")
        if scaling.get("attention_factor") is not None:
            r.attention_factor = _number(scaling, "attention_factor", 1e-3, 1e3, "rope_scaling")
        self.factors = <double *>malloc(2 * half * sizeof(double))
        if self.factors == NULL:
            raise MemoryError
        r.short_factor, r.long_factor = self.factors, self.factors + half
        least = max(context / <double>TERN_CONTEXT_MAX, 1e-3)  # det_sincos is exact up to 2^20
        for at, key in ((0, "short_factor"), (half, "long_factor")):
            values = scaling.get(key)
            if not (isinstance(values, list) and len(values) == half
                    and all(_is_number(v, least, _ROPE_FACTOR_MAX) for v in values)):
                raise ValueError(f"rope_scaling {key}: expected a list of {half} numbers from "
                                 f"{least:g} to {_ROPE_FACTOR_MAX:g}")
            for i in range(half):
                self.factors[<Py_ssize_t>at + i] = values[i]
