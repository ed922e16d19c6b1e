"""Reads what is delivered to an agent: a job, a cancellation, a pause, or none of them."""

import json
import re
from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from agents.identity import Identity
from agents.inbox.trust import Trust, Untrusted
from broker.amqp import topology
from schemas import Cancellation, Job, Pause, explain
from schemas.errors import PcmError
from schemas.message import BODY_LIMIT
from schemas.names import check_name

Order = Job | Cancellation | Pause
_KIND = re.compile(r"^(job|cancellation|pause)\.")
_ORDER: TypeAdapter[Order] = TypeAdapter(Annotated[Order, Field(discriminator="kind")])


class UnreadableMessage(PcmError):
    """A message cannot be read or trusted; the text says why."""


def read_order(
    body: bytes,
    routing_key: str,
    reader: Identity,
    trust: Trust | None = None,
    signatures: object = None,
) -> Order:
    """Read what was delivered to an agent.

    Args:
        body: the message's body.
        routing_key: under which it was published.
        reader: who reads it.
        trust: whose orders count; None: anyone's.
        signatures: the message's header of this name.

    Raises:
        UnreadableMessage: it is not a job, a cancellation or a pause, came by another way than
            its own, or lacks a signature that it must have.
    """
    if len(body) > BODY_LIMIT:
        raise UnreadableMessage(f"{len(body)} bytes are over the limit of {BODY_LIMIT}")
    try:
        order = _ORDER.validate_json(body, extra="ignore")
    except ValidationError as error:
        raise UnreadableMessage(_KIND.sub("", explain(error))) from error
    except Exception as error:
        # Whatever it is: were it to end the agent, it would be delivered again, and end it again.
        raise UnreadableMessage(f"cannot be read: {error}") from error
    if isinstance(order, Job):
        _check_job(order, routing_key, reader)
    elif isinstance(order, Pause):
        _check_pause(order, routing_key, reader)
    if trust is not None:
        _check_trust(order, body, trust, signatures)
    return order


def _check_job(job: Job, routing_key: str, reader: Identity) -> None:
    if routing_key not in topology.routing_keys(job):
        raise UnreadableMessage(f"the routing key {routing_key} does not match the job")
    if not any(
        reader.kind in route.bound
        for route in topology.ROUTES
        if (route.context, route.requirement) == (job.context, job.requirement)
    ):
        raise UnreadableMessage(f"a {job.context} job is not for the {reader.kind} agent")


def _check_pause(pause: Pause, routing_key: str, reader: Identity) -> None:
    if pause.workstation != reader.workstation:
        raise UnreadableMessage(f"a pause of {pause.workstation} is not for {reader.workstation}")
    if routing_key != topology.pause_key(reader.workstation):
        raise UnreadableMessage(f"the routing key {routing_key} does not match the pause")


def _check_trust(order: Order, body: bytes, trust: Trust, signatures: object) -> None:
    now = datetime.now(UTC)
    try:
        trust.check(order, body, signatures, now)
    except Untrusted as error:
        raise UnreadableMessage(str(error)) from error
    # A job's age counts only where the ledger does not know it: that is for who can look.
    if not isinstance(order, Job) and (reason := trust.stale(order, now)):
        raise UnreadableMessage(reason)


def job_id_of(body: bytes, message_id: str | None) -> str | None:
    """Return the id of the job that an unreadable message speaks of, if it can be found."""
    found: object = message_id
    try:
        content = json.loads(body)
        found = content.get("id") or content.get("job_id") or message_id
    except (ValueError, AttributeError, RecursionError):
        pass
    try:
        return check_name(found) if isinstance(found, str) else None
    except ValueError:
        return None
