"""PURE: what is said on the wire: topics, messages, admission to the queue."""
