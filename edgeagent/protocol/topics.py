"""Every topic name, once, and what a requester may make us publish to.

A Response Topic is chosen by the requester, so it is a way to make this agent write where the
requester must not (``homeassistant/...``, another node's requests).  Only topics below an allowed
prefix are used; a topic with a wildcard, a NUL, an empty level or a leading ``$`` never is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgeagent.errors import ProtocolError

PREFIX = "edge/v1"
"""Root of the tree; its second level is the version of this contract."""

REPLY_PREFIXES = (f"{PREFIX}/reply/", "reply/")
"""Where answers may go besides the node's own ``query/reply/``; no node may be named ``reply``."""

MAX_TOPIC_CHARS = 256
"""AWS IoT Core's limit, the lowest of the brokers in use; MQTT itself allows 65535 bytes."""

NODE_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""One topic level, also fit for a client identifier and a file name; 63 as in a DNS label."""

_FORBIDDEN_IN_NAME = re.compile(r"[+#\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one node."""

    node: str
    prefix: str = PREFIX

    def _own(self, suffix: str) -> str:
        return f"{self.prefix}/{self.node}/{suffix}"

    @property
    def state(self) -> str:
        """Online or offline; retained, also the will."""
        return self._own("state")

    @property
    def info(self) -> str:
        """Versions, board, limits; retained."""
        return self._own("info")

    @property
    def health(self) -> str:
        """Counters and the last error; retained."""
        return self._own("health")

    @property
    def telemetry(self) -> str:
        """Sensors and speed, at QoS 0."""
        return self._own("telemetry")

    @property
    def event(self) -> str:
        """What happened, numbered."""
        return self._own("event")

    @property
    def query_request(self) -> str:
        """Queries come in here."""
        return self._own("query/request")

    @property
    def query_cancel(self) -> str:
        """Queries are stopped here."""
        return self._own("query/cancel")

    @property
    def query_replies(self) -> str:
        """Prefix of the answers to requesters without an allowed reply topic."""
        return self._own("query/reply/")

    def query_reply(self, query_id: str) -> str:
        """Where the answer to ``query_id`` goes when the requester named no allowed topic."""
        return self.query_replies + query_id

    @property
    def model_state(self) -> str:
        """Home Assistant update-entity JSON; retained."""
        return self._own("model/state")

    @property
    def model_report(self) -> str:
        """Signed reports of what became of updates, at QoS 1."""
        return self._own("model/report")

    @property
    def update_request(self) -> str:
        """Check for or install a model."""
        return self._own("model/update/request")

    @property
    def update_response(self) -> str:
        """The answer to a request for an update."""
        return self._own("model/update/response")


def update_notice(repo: str) -> str:
    """Where a repository says, retained, that its metadata changed."""
    return f"ota/v1/{repo}/notice"


def check_topic_name(topic: str) -> str:
    """Return ``topic`` when it is a name to publish to.

    Raises:
        ProtocolError: It is empty, too long, has a wildcard or a control character, an empty
            level, or starts with ``$``; code ``forbidden_reply_topic``.
    """
    if not topic:
        raise _forbidden("is empty")
    if len(topic) > MAX_TOPIC_CHARS:
        raise _forbidden(f"has {len(topic)} characters, at most {MAX_TOPIC_CHARS} are allowed")
    if topic.startswith("$"):
        raise _forbidden("starts with '$', which belongs to the broker")
    if _FORBIDDEN_IN_NAME.search(topic):
        raise _forbidden("has a wildcard or a control character")
    if "" in topic.split("/"):
        raise _forbidden("has an empty level")
    return topic


def check_reply_topic(topic: str, allowed: tuple[str, ...]) -> str:
    """Return ``topic`` when answers may be published there.

    Raises:
        ProtocolError: As `check_topic_name`, or it lies below none of ``allowed``.
    """
    check_topic_name(topic)
    if not any(topic.startswith(prefix) for prefix in allowed):
        raise _forbidden(f"is not below one of {', '.join(allowed)}")
    return topic


def _forbidden(why: str) -> ProtocolError:
    return ProtocolError(f"reply topic {why}", code="forbidden_reply_topic")
