"""The drawing of `edgeagent inspect`: what `inspect.inspect_model` found, for a terminal.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Characters of a bar, and its eighths.
BAR_CHARS = 24
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def bar(fraction: float, width: int = BAR_CHARS) -> str:
    """Return a bar of `width` characters that is filled to a fraction of 0 to 1."""
    eighths = round(min(max(fraction, 0.0), 1.0) * width * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[part] if part else "")).ljust(width)


def size(n_bytes: float) -> str:
    """Return bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.2f} GiB"


def _head(facts: Mapping[str, Any]) -> list[str]:
    config, parameters = facts["config"], facts["parameters"]
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    tied = "tied" if config.get("tie_word_embeddings") else "a head of its own"
    return [
        f"format      {facts['format']}, {size(facts['disk_bytes'])}, "
        f"{facts['bits_a_parameter']:g} bits a parameter",
        f"model       {config['architectures'][0]}, {config['num_hidden_layers']} layers, "
        f"hidden {config['hidden_size']}, ffn {config['intermediate_size']} "
        f"({config.get('hidden_act')}), {heads} heads, {kv_heads} for keys",
        f"vocabulary  {config['vocab_size']}, {tied}; context {config['max_position_embeddings']}",
        f"parameters  {parameters['total']:,}: {parameters['matrices']:,} in matrices, "
        f"{parameters['embedding_and_head']:,} in embedding and head",
    ]


def _tokenizer(facts: Mapping[str, Any]) -> str:
    found = facts["tokenizer"]
    if found is None:
        return "tokenizer   none: name one with --tokenizer"
    template = "a chat template" if found["chat_template"] else "no chat template"
    return (
        f"tokenizer   {found['kind']}, {found['tokens']} tokens, begins with {found['bos']!r}, "
        f"ends with {found['eos']!r}, {template}"
    )


def _ternary(facts: Mapping[str, Any]) -> list[str]:
    found = facts["ternary"]
    if not found["matrices"]:
        return ["ternary     no matrix"]
    lines = [
        f"ternary     {found['matrices']} matrices, {found['trits']:,} trits, "
        f"{found['zeros']:.2%} zeros, {found['entropy']:.3f} bits a trit, {found['scales']} scales",
        f"dead        {found['dead_rows']} rows, {found['dead_columns']} columns",
        "",
        f"layer   zeros {'':<{BAR_CHARS}}  bits   dead rows  columns  scales",
    ]
    for row in facts["layers"]:
        span = f"{row['scale_min']:.4g}"
        if row["scale_max"] != row["scale_min"]:
            span += f" to {row['scale_max']:.4g}"
        lines.append(
            f"{row['layer']:>5}  {row['zeros']:>6.2%} {bar(row['zeros'])}  {row['entropy']:.3f}  "
            f"{row['dead_rows']:>9}  {row['dead_columns']:>7}  {span}"
        )
    return [*lines, ""]


def _memory(facts: Mapping[str, Any]) -> list[str]:
    memory = facts["memory"]
    lines = [
        f"memory      for {memory['context']} tokens: weights {size(memory['weight_bytes'])}, "
        f"process about {size(memory['process_bytes'])}; "
        f"free here {size(memory['available_bytes'])}"
    ]
    for row in memory["kv"]:
        fits = "fits" if row["fits"] else "does not fit"
        lines.append(
            f"  kv_bits {row['kv_bits']:>2}  cache {size(row['kv_bytes']):>10}  "
            f"in all {size(row['total_bytes']):>10}  {fits}"
        )
    return lines


def text(facts: Mapping[str, Any]) -> str:
    """Return everything, for people."""
    if "config" not in facts:  # what convert refuses: there is little to say
        keys = ("format", "architecture", "disk_bytes", "tensors", "convert")
        return "\n".join(f"{key:<11} {facts[key]}" for key in keys if key in facts)
    lines = [*_head(facts), _tokenizer(facts)]
    adapter = facts["adapter"]
    if adapter is not None:
        ranks = ", ".join(map(str, adapter["ranks"]))
        lines.append(f"adapter     {adapter['modules']} modules, rank {ranks}")
    lines += [*_ternary(facts), *_memory(facts), f"convert     {facts['convert']}"]
    return "\n".join(lines)
