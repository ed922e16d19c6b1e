"""What a message in `pcm.dead` tells of itself: where it came from, when, and why."""

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aio_pika.abc import AbstractIncomingMessage, HeadersType

from broker.amqp import topology
from schemas.signature import HEADER

_ID_DIGITS = 12
# Where a letter came from. Not when, nor how often: the next look has to find the same id.
_ORIGIN = (
    "reason",
    "routing-key",
    "workstation",
    "agent",
    "x-first-death-queue",
    "x-first-death-reason",
    HEADER,  # a copy that is not signed is another
)
# What the broker adds at each look.
_COUNTERS = {"x-delivery-count", "x-acquired-count"}
_GIVEN_UP = {
    "rejected": "it was rejected without a reason",
    "delivery_limit": "it was delivered too often and never acknowledged",
}


@dataclass(frozen=True)
class Letter:
    """What could not be delivered or read, and why; equal copies are one letter.

    `headers` and `body` are there only where the whole of it was asked for.
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
    routing_key: str  # under which it was sent at first
    queue: str  # from which the broker gave up delivering it
    size: int
    login: str = ""  # which the broker has checked: who put it there, or sent it at first
    count: int = 1
    headers: HeadersType = field(default_factory=dict, repr=False)
    body: bytes | None = field(default=None, repr=False)


def read_letter(message: AbstractIncomingMessage) -> Letter:
    """Return what is told of a message; its headers and body are left out."""
    headers = message.headers
    queue = _text(headers.get("x-first-death-queue"))
    workstation, agent = topology.agent_of_queue(queue) or ("", "")
    death = _text(headers.get("x-first-death-reason"))
    reason = _text(headers.get("reason"))
    login = message.user_id or ""
    # What an enrolled agent says of itself is no proof; its login is.
    by = topology.agent_of_login(login)
    return Letter(
        id=_id(message),
        at=_at(message),
        workstation=by.workstation if by else _text(headers.get("workstation")) or workstation,
        agent=by.agent if by else _text(headers.get("agent")) or agent,
        job_id=_text(headers.get("job")) or (death and message.message_id) or "",
        reason=reason or _GIVEN_UP.get(death, death),
        kind=message.type or "",
        message_id=message.message_id or "",
        content_type=message.content_type or "application/octet-stream",
        # What the broker gave up keeps its key; what an agent sent here has one that leads here.
        routing_key=_text(headers.get("routing-key"))
        or (message.routing_key or "" if death else ""),
        queue=queue,
        size=len(message.body),
        login=login,
    )


def _id(message: AbstractIncomingMessage) -> str:
    parts = [_text(message.headers.get(name)).encode() for name in _ORIGIN]
    parts += [(message.type or "").encode(), message.body]
    seed = b"".join(hashlib.sha256(part).digest() for part in parts)
    return hashlib.sha256(seed).hexdigest()[:_ID_DIGITS]


def mark(message: AbstractIncomingMessage) -> bytes:
    """Return what tells a copy of a letter from those that come later, at each look the same."""
    headers = {name: value for name, value in message.headers.items() if name not in _COUNTERS}
    told = (sorted(headers.items()), message.message_id, message.timestamp, message.routing_key)
    return hashlib.sha256(repr(told).encode() + message.body).digest()


def _at(message: AbstractIncomingMessage) -> datetime | None:
    """Return when it came here."""
    deaths: Any = message.headers.get("x-death")
    found: Any = message.headers.get("at")
    try:
        found = datetime.fromisoformat(found) if found else deaths[0]["time"]
    except (ValueError, TypeError, LookupError):
        found = message.timestamp
    if not isinstance(found, datetime):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return "" if value is None else str(value)
