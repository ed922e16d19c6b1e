"""Reads what is delivered to an agent: a job, a cancellation, or neither."""

import json
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from broker import topology
from broker.topology import AgentKind
from schemas import Cancellation, Job, explain
from schemas.message import BODY_LIMIT
from schemas.names import check_name

Order = Job | Cancellation
_ORDER: TypeAdapter[Order] = TypeAdapter(Annotated[Order, Field(discriminator="kind")])


class Poison(Exception):
    """A message cannot be read or trusted; the text says why."""


def read_order(body: bytes, routing_key: str, kind: AgentKind) -> Order:
    """Read what was delivered to an agent of a kind.

    Raises:
        Poison: it is no job or cancellation, or came by a way that it should not have.
    """
    if len(body) > BODY_LIMIT:
        raise Poison(f"{len(body)} bytes are over the limit of {BODY_LIMIT}")
    try:
        order = _ORDER.validate_json(body, extra="ignore")
    except ValidationError as error:
        raise Poison(explain(error).removeprefix("job.").removeprefix("cancellation.")) from error
    except Exception as error:
        # Whatever it is: were it to end the agent, it would be delivered again, and end it again.
        raise Poison(f"cannot be read: {error}") from error
    if isinstance(order, Job):
        if routing_key not in topology.routing_keys(order):
            raise Poison(f"the routing key {routing_key} does not match the job")
        if not any(
            kind in route.bound
            for route in topology.ROUTES
            if (route.context, route.requirement) == (order.context, order.requirement)
        ):
            raise Poison(f"a {order.context} job is not for the {kind} agent")
    return order


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
