"""When to try again, and with which MQTT version.  Pure: the caller brings clock and chance."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_DELAY_S = 0.5
MAX_DELAY_S = 60.0
"""A broker that restarts is back in seconds; one that is gone for hours is asked once a minute."""

STABLE_S = 10.0
"""A connection shorter than this is not a success: two devices of one name evict each other."""

SILENT_CLOSES = 3
"""A broker that closes without CONNACK may dislike MQTT 5, or may just be restarting."""

V5 = "5"
V311 = "3.1.1"


@dataclass(slots=True)
class Backoff:
    """Doubles the delay at every failure, up to a cap, with jitter.

    Jitter keeps a fleet from returning to a restarted broker in one instant.
    """

    first_s: float = FIRST_DELAY_S
    cap_s: float = MAX_DELAY_S
    failures: int = 0

    def next_s(self, lasted_s: float, chance: float) -> float:
        """Return how long to wait after an attempt that lasted ``lasted_s``.

        Args:
            lasted_s: How long it worked; 0 when it never did.
            chance: Uniform in [0, 1); the delay is between half and the whole of its bound.
        """
        if lasted_s >= STABLE_S:
            self.failures = 0
        bound_s = min(self.cap_s, self.first_s * 2.0 ** min(self.failures, 30))
        self.failures += 1
        return bound_s * (0.5 + 0.5 * chance)


@dataclass(slots=True)
class VersionChoice:
    """Which MQTT version to speak: 5 first, 3.1.1 when the broker cannot do 5."""

    wanted: str = "auto"
    version: str = V5
    _silent: int = 0
    _is_settled: bool = False

    def __post_init__(self) -> None:
        if self.wanted != "auto":
            self.version, self._is_settled = self.wanted, True

    def connected(self) -> None:
        """Note a CONNACK with success; a broker that restarts is then never mistaken for 3.1.1."""
        self._is_settled = True

    def refused(self) -> bool:
        """Note a CONNACK that refuses the version; return whether to try another at once."""
        if self.wanted != "auto" or self.version == V311:
            return False
        self.version = V311
        return True

    def unanswered(self) -> bool:
        """Note that no CONNACK came in time; return whether to try another version at once.

        A 3.1.1 broker may wait for the rest of what it takes for a longer packet.
        """
        if self._is_settled:
            return False
        self.version = V311 if self.version == V5 else V5
        return self.version == V311

    def closed_silently(self) -> None:
        """Note that the broker accepted the TCP connection and closed it without CONNACK."""
        if self._is_settled:
            return
        self._silent += 1
        if self._silent % SILENT_CLOSES == 0:
            self.version = V311 if self.version == V5 else V5
