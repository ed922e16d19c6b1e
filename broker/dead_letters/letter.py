"""Read a message in `pcm.dead`: its origin, time and reason."""

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aio_pika.abc import AbstractIncomingMessage, HeadersType

from broker.amqp import topology
from schemas.orders.signature import HEADER

_ID_DIGITS = 12
# The id is computed from these headers, not from times or counts, so that it stays the same.
_ORIGIN = (
    "reason",
    "routing-key",
    "workstation",
    "agent",
    "x-first-death-queue",
    "x-first-death-reason",
    HEADER,  # an unsigned copy is another letter
)
# The broker changes these headers at each delivery.
_COUNTERS = {"x-delivery-count", "x-acquired-count"}
_DEATH_REASONS = {
    "rejected": "it was rejected without a reason",
    "delivery_limit": "it was delivered too often without an acknowledgement",
}


@dataclass(frozen=True)
class Letter:
    """A message that could not be delivered or read; identical copies are one letter.

    `headers` and `body` are set only if its content was requested.
    """

    id: str
    at: datetime | None
    workstation: str
    agent: str
    job_id: str
    reason: str
    kind: str
    message_id: str
    content_type: str
    routing_key: str  # of the original message
    queue: str  # that the broker dead-lettered it from
    size: int
    login: str = ""  # of its publisher, verified by the broker
    verified: bool = False  # whether it has a login: else anyone names any workstation
    count: int = 1
    headers: HeadersType = field(default_factory=dict, repr=False)
    body: bytes | None = field(default=None, repr=False)


def read_letter(message: AbstractIncomingMessage) -> Letter:
    """Return the letter of a message, without headers and body."""
    headers = message.headers
    queue = _text(headers.get("x-first-death-queue"))
    workstation, agent = topology.agent_of_queue(queue) or ("", "")
    death = _text(headers.get("x-first-death-reason"))
    reason = _text(headers.get("reason"))
    login = message.user_id or ""
    # The login of an enrolled agent is verified; headers are not.
    sender = topology.agent_of_login(login)
    return Letter(
        id=_id(message),
        at=_at(message),
        workstation=sender.workstation
        if sender
        else _text(headers.get("workstation")) or workstation,
        agent=sender.agent if sender else _text(headers.get("agent")) or agent,
        job_id=_text(headers.get("job")) or (death and message.message_id) or "",
        reason=reason or _DEATH_REASONS.get(death, death),
        kind=message.type or "",
        message_id=message.message_id or "",
        content_type=message.content_type or "application/octet-stream",
        # A message dead-lettered by the broker keeps its key; one from an agent has the key of
        # pcm.dead.
        routing_key=_text(headers.get("routing-key"))
        or (message.routing_key or "" if death else ""),
        queue=queue,
        size=len(message.body),
        login=login,
        verified=bool(login),
    )


def _id(message: AbstractIncomingMessage) -> str:
    parts = [_text(message.headers.get(name)).encode() for name in _ORIGIN]
    parts += [(message.type or "").encode(), message.body]
    if not message.user_id:  # no copy of one that proves its sender
        parts.append(b"unverified")
    seed = b"".join(hashlib.sha256(part).digest() for part in parts)
    return hashlib.sha256(seed).hexdigest()[:_ID_DIGITS]


def fingerprint(message: AbstractIncomingMessage) -> bytes:
    """Return a hash that identifies a copy of a letter at each delivery."""
    headers = {name: value for name, value in message.headers.items() if name not in _COUNTERS}
    fields = (sorted(headers.items()), message.message_id, message.timestamp, message.routing_key)
    return hashlib.sha256(repr(fields).encode() + message.body).digest()


def _at(message: AbstractIncomingMessage) -> datetime | None:
    """Return when it was dead-lettered."""
    deaths: Any = message.headers.get("x-death")
    time: Any = message.headers.get("at")
    try:
        time = datetime.fromisoformat(time) if time else deaths[0]["time"]
    except (ValueError, TypeError, LookupError):
        time = message.timestamp
    if not isinstance(time, datetime):
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return "" if value is None else str(value)
