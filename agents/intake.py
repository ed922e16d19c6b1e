"""Takes in what the broker delivers: read, kept in the ledger, and only then acknowledged."""

import asyncio
import hashlib
import json
import random
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Protocol

import structlog
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage
from pydantic import Field, TypeAdapter, ValidationError

from agents.claims import Claims, Decision
from agents.ledger import Ledger
from agents.settings import AgentSettings
from agents.tables import Entry, Known, Tables
from broker import topology
from broker.connection import CALL_LIMIT, Publisher, Unreachable, translated
from broker.topology import AgentKind
from schemas import Cancellation, Context, Job, Report, Result, State, explain
from schemas.message import BODY_LIMIT
from schemas.names import check_name
from schemas.report import final_id

_log = structlog.get_logger()
_PREFETCH = 500
_LONGEST_REASON = 1000
_SUSPECT = 2  # times that a message came back to us: an ordinary loss of the connection is one
_GRAVES = 100
_GRAVE_BYTES = 8 * 1024 * 1024
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
            id=final_id(job_id, self.workstation) if state.final else uuid.uuid4().hex,
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


def _returns(message: AbstractIncomingMessage) -> int:
    """Return how often a quorum queue delivered a message before, and got it back."""
    count = message.headers.get("x-delivery-count", 0)
    return count if isinstance(count, int) else 0


class Past(Protocol):
    """Knows what was done here before this ledger was begun."""

    async def ended_here(
        self, connection: AbstractConnection, publisher: Publisher, jobs: Collection[Job]
    ) -> dict[str, Entry]:
        """Return entries for those jobs that were run here, or begun."""


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
        settings: AgentSettings,
        ledger: Ledger,
        claims: Claims,
        past: Past,
        accepted: Callable[[Entry], None],
        cancelled: Callable[[Cancellation], None],
        stored: Callable[[], None],
    ) -> None:
        self._identity = identity
        self._keep = settings.keep.total_seconds()
        self._ledger = ledger
        self._claims = claims
        self._past = past
        self._accepted = accepted
        self._cancelled = cancelled
        self._stored = stored
        self._graves: asyncio.Queue[_Refusal] = asyncio.Queue()
        self._unburied = 0
        self._made_at = 0.0

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
        self._made_at = (await self._ledger.commit(Tables.life)).made_at
        consuming()
        self._graves = asyncio.Queue()
        self._unburied = 0
        async with asyncio.TaskGroup() as tasks:
            burying = tasks.create_task(self._bury_all(publisher))
            stop = tasks.create_task(stopping.wait())
            while not stopping.is_set():
                fetch = tasks.create_task(arrived.get())
                await asyncio.wait({fetch, stop}, return_when=asyncio.FIRST_COMPLETED)
                if not fetch.done():
                    fetch.cancel()
                    break
                batch = [fetch.result()]
                while not arrived.empty():
                    batch.append(arrived.get_nowait())
                await self._take([message for message in batch if message], connection, publisher)
                if None in batch:
                    raise Unreachable(f"consuming {name}: the consumer was lost")
            burying.cancel()
            stop.cancel()
        with translated(f"consuming {name}"):
            async with asyncio.timeout(CALL_LIMIT):
                await channel.close()

    async def _take(
        self,
        messages: list[AbstractIncomingMessage],
        connection: AbstractConnection,
        publisher: Publisher,
    ) -> None:
        """Take in a batch; alone, and in any order, what came back to us again and again.

        One of those may be what ended this agent each time: it must not take others along.
        """
        fresh = [message for message in messages if _returns(message) < _SUSPECT]
        suspects = [message for message in messages if _returns(message) >= _SUSPECT]
        random.shuffle(suspects)
        for batch in (fresh, *([message] for message in suspects)):
            if batch:
                await self._take_together(batch, connection, publisher, alone=not suspects)

    async def _take_together(
        self,
        messages: list[AbstractIncomingMessage],
        connection: AbstractConnection,
        publisher: Publisher,
        *,
        alone: bool,
    ) -> None:
        """Take in some messages at once; `alone`: no others that were delivered wait."""
        orders, refusals = self._read(messages)
        if orders:
            ended = await self._ended_here(orders, connection, publisher)
            future = self._ledger.commit(lambda tables: self._enter(tables, orders, ended))
            future.add_done_callback(self._entered)
            # Should the connection be lost meanwhile: what is in the ledger is in the agent.
            await asyncio.shield(future)
        self._unburied += len(refusals)
        refused = {id(refusal.message) for refusal in refusals}
        with translated("acknowledging"):
            if alone and not self._unburied:
                await messages[-1].ack(multiple=True)  # and with it all that came before it
            else:
                for message in messages:
                    if id(message) not in refused:
                        await message.ack()
        for refusal in refusals:
            self._graves.put_nowait(refusal)

    def _entered(self, future: "asyncio.Future[list[Entry | Cancellation]]") -> None:
        if future.cancelled() or future.exception() is not None:
            return
        self._stored()
        for order in future.result():
            if isinstance(order, Entry):
                self._accepted(order)
            else:
                self._cancelled(order)

    async def _ended_here(
        self,
        orders: list[Job | Cancellation],
        connection: AbstractConnection,
        publisher: Publisher,
    ) -> dict[str, Entry]:
        """Return what is known of jobs older than the ledger: a lost one may have run them."""
        old = [
            order
            for order in orders
            if isinstance(order, Job) and order.created_at.timestamp() < self._made_at
        ]
        if not old:
            return {}
        unknown = await self._ledger.commit(
            lambda tables: [job for job in old if not tables.knows(job.id)]
        )
        return await self._past.ended_here(connection, publisher, unknown) if unknown else {}

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
        self, tables: Tables, orders: list[Job | Cancellation], ended: dict[str, Entry]
    ) -> list[Entry | Cancellation]:
        now = time.time()
        taken: list[Entry | Cancellation] = []
        report = self._identity.report
        for order in orders:
            if isinstance(order, Cancellation):
                tables.remember_cancellation(order.job_id, order.reason, now)
                taken.append(order)
                continue
            if (former := ended.get(order.id)) and not tables.knows(order.id):
                tables.insert(former)
                if former.open:
                    taken.append(former)
                continue
            entry = tables.accept(order, now, now - self._keep)
            if isinstance(entry, Entry):
                tables.report(report(order.id, State.RECEIVED))
                taken.append(entry)
            elif entry is Known.OTHER:
                other = "another job with this id came and was refused"
                tables.report(report(order.id, State.CONFLICT, other))
            elif entry is Known.FORGOTTEN:
                old = f"was made over {self._keep:g} s ago: whether it ran here is not known"
                tables.report(report(order.id, State.REFUSED, f"{old}; send it as a new job"))
        return taken

    async def _bury_all(self, publisher: Publisher) -> None:
        """Set aside what was refused, many at once, while good messages go on."""
        while True:
            refusals = [await self._graves.get()]
            while (
                not self._graves.empty()
                and len(refusals) < _GRAVES
                and sum(len(refusal.message.body) for refusal in refusals) < _GRAVE_BYTES
            ):
                refusals.append(self._graves.get_nowait())
            async with asyncio.TaskGroup() as tasks:
                for refusal in refusals:
                    tasks.create_task(self._bury(refusal, publisher))

            def refuse(tables: Tables, refusals: list[_Refusal] = refusals) -> None:
                for refusal in refusals:
                    self._refuse(tables, refusal)

            await self._ledger.commit(refuse)
            self._stored()
            with translated("acknowledging"):
                for refusal in refusals:
                    await refusal.message.ack()
            self._unburied -= len(refusals)

    def _refuse(self, tables: Tables, refusal: _Refusal) -> None:
        """Report a refused job, by one of the agents only where both received the message."""
        job_id = refusal.job_id
        if job_id is None or refusal.message.type == "cancellation":
            return
        shared = not (refusal.message.routing_key or "").startswith(f"{Context.BACKGROUND}.")
        if tables.knows(job_id):
            state = State.CONFLICT
        elif shared and not self._refuses(job_id):
            return
        else:
            state = State.REFUSED
            tables.refused(job_id, time.time())
        report = self._identity.report(job_id, state, refusal.reason)
        if not state.final:
            # The same message delivered again makes the same report, which views count once.
            seed = b"\0".join([self._identity.name.encode(), refusal.message.body])
            report = report.model_copy(update={"id": hashlib.sha256(seed).hexdigest()[:32]})
        tables.report(report)

    def _refuses(self, job_id: str) -> bool:
        """Whether it is ours to refuse a job: now, or before a crash kept us from saying so."""
        if self._claims.decide(job_id, State.REFUSED):
            return True
        return self._claims.decision(job_id) == Decision(self._identity.name, State.REFUSED)

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
