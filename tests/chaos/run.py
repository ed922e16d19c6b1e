"""One run: a fleet of real agents, its jobs and faults, and the collected evidence."""

import asyncio
import os
import random
import secrets
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aio_pika
from aio_pika.exceptions import CONNECTION_EXCEPTIONS
from yarl import URL

from agents.store.state_folder import StateError
from agents.user.control import RequestRejected, ask
from broker import BrokerError, Dispatcher, DispatcherSettings, UnknownJob, Unreachable
from broker.amqp import topology
from broker.amqp.connection import connect
from broker.amqp.publisher import Publisher
from broker.amqp.topology import agent_word
from broker.stream import stream
from schemas import Cancellation, Command, Job, Report, Target, everyone, group, workstation
from tests.chaos.plan import GROUP, Dose, Fault, Order, Plan, Seat, Wish
from tests.chaos.story import events_of, tell
from tests.chaos.verdict import Evidence, Line, Poison, Sent
from tests.support.proxy import Proxy
from tests.support.rabbitmq import Broker, Node
from tests.support.waiting import LIMIT
from tests.support.workstation import AgentProcess, Workstation

_DRAIN = 90.0  # seconds without anything new, after which what is missing will not come
_QUIET = 4.0  # seconds in which nothing more may happen once all has ended
_END = 30.0
_SETTLED = 3.0
_BY_PROGRAM = 10  # one job in so many has its users' wishes sent by programs, which take long
_RESTARTED = 300.0  # seconds after which a broker that was struck has to be there again
_HANG = 120.0  # seconds after which a call to the broker that is there has to have ended


@dataclass(eq=False)
class Member:
    """An agent of the fleet, through all its lives."""

    seat: Seat
    ws: Workstation
    environment: dict[str, str]
    fallen: list[str]
    process: subprocess.Popen[bytes] | None = None
    lives: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def title(self) -> str:
        """Its name for people."""
        return f"{self.seat.agent} of {self.ws.name}"

    @property
    def log(self) -> Path:
        """The log of all its processes."""
        return self.ws.folder / f"{self.seat.agent}.log"

    def start(self) -> None:
        """Start it, if it does not run."""
        if self.process is None:
            kind = "interactive" if self.seat.user else "service"
            self.process = AgentProcess(kind, self.environment, self.log).process
            self.lives += 1

    def check(self) -> None:
        """Record it and start it again if it ended without a signal from us."""
        if self.process is not None and self.process.poll() is not None:
            self.fallen.append(f"{self.title} ended by itself: status {self.process.returncode}")
            self.process = None
            self.start()

    async def end(self, *numbers: int) -> None:
        """Send it signals, one shortly after the other, and wait for its end."""
        if self.process is None:
            return
        for number in numbers:
            self.process.send_signal(number)
            await asyncio.sleep(0.05)
        deadline = time.monotonic() + _END
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                self.fallen.append(f"{self.title} does not end on its signals")
                self.process.kill()
            await asyncio.sleep(0.02)
        # Before it handles signals, the first signal ends it.
        if self.process.returncode not in (0, *(-number for number in numbers)):
            self.fallen.append(f"{self.title}, ended by signals: status {self.process.returncode}")
        self.process = None


class Run:
    """One run: a fleet, its jobs and faults, and the collected evidence."""

    def __init__(self, plan: Plan, node: Broker, folder: Path, seed: int) -> None:
        self._plan = plan
        self._node = node
        self._folder = folder
        # Names of its own: a given broker may still have the queues of others.
        run = secrets.token_hex(3)
        self.names = [f"chaos-{run}-{number}" for number in range(len(plan.seats))]
        self._group = f"{GROUP}-{run}"
        self._settings = DispatcherSettings(amqp_url=(node.url,), settle=timedelta(seconds=1))
        self._broker_lock = asyncio.Lock()
        self._offset: int | None = None
        self._remains_before: set[str] = set()
        self.evidence = Evidence()
        self.members: list[Member] = []
        self.proxies: list[Proxy] = []
        self._drawn = random.Random(seed)
        self._cutting = True
        self.faults: Counter[str] = Counter()
        self.diary: list[tuple[float, str]] = []

    async def work(self, seconds: float) -> None:
        """Let everything happen, drain, and gather the evidence."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(16))
        (self._folder / "files").mkdir()
        async with self._fleet():
            async with Dispatcher.connect(self._settings) as dispatcher:
                await self._consuming()
                tell(f"{len(self.members)} agents are there; {len(self._plan.orders)} jobs follow")
                async with asyncio.TaskGroup() as tasks:
                    watch = tasks.create_task(self._watch())
                    others = [
                        tasks.create_task(self._order(dispatcher, o)) for o in self._plan.orders
                    ]
                    others += [tasks.create_task(self._dose(dose)) for dose in self._plan.doses]
                    faults = [tasks.create_task(self._strike(fault)) for fault in self._plan.faults]
                    await self._progress(seconds)
                    self._peace()
                    # First: on a busy machine, a killed broker takes minutes to be there again.
                    await self._end_of(faults, _RESTARTED)
                    await self._end_of(others, _HANG)
                    tell("all is sent and all faults are over; it drains")
                    await self._drain()
                    watch.cancel()
            self._gather_remains()
            await asyncio.gather(*(member.end(signal.SIGTERM) for member in self.members))
            await self._read()
        self._gather_remains()
        self._gather_files()

    async def _end_of(self, tasks: list["asyncio.Task[None]"], seconds: float) -> None:
        """Wait for the end of tasks; note and cancel those that do not end in time."""
        if not tasks:
            return
        _, hanging = await asyncio.wait(tasks, timeout=seconds)
        for task in hanging:
            self.evidence.fallen.append(f"does not end: {_where(task)}")
            task.cancel()

    # The fleet

    @asynccontextmanager
    async def _fleet(self) -> AsyncIterator[None]:
        stations: dict[int, Workstation] = {}
        try:
            for seat in self._plan.seats:
                name = self.names[seat.workstation]
                if seat.workstation not in stations:
                    (self._folder / name).mkdir()
                    stations[seat.workstation] = Workstation(
                        name, self._node.url, self._folder / name
                    )
                member = self._member(seat, stations[seat.workstation])
                self.members.append(member)
                member.start()
            yield
        finally:
            for proxy in self.proxies:
                proxy.close()
            for member in self.members:
                if member.process is not None:
                    member.process.kill()
                    member.process.wait()
            for pid in self._commands():  # what runs on without its agent
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _member(self, seat: Seat, ws: Workstation) -> Member:
        url = URL(self._node.url)
        if seat.cut:
            proxy = Proxy(url.port or 5672)
            self.proxies.append(proxy)
            url = url.with_port(proxy.port)
        environment = {
            **ws.environment,
            "PCM_AMQP_URL": str(url),
            "PCM_USER": seat.user or "root",
            "PCM_GROUPS": self._group if seat.workstation in self._plan.group else "",
            "PCM_ACCEPT_OFFERS": str(seat.accepts),
            "PCM_NO_WINDOW": "true",
            "TMPDIR": str(self._folder / "seats" / ws.name / seat.agent),
        }
        return Member(seat, ws, environment, self.evidence.fallen)

    async def _consuming(self) -> None:
        """Wait until each agent has been served by the broker once, and its queue is settled."""
        deadline = time.monotonic() + LIMIT
        for member in self.members:
            while not any(event["event"] == "broker.connected" for event in events_of(member.log)):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{member.title} does not connect")
                await asyncio.sleep(0.1)
        await asyncio.sleep(1)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            for member in self.members:
                if not member.lock.locked():
                    member.check()
            for proxy in self.proxies:
                if self._cutting and not proxy.cutting:
                    proxy.cut_after(int(10 ** self._drawn.uniform(4, 5.5)))

    def _peace(self) -> None:
        self._cutting = False
        for proxy in self.proxies:
            proxy.cut_after(None)

    # What is sent

    async def _order(self, dispatcher: Dispatcher, order: Order) -> None:
        await asyncio.sleep(order.at)
        now = datetime.now(UTC)
        times: dict[str, Any] = {
            name: now + timedelta(seconds=after) for name, after in order.times.items()
        }
        job = Job(
            id=f"{now:%Y%m%d-%H%M%S}-{order.number:04}-{secrets.token_hex(3)}",
            name=f"{order.number} {order.shape}",
            command=Command(**order.command),
            targets=self._targets(order),
            **times,
        )
        names = tuple(self.names[number] for number in order.workstations)
        sent = self.evidence.sent[job.id] = Sent(job, names, order.shape)
        async with asyncio.TaskGroup() as tasks:
            for wish in order.wishes:
                by_program = order.number % _BY_PROGRAM == 0
                tasks.create_task(self._wish(wish, job, by_program=by_program))
            await self._dispatch(dispatcher, sent)
            if order.again_after is not None:
                tasks.create_task(self._again(dispatcher, sent, order.again_after))
            if order.cancelled_after is not None:
                tasks.create_task(self._cancel(dispatcher, sent, order.cancelled_after))

    def _targets(self, order: Order) -> tuple[Target, ...]:
        if order.scope == "all":
            return (everyone,)
        if order.scope == "group":
            return (group(self._group),)
        return tuple(workstation(self.names[number]) for number in order.workstations)

    async def _dispatch(self, dispatcher: Dispatcher, sent: Sent) -> None:
        """Send a job until it is stored; what failed may have arrived as well."""
        while True:
            try:
                await dispatcher.dispatch(sent.job)
            except Unreachable:
                continue
            except BrokerError as error:  # the broker is there, and all queues should be
                self.evidence.fallen.append(f"{sent.job.id} cannot be sent: {error}")
                sent.given_up = not sent.stored
            except ValueError:  # it expired meanwhile
                sent.given_up = not sent.stored
            else:
                sent.stored = True
            return

    async def _again(self, dispatcher: Dispatcher, sent: Sent, after: float) -> None:
        await asyncio.sleep(after)
        self.faults["sent twice"] += 1
        await self._dispatch(dispatcher, sent)

    async def _cancel(self, dispatcher: Dispatcher, sent: Sent, after: float) -> None:
        await asyncio.sleep(after)
        sent.withdrawing = True
        while not sent.withdrawn:
            try:
                await dispatcher.cancel(sent.job.id, "changed our mind")
                sent.withdrawn = True
            except Unreachable:
                continue
            except UnknownJob as error:
                if sent.stored:
                    self.evidence.fallen.append(f"the dispatcher knows no stored job: {error}")
                return

    async def _wish(self, wish: Wish, job: Job, *, by_program: bool) -> None:
        """Send the user's wish to the agent, which may not be there."""
        await asyncio.sleep(wish.after)
        send = self._run_program if by_program else self._ask
        for _ in range(2):  # it may not have been offered yet
            if await asyncio.to_thread(send, wish, job):
                self.faults[f"user: {wish.verb}"] += 1
                break
            await asyncio.sleep(1)

    def _run_program(self, wish: Wish, job: Job) -> bool:
        """Run `pcm-agent` for a wish; return whether the agent accepted it."""
        words = ["pcm-agent", wish.verb, job.id]
        if wish.verb == "postpone":
            words += ["--until", f"+{wish.postponed_by:.1f}s"]
        try:
            done = self._member_at(wish.seat).ws.run(*words, user=wish.seat.user)
        except subprocess.TimeoutExpired:
            self.evidence.fallen.append(f"{words}: does not end")
            return False
        if done.returncode not in (0, 1) or "Traceback" in done.stderr:
            self.evidence.fallen.append(f"{words}: status {done.returncode}: {done.stderr}")
        return done.returncode == 0

    def _ask(self, wish: Wish, job: Job) -> bool:
        """Send a wish to the control socket, as `pcm-agent` does; return whether it is accepted."""
        request = {"do": wish.verb, "job": job.id}
        if wish.verb == "postpone":
            until = datetime.now(UTC) + timedelta(seconds=wish.postponed_by)
            request["until"] = until.isoformat()
        try:
            ask(self._member_at(wish.seat).ws.state_dir / agent_word(wish.seat.agent), request)
        except (StateError, RequestRejected):
            return False
        return True

    def _member_at(self, seat: Seat) -> Member:
        return next(member for member in self.members if member.seat == seat)

    async def _dose(self, dose: Dose) -> None:
        """Publish something that no agent can read."""
        await asyncio.sleep(dose.at)
        name = self.names[dose.workstation]
        job_id = f"poison-{dose.number}-{name}"
        reached = [
            seat.agent
            for seat in self._plan.seats
            if seat.workstation == dose.workstation
            and (dose.context == "foreground" or not seat.user)
        ]
        command = Command(argv=("true",), background=dose.context == "foreground")
        job = Job(id=job_id, command=command, targets=(workstation(name),))
        body = {
            "garbage": b"\x00\xff {",
            "wrong version": job.body().replace(b'"1.0"', b'"2.0"'),
            "wrong key": job.body(),
        }[dose.kind]
        key = f"{dose.context}.optional.workstation.{name}"
        while True:
            try:
                async with connect(self._settings, "poison") as connection:
                    publisher = await Publisher.open(connection)
                    await publisher.publish(topology.JOBS, key, body, kind="job", message_id=job_id)
            except Unreachable:
                await asyncio.sleep(1)
            else:
                break
        self.evidence.poison.append(Poison(job_id, name, tuple(reached)))

    # What goes wrong

    async def _strike(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at)
        if fault.seat is None:
            # On a busy machine the faults would catch up, and leave no time between them.
            if self._broker_lock.locked():
                return
            async with self._broker_lock:
                self._note(fault.kind, f"{fault.kind}, {fault.seconds:.1f} s")
                await self._strike_broker(fault)
                self._note("", f"{fault.kind}: over")
            return
        member = self._member_at(fault.seat)
        if member.lock.locked():
            return
        async with member.lock:
            member.check()
            self._note(fault.kind, f"{fault.kind} {member.title}, {fault.seconds:.1f} s")
            if fault.kind.startswith("freeze"):
                await self._freeze(member, fault.seconds)
            if fault.kind != "freeze":
                signals = {
                    "terminate": [signal.SIGTERM],
                    "terminate twice": [signal.SIGTERM, signal.SIGTERM],
                }.get(fault.kind, [signal.SIGKILL])
                await member.end(*signals)
                await asyncio.sleep(fault.seconds)
                member.start()

    async def _freeze(self, member: Member, seconds: float) -> None:
        assert member.process is not None
        began = time.time()
        member.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        member.process.send_signal(signal.SIGCONT)
        self.evidence.frozen[member.ws.name, member.seat.agent].append((began, time.time()))

    async def _strike_broker(self, fault: Fault) -> None:
        node = self._node
        match fault.kind:
            case "close connections":
                await asyncio.to_thread(node.close_connections)
            case "stop app":
                await asyncio.to_thread(node.ctl, "stop_app")
                await asyncio.sleep(fault.seconds)
                await asyncio.to_thread(node.ctl, "start_app")
            case "kill broker":
                assert isinstance(node, Node)
                node.kill()
                await asyncio.sleep(fault.seconds)
                await asyncio.to_thread(node.start)
                await self._settled()
            case _:
                assert isinstance(node, Node)
                node.freeze()
                await asyncio.sleep(fault.seconds)
                node.thaw()

    async def _settled(self) -> None:
        """Wait until the broker's stream is there again.

        RabbitMQ 3.10 that is killed while it recovers a stream may lose what that confirmed, or
        bring it up no more ("member started unexpected"): what we test is not that.
        """
        while True:
            try:
                async with connect(self._settings, "chaos") as connection:
                    await stream.append_end_marker(await Publisher.open(connection))
            except BrokerError:
                await asyncio.sleep(1)
            else:
                await asyncio.sleep(_SETTLED)
                return

    def _note(self, kind: str, text: str) -> None:
        self.diary.append((time.time(), text))
        if kind:
            self.faults[kind] += 1

    # What came of it

    async def _progress(self, seconds: float) -> None:
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            await asyncio.sleep(min(15, seconds - passed))
            stored = sum(sent.stored for sent in self.evidence.sent.values())
            runs = len(list((self._folder / "files").iterdir()))
            tell(f"{time.monotonic() - began:4.0f} s: {stored} jobs sent, {runs} runs")

    async def _drain(self) -> None:
        """Wait until everything has ended, and then a little for what should not come."""
        due = [
            moment.timestamp()
            for sent in self.evidence.sent.values()
            for moment in (sent.job.mandatory_at, sent.job.offer_at, sent.job.expires_at)
            if isinstance(moment, datetime)
        ]
        limit = max([time.time(), *due]) + _DRAIN
        while time.time() < limit:
            read = len(self.evidence.records)
            await self._read()
            if not self.evidence.unfinished(time.time()):
                break
            if len(self.evidence.records) > read:
                limit = max(limit, time.time() + _DRAIN)
            await asyncio.sleep(1)
        else:
            tell(f"still waiting: {', '.join(self.evidence.unfinished(time.time())[:9])}")
        await asyncio.sleep(_QUIET)

    async def _read(self) -> None:
        """Read the new entries of the stream and the new dead letters."""
        evidence = self.evidence
        try:
            async with connect(self._settings, "chaos") as connection:
                publisher = await Publisher.open(connection)
                async for entry in stream.read_all(connection, publisher, self._offset):
                    self._offset = entry.offset + 1
                    evidence.records += [
                        record
                        for record in entry.records()
                        if isinstance(record, Job | Cancellation)
                        or (isinstance(record, Report) and record.workstation in self.names)
                    ]
                channel = await connection.channel()
                dead = await channel.get_queue(topology.DEAD)
                while message := await dead.get(fail=False):
                    said = message.headers
                    key = (
                        message.message_id or "",
                        str(said.get("workstation")),
                        str(said.get("agent")),
                    )
                    evidence.dead.add(key)
                    await message.ack()
        except (Unreachable, *CONNECTION_EXCEPTIONS):
            return  # the next time, then

    def _commands(self) -> Iterator[int]:
        """Yield the processes of commands."""
        mark = f"TMPDIR={self._folder / 'seats'}/".encode()
        for process in Path("/proc").iterdir():
            with suppress(OSError):
                variables = (
                    (process / "environ").read_bytes().split(b"\0")
                    if process.name.isdecimal()
                    else []
                )
                names = {text.partition(b"=")[0] for text in variables}
                if b"PCM_JOB_ID" in names and any(text.startswith(mark) for text in variables):
                    yield int(process.name)

    def _gather_remains(self) -> None:
        for pid in self._commands():
            with suppress(OSError):
                text = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
                ours = [text for text in variables if text.startswith(("PCM_JOB", "TMPDIR"))]
                self.evidence.remains.append(f"{pid} {text[-60:]!r} {' '.join(ours)}")

    def _gather_files(self) -> None:
        for file in (self._folder / "files").iterdir():
            name, _, job_id = file.name.partition(".")
            lines = [Line.read(text) for text in file.read_text().splitlines()]
            self.evidence.lines[job_id, name] = lines

    async def forget(self) -> None:
        """Remove the queues of the fleet from a broker that stays."""
        async with await aio_pika.connect(self._node.url) as connection:
            channel = await connection.channel()
            for seat in self._plan.seats:
                kind = topology.AgentKind.INTERACTIVE if seat.user else topology.AgentKind.SERVICE
                name = topology.queue_name(kind, self.names[seat.workstation], seat.user)
                await channel.queue_delete(name)


def _where(task: "asyncio.Task[Any]") -> str:
    """Return what a task waits for, from its own function inwards."""
    places = []
    waiting: Any = task.get_coro()
    while waiting is not None:
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "ag_frame", None)
        if frame is None:
            places.append(repr(waiting))
            break
        places.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "ag_await", None)
    return " > ".join(places)
