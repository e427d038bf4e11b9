"""On-device ternary language model agent for embedded Linux."""

__version__ = "0.1.0"
