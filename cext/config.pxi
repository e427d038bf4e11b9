# config.json: every key that the engine reads, checked.

_DIMENSION_MAX = TERN_IN_MAX  # of everything that enters a matrix: int32 sums must not overflow

_ARCHITECTURES = ["BitNetForCausalLM", "BitnetForCausalLM", "LlamaForCausalLM"]

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
