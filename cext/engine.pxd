"""The C core as Cython sees it; cext/include/*.h are the contracts."""

from libc.stdint cimport int8_t, int32_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "kv.h" nogil:
    enum:
        TERN_KV_GROUP_STEP
        TERN_KV_GROUP_MAX


cdef extern from "ternary.h" nogil:
    ctypedef enum tern_packing:
        TERN_2BIT
        TERN_BASE3
        TERN_BINARY
        TERN_INT8
        TERN_F16

    enum:
        TERN_PACKINGS
        TERN_BLOCK
        TERN_BLOCK_BYTES
        TERN_PANEL
        TERN_BLOCK3
        TERN_BLOCK3_BYTES
        TERN_TILE_OUTPUTS
        TERN_TILE_CHANNELS
        TERN_BINARY_OUTPUTS
        TERN_INT8_OUTPUTS
        TERN_LINE_BYTES
        TERN_X_PAD
        TERN_UNIT
        TERN_X_MAX
        TERN_IN_MAX
        TERN_SCAN_ROWS
        TERN_SCAN_GROUP
        TERN_SCAN_LINES
        TERN_SCAN_LEVELS
        TERN_SCAN_ZERO
        TERN_REFINE_BLOCK

    ctypedef struct tern_scan_x:
        const int8_t *high
        const int8_t *low
        const int32_t *minus_zero
        size_t n_groups

    ctypedef struct tern_act:
        const int8_t *x
        size_t n
        int32_t sum
        const uint32_t *live
        const int8_t *live_x
        size_t n_live

    ctypedef void tern_gemv_rows_fn(const uint8_t *, const tern_act *, int32_t *, const uint32_t *,
                                    size_t, size_t)

    ctypedef struct tern_kernels:
        const char *name
        uint32_t needs
        tern_gemv_rows_fn *gemv_rows[2]
        void (*gemv_cols)(const uint8_t *, const tern_act *, int32_t *, size_t, size_t) nogil
        void (*gemv_tiles)(const uint8_t *, const tern_act *, int32_t *, size_t, size_t) nogil
        void (*gemv_channels)(const uint8_t *, const tern_act *, size_t, int32_t *, size_t,
                              size_t) nogil
        void (*dot_f16)(const uint16_t *, size_t, size_t, const float *, float *) nogil
        void (*dot_f32)(const float *, size_t, size_t, const float *, float *) nogil
        void (*mix_f32)(const float *, size_t, size_t, const float *, float *) nogil
        void (*scan)(const uint8_t *, const uint8_t *, const uint8_t *, const tern_scan_x *,
                     float *, size_t, size_t) nogil

    uint32_t tern_cpu_features()
    const tern_kernels *tern_select(uint32_t cpu, const char *forced)
    const tern_kernels *const *tern_variants()
    size_t tern_row_bytes(tern_packing packing, size_t n_in)
    size_t tern_find_bad_code(tern_packing packing, const uint8_t *data, size_t n_bytes)


cdef extern from "forward.h" nogil:
    enum:
        TERN_CONTEXT_MAX
        TERN_THREADS_MAX
        TERN_DIGITS
        TERN_GROUP_STEP

    ctypedef enum tern_act_kind:
        TERN_RELU2
        TERN_SILU

    ctypedef enum tern_rope_kind:
        TERN_ROPE_DEFAULT
        TERN_ROPE_LINEAR
        TERN_ROPE_LLAMA3
        TERN_ROPE_LONG

    ctypedef struct tern_rope:
        double theta
        tern_rope_kind kind
        double factor
        double low_freq_factor, high_freq_factor
        double attention_factor
        size_t original_context
        const double *short_factor
        const double *long_factor

    ctypedef struct tern_config:
        size_t vocab, hidden, ffn, n_layers, n_heads, n_kv_heads, head_dim
        float eps
        tern_rope rope
        tern_act_kind act
        size_t n_digits
        float embed_scale, residual_scale, head_divisor

    ctypedef enum tern_orientation:
        TERN_ROWS
        TERN_LINES
        TERN_CHANNELS
        TERN_TILES

    ctypedef struct tern_matrix:
        const uint8_t *plane
        size_t n_out, n_in
        tern_orientation orientation
        tern_packing packing
        float scale
        const float *scales
        size_t n_groups

    ctypedef struct tern_layer:
        const float *input_norm
        const float *post_norm
        const float *attn_sub_norm
        const float *ffn_sub_norm
        const float *q_norm
        const float *k_norm
        tern_matrix q, k, v, o, gate, up, down

    ctypedef struct tern_head_scan:
        const uint8_t *codes
        const uint8_t *scales
        const uint8_t *levels
        const uint8_t *refine
        const float *scale
        const float *refine_scale
        const float *norm
        const float *rest
        const float *refined_rest

    ctypedef struct tern_model:
        tern_config config
        const uint16_t *embed
        const uint16_t *head
        const float *final_norm
        tern_head_scan scan
        tern_layer *layers
        const tern_kernels *kernels
        size_t ternary_bytes

    enum:
        TERN_PROJECTIONS
        TERN_LORA_PANEL
        TERN_LORA_RANK_MAX

    ctypedef struct tern_lora:
        size_t rank
        const float *a
        const float *b
        float scale

    ctypedef struct tern_adapter:
        const tern_lora *loras
        size_t rank_max

    ctypedef enum tern_float:
        TERN_FLOAT32
        TERN_FLOAT16
        TERN_BFLOAT16

    void tern_widen(tern_float kind, const uint8_t *bytes, size_t n, float *to)
    void tern_lora_pack(const float *b, size_t n_out, size_t rank, float *panels)

    ctypedef struct tern_counters:
        uint64_t multiplications, multiplications_skipped
        uint64_t weight_bytes, weight_bytes_skipped
        uint64_t activations, zero_activations
        uint64_t gates, closed_gates
        uint64_t down_inputs, zero_down_inputs

    ctypedef struct tern_head_counters:
        uint64_t full_scans, queries, fallbacks, grown
        uint64_t rows_scanned, rows_refined, rows_rescored

    ctypedef struct tern_state:
        pass

    tern_state *tern_state_new(const tern_model *model, size_t context, size_t n_threads,
                               bint zero_skip, unsigned kv_bits, size_t kv_group_size)
    void tern_state_free(tern_state *state)
    bint tern_state_set_threads(tern_state *state, size_t n_threads)
    void tern_state_set_zero_skip(tern_state *state, bint zero_skip)
    bint tern_state_set_adapter(tern_state *state, const tern_adapter *adapter)
    void tern_forward(tern_state *state, const uint32_t *tokens, size_t n_tokens, float *logits)
    size_t tern_state_n_past(const tern_state *state)
    void tern_state_truncate(tern_state *state, size_t n_past)
    tern_counters *tern_state_counters(tern_state *state)
    size_t tern_kv_bytes(const tern_config *config, size_t context, unsigned kv_bits,
                         size_t kv_group_size)


cdef extern from "bandwidth.h" nogil:
    double tern_read_seconds(const uint8_t *data, size_t n_bytes, size_t n_threads,
                             uint64_t *fold)


cdef extern from "head.h" nogil:
    ctypedef struct tern_candidate:
        float logit
        uint32_t token

    ctypedef struct tern_head_request:
        size_t k
        float margin
        const uint32_t *recent
        size_t n_recent

    size_t tern_head_candidates(tern_state *state, const tern_head_request *request,
                                tern_candidate *out)
    void tern_head_logits(tern_state *state, float *logits)
    const float *tern_state_hidden(const tern_state *state)
    tern_head_counters *tern_state_head_counters(tern_state *state)


cdef extern from "sampler.h" nogil:
    ctypedef struct tern_sampler:
        float temperature
        size_t top_k
        float top_p
        float min_p
        float repetition_penalty

    void tern_sampler_seed(tern_sampler *sampler, uint64_t seed)
    uint32_t tern_sample(tern_sampler *sampler, const float *logits, size_t vocab,
                         const uint32_t *recent, size_t n_recent, tern_candidate *scratch)
    bint tern_sampler_request(const tern_sampler *sampler, size_t vocab, const uint32_t *recent,
                              size_t n_recent, tern_head_request *request)
    uint32_t tern_sample_candidates(tern_sampler *sampler, tern_candidate *list, size_t n,
                                    size_t vocab, const uint32_t *recent, size_t n_recent)
