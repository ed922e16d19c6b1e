"""Takes in what the broker delivers: read, kept in the ledger, and only then acknowledged."""

import asyncio
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import structlog
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage
from pydantic import Field, TypeAdapter, ValidationError

from agents.claims import Claims
from agents.ledger import Entry, Ledger, Tables
from broker import topology
from broker.connection import CALL_LIMIT, Publisher, Unreachable, translated
from broker.topology import AgentKind
from schemas import Cancellation, Context, Job, Report, Result, State, explain
from schemas.message import BODY_LIMIT
from schemas.names import check_name

_log = structlog.get_logger()
_PREFETCH = 500
_LONGEST_REASON = 1000
_Order = Annotated[Job | Cancellation, Field(discriminator="kind")]
_ORDER: TypeAdapter[Job | Cancellation] = TypeAdapter(_Order)


class Poison(Exception):
    """A message cannot be read or trusted; the text says why."""


@dataclass(frozen=True)
class Identity:
    """Who an agent is."""

    kind: AgentKind
    workstation: str
    user: str = ""

    @property
    def name(self) -> str:
        """The agent's name on its workstation."""
        return topology.agent_name(self.kind, self.user)

    def report(
        self,
        job_id: str,
        state: State,
        reason: str = "",
        *,
        result: Result | None = None,
        until: datetime | None = None,
    ) -> Report:
        """Return a report of this agent."""
        return Report(
            job_id=job_id,
            workstation=self.workstation,
            agent=self.name,
            state=state,
            reason=reason,
            result=result,
            until=until,
        )


def read_order(body: bytes, routing_key: str, kind: AgentKind) -> Job | Cancellation:
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


def _job_id(body: bytes, message_id: str | None) -> str | None:
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


@dataclass(frozen=True)
class _Refusal:
    message: AbstractIncomingMessage
    reason: str
    job_id: str | None


class Intake:
    """Moves an agent's queue into its ledger, many messages in one transaction."""

    def __init__(
        self,
        identity: Identity,
        ledger: Ledger,
        claims: Claims,
        accepted: Callable[[Entry], None],
        cancelled: Callable[[Cancellation], None],
        stored: Callable[[], None],
    ) -> None:
        self._identity = identity
        self._ledger = ledger
        self._claims = claims
        self._accepted = accepted
        self._cancelled = cancelled
        self._stored = stored

    async def run(
        self,
        connection: AbstractConnection,
        publisher: Publisher,
        stopping: asyncio.Event,
        consuming: Callable[[], None],
    ) -> None:
        """Consume until told to stop; call `consuming` once the broker delivers.

        Raises:
            Unreachable: the consumer was lost.
        """
        arrived: asyncio.Queue[AbstractIncomingMessage | None] = asyncio.Queue()
        identity = self._identity
        name = topology.queue_name(identity.kind, identity.workstation, identity.user)
        with translated(f"consuming {name}"):
            async with asyncio.timeout(CALL_LIMIT):
                channel = connection.channel()
                await channel.initialize()
                channel.close_callbacks.add(lambda *_: arrived.put_nowait(None))
                underlay = await channel.get_underlay_channel()
                underlay.on_consumer_cancel_callbacks.add(lambda *_: arrived.put_nowait(None))
                await channel.set_qos(prefetch_count=_PREFETCH)
                queue = await channel.declare_queue(name, passive=True)
                # The callback is cancelled when the connection drops: it only passes on.
                await queue.consume(arrived.put)
        consuming()
        stop = asyncio.create_task(stopping.wait())
        try:
            while not stopping.is_set():
                fetch = asyncio.create_task(arrived.get())
                await asyncio.wait({fetch, stop}, return_when=asyncio.FIRST_COMPLETED)
                if not fetch.done():
                    fetch.cancel()
                    break
                batch = [fetch.result()]
                while not arrived.empty():
                    batch.append(arrived.get_nowait())
                messages = [message for message in batch if message is not None]
                await self._take(messages, publisher)
                if len(messages) < len(batch):
                    raise Unreachable(f"consuming {name}: the consumer was lost")
        finally:
            stop.cancel()
        with translated(f"consuming {name}"):
            async with asyncio.timeout(CALL_LIMIT):
                await channel.close()

    async def _take(self, messages: list[AbstractIncomingMessage], publisher: Publisher) -> None:
        orders, refusals = self._read(messages)
        if orders:
            taken = await self._ledger.commit(lambda tables: self._enter(tables, orders))
            self._stored()
            for order in taken:
                if isinstance(order, Entry):
                    self._accepted(order)
                else:
                    self._cancelled(order)
        with translated("acknowledging"):
            if messages and not refusals:
                await messages[-1].ack(multiple=True)
                return
            # One by one, the good ones first: what is wrong with others must not come back on them.
            refused = {id(refusal.message) for refusal in refusals}
            for message in messages:
                if id(message) not in refused:
                    await message.ack()
        for refusal in refusals:
            await self._bury(refusal, publisher)
            await self._ledger.commit(partial(self._refuse, refusal=refusal))
            self._stored()
            with translated("acknowledging"):
                await refusal.message.ack()

    def _read(
        self, messages: list[AbstractIncomingMessage]
    ) -> tuple[list[Job | Cancellation], list[_Refusal]]:
        orders: list[Job | Cancellation] = []
        refusals: list[_Refusal] = []
        for message in messages:
            if message.type == "probe":
                continue
            try:
                orders.append(
                    read_order(message.body, message.routing_key or "", self._identity.kind)
                )
            except Poison as poison:
                job_id = _job_id(message.body, message.message_id)
                refusals.append(_Refusal(message, str(poison)[:_LONGEST_REASON], job_id))
        return orders, refusals

    def _enter(
        self, tables: Tables, orders: list[Job | Cancellation]
    ) -> list[Entry | Cancellation]:
        now = time.time()
        taken: list[Entry | Cancellation] = []
        report = self._identity.report
        for order in orders:
            if isinstance(order, Cancellation):
                tables.remember_cancellation(order.job_id, order.reason, now)
                taken.append(order)
                continue
            entry = tables.accept(order, now)
            if isinstance(entry, Entry):
                tables.report(report(order.id, State.RECEIVED))
                taken.append(entry)
            elif not entry:
                other = "another job with this id came and was refused"
                tables.report(report(order.id, State.CONFLICT, other))
        return taken

    def _refuse(self, tables: Tables, refusal: _Refusal) -> None:
        """Report a refused job, by one of the agents only where both received the message."""
        job_id = refusal.job_id
        if job_id is None or refusal.message.type == "cancellation":
            return
        shared = not (refusal.message.routing_key or "").startswith(f"{Context.BACKGROUND}.")
        if tables.knows(job_id):
            state = State.CONFLICT
        elif shared and not self._claims.decide(job_id, State.REFUSED):
            return
        else:
            state = State.REFUSED
            tables.refused(job_id, time.time())
        report = self._identity.report(job_id, state, refusal.reason)
        # The same message delivered again makes the same report, which views count once.
        seed = b"\0".join([job_id.encode(), self._identity.name.encode(), refusal.message.body])
        tables.report(report.model_copy(update={"id": hashlib.sha256(seed).hexdigest()[:32]}))

    async def _bury(self, refusal: _Refusal, publisher: Publisher) -> None:
        """Put a message where administrators find it, with the reason."""
        identity = self._identity
        message = refusal.message
        _log.warning("message.refused", reason=refusal.reason, job=refusal.job_id)
        await publisher.publish(
            topology.REPORTS,
            topology.report_key("dead", identity.workstation, identity.name),
            message.body,
            kind=message.type or "",
            message_id=message.message_id,
            unroutable_fails=True,
            headers={
                "reason": refusal.reason,
                "routing-key": message.routing_key or "",
                "workstation": identity.workstation,
                "agent": identity.name,
                "job": refusal.job_id or "",
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
            },
            content_type=message.content_type or "application/octet-stream",
        )
