"""Bytes from outside -> `Query`, or one clear line about what is wrong.

Every bound of a query is a constant here; ``docs/protocol.md`` section 2 is the contract.  A
request is read in two steps, because even a refusal needs an address: `reply_address` decides
where answers go, `parse_query` then reads the body.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from edgeagent.errors import ProtocolError
from edgeagent.protocol.topics import Topics, check_reply_topic

MAX_ID_CHARS = 64
"""A UUID with a prefix fits; the id becomes the last level of a reply topic."""

ID_PATTERN = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_ID_CHARS}}}")
"""Neither a topic separator nor a wildcard nor anything a shell or a log would mind."""

MAX_TRANSACTION_CHARS = 64
"""It is echoed on every batch of tokens, so it must stay small beside them."""

MAX_CORRELATION_BYTES = 256
"""As above; a UUID takes 16 or 36."""

MAX_MESSAGES = 64
"""Turns of a conversation; what fits a 4096-token context at 64 tokens a turn."""

MAX_STOPS = 8
MAX_STOP_CHARS = 64
"""Each stop string is searched for in the tail of the answer at every token."""

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Range:
    """What a number in a query may be, and what it is when absent."""

    low: float
    high: float
    default: float
    is_integer: bool = False


NUMBERS: dict[str, Range] = {
    # 4096 is the longest context of the supported models.
    "max_tokens": Range(1, 4096, 128, is_integer=True),
    "temperature": Range(0, 2, 0),  # 0 is greedy, and thereby reproducible
    "top_k": Range(0, 1000, 40, is_integer=True),  # 0 is off; the sampler sorts at most 1000
    "top_p": Range(0, 1, 0.95),
    "min_p": Range(0, 1, 0),
    "repetition_penalty": Range(0.5, 2, 1),
    "seed": Range(0, 2**63 - 1, 0, is_integer=True),  # a signed 64-bit integer everywhere
    # An hour: a 2 G-parameter model needs 20 minutes for 4096 tokens on a small board.
    "deadline_s": Range(0.1, 3600, 120),
}

FIELDS = frozenset(
    {"id", "prompt", "messages", "stop", "stream", "zero_skip", "transaction", "reply_to"}
    | set(NUMBERS)
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """The part of the bounds that an operator may narrow; from the configuration."""

    max_bytes: int = 65536
    default_max_tokens: int = 128
    default_deadline_s: float = 120.0
    max_deadline_s: float = 3600.0
    zero_skip: bool = True


@dataclass(frozen=True, slots=True)
class Incoming:
    """One message as the broker delivered it; ``delivery`` is what the adapter acknowledges."""

    topic: str
    payload: bytes
    size: int  # bytes on the wire; ``payload`` is empty when this exceeds what we read
    is_retained: bool = False
    is_redelivered: bool = False  # the DUP flag
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_s: float | None = None
    delivery: object = None


@dataclass(frozen=True, slots=True)
class Address:
    """Where the answer goes and what every message of it echoes."""

    query_id: str
    topic: str
    correlation: bytes | None = None
    transaction: str | None = None
    is_named: bool = True  # the requester named the query, by id or by Correlation Data


@dataclass(frozen=True, slots=True)
class Query:
    """A well-formed query."""

    address: Address
    deadline_s: float
    stream: bool
    prompt: str | None = None
    messages: tuple[tuple[str, str], ...] = ()  # (role, content)
    params: dict[str, Any] = field(default_factory=dict)  # ready for the engine

    @property
    def id(self) -> str:
        """The query's id."""
        return self.address.query_id

    def engine_request(self) -> dict[str, Any]:
        """What the engine is told; ``docs/protocol.md`` section 3."""
        request: dict[str, Any] = {"op": "generate", "id": self.id, "params": self.params}
        if self.prompt is not None:
            request["prompt"] = self.prompt
        else:
            request["messages"] = [{"role": r, "content": c} for r, c in self.messages]
        return request


# -- requests -----------------------------------------------------------------------------------


def read_object(payload: bytes) -> dict[str, Any]:
    """Decode a JSON object strictly.

    Raises:
        ProtocolError: Not UTF-8, not JSON, not an object, nested too deep, a name twice, a number
            that JSON does not have (``NaN``), or a text with half a surrogate pair.
    """
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError as err:
        raise ProtocolError(f"payload is not UTF-8: byte {err.start} is invalid") from None
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        # Half a surrogate pair ("\\ud800") is legal JSON and cannot be written as UTF-8.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ProtocolError("payload has half a surrogate pair in a string") from None
    except RecursionError:
        raise ProtocolError("payload is nested too deep; a query has 3 levels") from None
    except json.JSONDecodeError as err:
        raise ProtocolError(
            f"payload is not JSON: {err.msg} at character {err.pos}; "
            "text that begins with '{' must be JSON"
        ) from None
    except ValueError as err:  # an integer of more digits than Python converts
        raise ProtocolError(f"payload is not JSON that we read: {err}") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"payload must be a JSON object, got {_kind(value)}")
    return value


def parse_body(incoming: Incoming, bounds: Bounds) -> dict[str, Any]:
    """Return the request's fields; plain text becomes one user message.

    Raises:
        ProtocolError: Too large, or not readable.
    """
    if incoming.size > bounds.max_bytes:
        raise ProtocolError(
            f"query has {incoming.size} bytes, at most {bounds.max_bytes} are allowed",
            code="too_large",
        )
    if incoming.payload.lstrip()[:1] == b"{":
        return read_object(incoming.payload)
    try:
        text = incoming.payload.decode("utf-8")
    except UnicodeDecodeError as err:
        raise ProtocolError(f"payload is not UTF-8: byte {err.start} is invalid") from None
    if not text.strip():
        raise ProtocolError("payload is empty; expected a JSON object or text")
    return {"messages": [{"role": "user", "content": text}]}


def reply_address(
    incoming: Incoming,
    body: dict[str, Any],
    topics: Topics,
    allowed: tuple[str, ...],
    new_id: Callable[[], str],
) -> tuple[Address, ProtocolError | None]:
    """Decide where the answer goes; an unreadable request has an empty ``body``.

    Returns:
        The address, always usable, and the error to send there when what the requester asked for
        is not allowed.
    """
    problem: ProtocolError | None = None
    correlation = _correlation(incoming)
    if incoming.correlation is not None and correlation is None:
        problem = ProtocolError(
            f"Correlation Data has {len(incoming.correlation)} bytes, "
            f"at most {MAX_CORRELATION_BYTES} are allowed"
        )
    query_id, has_id = new_id(), False
    transaction: str | None = None
    try:
        if "id" in body:
            query_id, has_id = read_id(body["id"]), True
        transaction = read_transaction(body)
    except ProtocolError as err:
        problem = problem or err
    topic = topics.query_reply(query_id)
    try:
        wanted = _wanted_topic(incoming, body)
        if wanted is not None:
            topic = check_reply_topic(wanted, (topics.query_replies, *allowed))
    except ProtocolError as err:
        problem = problem or err
    named = has_id or correlation is not None
    return Address(query_id, topic, correlation, transaction, named), problem


def parse_query(
    incoming: Incoming, body: dict[str, Any], address: Address, bounds: Bounds
) -> Query:
    """Read the fields of a request.

    Raises:
        ProtocolError: One line that names the field, what was expected and what came.
    """
    unknown = sorted(set(body) - FIELDS)
    if unknown:
        raise ProtocolError(
            f"unknown field{'s' if len(unknown) > 1 else ''} "
            f"{', '.join(short(name) for name in unknown[:4])}; "
            f"known are {', '.join(sorted(FIELDS))}"
        )
    prompt, messages = _prompt_or_messages(body)
    numbers = {name: _number(body, name, bounds) for name in NUMBERS}
    deadline_s = min(numbers.pop("deadline_s"), bounds.max_deadline_s)
    if incoming.expiry_s is not None:
        deadline_s = min(deadline_s, incoming.expiry_s)
    params: dict[str, Any] = dict(numbers)
    params["stop"] = _stop(body)
    params["zero_skip"] = _flag(body, "zero_skip", bounds.zero_skip)
    stream = _flag(body, "stream", True)
    return Query(address, deadline_s, stream, prompt, messages, params)


# -- fields -------------------------------------------------------------------------------------


def _correlation(incoming: Incoming) -> bytes | None:
    data = incoming.correlation
    return data if data is not None and len(data) <= MAX_CORRELATION_BYTES else None


def _wanted_topic(incoming: Incoming, body: dict[str, Any]) -> str | None:
    named = body.get("reply_to")
    if "reply_to" in body and not isinstance(named, str):
        raise expected("reply_to", "a topic", named)
    if incoming.response_topic is not None:
        if "reply_to" in body:
            raise ProtocolError("reply_to and a Response Topic are both given; send one")
        return incoming.response_topic
    return named


def read_id(value: Any) -> str:
    """Return ``value`` when it is an id."""
    if not isinstance(value, str) or not ID_PATTERN.fullmatch(value):
        raise expected("id", f"1 to {MAX_ID_CHARS} of A-Z a-z 0-9 . _ -", value)
    return value


def read_transaction(body: dict[str, Any]) -> str | None:
    """Return the transaction that is to be echoed, if there is one."""
    value = body.get("transaction")
    if "transaction" not in body:
        return None
    if not isinstance(value, str) or len(value) > MAX_TRANSACTION_CHARS:
        raise expected("transaction", f"at most {MAX_TRANSACTION_CHARS} characters", value)
    return value


def _prompt_or_messages(body: dict[str, Any]) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    if ("prompt" in body) == ("messages" in body):
        found = "both" if "prompt" in body else "neither"
        raise ProtocolError(f"expected exactly one of prompt and messages, got {found}")
    if "prompt" in body:
        prompt = body["prompt"]
        if not isinstance(prompt, str) or not prompt:
            raise expected("prompt", "a text", prompt)
        return prompt, ()
    turns = body["messages"]
    if not isinstance(turns, list) or not 1 <= len(turns) <= MAX_MESSAGES:
        raise expected("messages", f"a list of 1 to {MAX_MESSAGES} objects", turns)
    return None, tuple(_turn(i, turn) for i, turn in enumerate(turns))


def _turn(index: int, turn: Any) -> tuple[str, str]:
    name = f"messages[{index}]"
    if not isinstance(turn, dict) or set(turn) != {"role", "content"}:
        raise expected(name, '{"role", "content"}', turn)
    if turn["role"] not in ROLES:
        raise expected(f"{name}.role", f"one of {', '.join(ROLES)}", turn["role"])
    if not isinstance(turn["content"], str):
        raise expected(f"{name}.content", "a text", turn["content"])
    return turn["role"], turn["content"]


def _number(body: dict[str, Any], name: str, bounds: Bounds) -> Any:
    rule = NUMBERS[name]
    if name not in body:
        defaults = {
            "max_tokens": bounds.default_max_tokens,
            "deadline_s": bounds.default_deadline_s,
        }
        default = defaults.get(name, rule.default)
        return int(default) if rule.is_integer else float(default)
    value = body[name]
    kinds = (int,) if rule.is_integer else (int, float)
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    if not is_number or not rule.low <= value <= rule.high:
        kind = "an integer" if rule.is_integer else "a number"
        raise expected(name, f"{kind} from {rule.low:g} to {rule.high:g}", value)
    return value if rule.is_integer else float(value)


def _stop(body: dict[str, Any]) -> list[str]:
    stops = body.get("stop", [])
    is_fine = (
        isinstance(stops, list)
        and len(stops) <= MAX_STOPS
        and all(isinstance(s, str) and 1 <= len(s) <= MAX_STOP_CHARS for s in stops)
    )
    if not is_fine:
        raise expected("stop", f"up to {MAX_STOPS} texts of 1 to {MAX_STOP_CHARS}", stops)
    return list(stops)


def _flag(body: dict[str, Any], name: str, default: bool) -> bool:
    value = body.get(name, default)
    if not isinstance(value, bool):
        raise expected(name, "true or false", value)
    return value


# -- wording ------------------------------------------------------------------------------------


def expected(name: str, what: str, value: Any) -> ProtocolError:
    """Word what is wrong with a value."""
    return ProtocolError(f"{name}: expected {what}, got {short(value)}")


def short(value: Any) -> str:
    """Return ``value`` in a few characters, for a message that goes back to the sender."""
    if isinstance(value, dict | list):
        return f"{_kind(value)} of {len(value)}"
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    return names.get(type(value), "null" if value is None else "a number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ProtocolError(f"field {short(twice)} is given twice")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ProtocolError(f"{name} is not a JSON number")
