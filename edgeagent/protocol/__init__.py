"""What is said over MQTT, as values: topics, queries, replies, admission.  Pure.

Nothing here imports asyncio, a socket, a file or a clock.  Time is the parameter ``now_s``,
seconds of a monotonic clock.
"""
