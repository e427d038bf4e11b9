# A model: what config and tensors make together.

cdef class Model:
    """A model's weights, checked once and used where they lie."""

    cdef tern_model model
    cdef _Tensors tensors
    cdef bint has_attn_norm, has_ffn_norm, has_head_norms
    cdef _Rope rope
    cdef str architecture
    cdef readonly Py_ssize_t context

    def __cinit__(self, config, tensors, kernel=None):
        self.model.kernels = select_kernels(kernel)
        self.read_config(config)
        quantization = _quantization(config)
        self.tensors = _Tensors(tensors, quantization.get("layout", 1))
        self.model.config.n_digits = 1
        if _activation_bits(quantization) == 16:
            if self.tensors.layout not in (1, 2):
                raise ValueError(f"quantization_config activation_bits: expected 8 in layout "
                                 f"{self.tensors.layout}, got 16")
            self.model.config.n_digits = TERN_DIGITS
        self.model.layers = <tern_layer *>calloc(self.model.config.n_layers, sizeof(tern_layer))
        if self.model.layers == NULL:
            raise MemoryError
        self.read_ends(config.get("tie_word_embeddings", False))
        self.has_attn_norm = self.tensors.has("model.layers.0.self_attn.attn_sub_norm.weight")
        self.has_ffn_norm = self.tensors.has("model.layers.0.mlp.ffn_sub_norm.weight")
        self.has_head_norms = (self.architecture == _QWEN3
                               or self.tensors.has("model.layers.0.self_attn.q_norm.weight"))
        for i in range(self.model.config.n_layers):
            self.read_layer(i)
        self.tensors.refuse_rest()
        self.model.ternary_bytes = self.tensors.ternary_bytes

    def __dealloc__(self):
        free(self.model.layers)

    cdef read_config(self, config):
        cdef tern_config *c = &self.model.config
        self.architecture = _architecture(config)
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
        c.act = _ACTIVATIONS[_choice(config, "hidden_act", _ACTIVATIONS)]
        self.context = _integer(config, "max_position_embeddings", TERN_CONTEXT_MAX)
        if c.n_heads % c.n_kv_heads:
            raise ValueError(f"config num_key_value_heads: expected a divisor of {c.n_heads} "
                             f"heads, got {c.n_kv_heads}")
        if c.head_dim % 2:
            raise ValueError(f"config head_dim: expected an even number, got {c.head_dim}")
        self.rope = _Rope(config, c.head_dim, self.context)
        c.rope = self.rope.rope
        self.read_scales(config)

    cdef read_scales(self, config):
        """Take the factors of MiniCPM, as its reference model in Hugging Face form uses them."""
        cdef tern_config *c = &self.model.config
        c.embed_scale = c.residual_scale = c.head_divisor = 1.0
        if self.architecture == _MINICPM:
            depth = _number(config, "scale_depth", 1e-6, 1e6)
            c.embed_scale = _number(config, "scale_emb", 1e-6, 1e6)
            c.residual_scale = depth / sqrt(<double>c.n_layers)
            c.head_divisor = c.hidden / _number(config, "dim_model_base", 1e-6, 1e6)

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

    cdef read_layer(self, size_t i):
        cdef tern_config *c = &self.model.config
        cdef tern_layer *w = &self.model.layers[i]
        cdef _Tensors t = self.tensors
        at = f"model.layers.{i}"
        attention, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
        w.input_norm = t.norm(f"{at}.input_layernorm.weight", c.hidden)
        w.post_norm = t.norm(f"{at}.post_attention_layernorm.weight", c.hidden)
        if self.has_attn_norm:
            w.attn_sub_norm = t.norm(f"{at}.self_attn.attn_sub_norm.weight", attention)
        if self.has_ffn_norm:
            w.ffn_sub_norm = t.norm(f"{at}.mlp.ffn_sub_norm.weight", c.ffn)
        if self.has_head_norms:
            w.q_norm = t.norm(f"{at}.self_attn.q_norm.weight", c.head_dim)
            w.k_norm = t.norm(f"{at}.self_attn.k_norm.weight", c.head_dim)
        w.q = t.matrix(f"{at}.self_attn.q_proj", attention, c.hidden)
        w.k = t.matrix(f"{at}.self_attn.k_proj", kv, c.hidden)
        w.v = t.matrix(f"{at}.self_attn.v_proj", kv, c.hidden)
        w.o = t.matrix(f"{at}.self_attn.o_proj", c.hidden, attention)
        w.gate = t.matrix(f"{at}.mlp.gate_proj", c.ffn, c.hidden)
        w.up = t.matrix(f"{at}.mlp.up_proj", c.ffn, c.hidden)
        w.down = t.matrix(f"{at}.mlp.down_proj", c.hidden, c.ffn)
        if not w.q.n_groups == w.k.n_groups == w.v.n_groups or w.gate.n_groups != w.up.n_groups:
            raise ValueError(f"tensor {at}: expected one number of groups in q, k and v and one in "
                             f"gate and up, got {w.q.n_groups}, {w.k.n_groups}, {w.v.n_groups} "
                             f"and {w.gate.n_groups}, {w.up.n_groups}")

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
