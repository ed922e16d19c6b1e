"""Reads and validates the messages of an agent's queue: jobs, cancellations and pauses."""

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

MAX_REASON = 1000
"""Characters of the reason for a rejection."""
Order = Job | Cancellation | Pause
_KIND = re.compile(r"^(job|cancellation|pause)\.")
_ORDER: TypeAdapter[Order] = TypeAdapter(Annotated[Order, Field(discriminator="kind")])


class UnreadableMessage(PcmError):
    """A message cannot be read or trusted; the text gives the reason."""


def read_order(
    body: bytes,
    routing_key: str,
    reader: Identity,
    trust: Trust | None = None,
    signatures: object = None,
) -> Order:
    """Read a message that was delivered to an agent.

    Args:
        body: the message's body.
        routing_key: its routing key.
        reader: the agent that received it.
        trust: the trusted keys; None if messages need no signature.
        signatures: the message's header of signatures.

    Raises:
        UnreadableMessage: it is not a job, a cancellation or a pause, its routing key does not
            match its content, or a required signature is missing.
    """
    if len(body) > BODY_LIMIT:
        raise UnreadableMessage(f"{len(body)} bytes are over the limit of {BODY_LIMIT}")
    try:
        order = _ORDER.validate_json(body, extra="ignore")
    except ValidationError as error:
        raise UnreadableMessage(_KIND.sub("", explain(error))) from error
    except Exception as error:
        # Any error: if it ended the agent, the redelivered message would end it again.
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
    # The age of a job is checked by the inbox, and only if the ledger does not know the job.
    if not isinstance(order, Job) and (reason := trust.stale(order, now)):
        raise UnreadableMessage(reason)


def job_id_of(body: bytes, message_id: str | None) -> str | None:
    """Return the job id of an unreadable message, if it has one."""
    job_id: object = message_id
    try:
        content = json.loads(body)
        job_id = content.get("id") or content.get("job_id") or message_id
    except (ValueError, AttributeError, RecursionError):
        pass
    try:
        return check_name(job_id) if isinstance(job_id, str) else None
    except ValueError:
        return None
