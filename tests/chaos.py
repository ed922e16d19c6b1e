"""Lets everything go wrong for a while, and checks that every promise was kept all the same.

    python -m tests.chaos --minutes 3 --seed 7

Workstations with real agents get hundreds of jobs of all kinds, while agents and the broker are
killed, frozen and cut off. Then all of it is left in peace until it has drained, and what really
ran is compared with what was reported. Exit status 1: something forbidden happened; its story is
told, and the seed makes the same plan again.
"""

import argparse
import asyncio
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aio_pika
from aio_pika.exceptions import CONNECTION_EXCEPTIONS
from yarl import URL

from broker import (
    BrokerError,
    Dispatcher,
    DispatcherSettings,
    UnknownJob,
    Unreachable,
    stream,
    topology,
)
from broker.connection import Publisher, connect
from schemas import Command, Job, Report, State, Target, everyone, group, workstation
from tests.cutter import Cutter
from tests.plan import GROUP, Dose, Fault, Order, Plan, Seat, Wish, draw
from tests.rabbitmq import Broker, Node
from tests.verdict import Evidence, Figure, Finding, Line, Poison, Sent, judge
from tests.workstation import AgentProcess, Workstation

_DRAIN = 90.0
_QUIET = 4.0  # seconds in which nothing more may happen once all has ended
_END = 30.0
_SETTLED = 3.0
_TOLD = 20  # stories


def tell(text: str) -> None:
    """Print a line now."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


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
        """What all its lives logged."""
        return self.ws.folder / f"{self.seat.agent}.log"

    def start(self) -> None:
        """Start it, if it does not run."""
        if self.process is None:
            kind = "interactive" if self.seat.user else "service"
            self.process = AgentProcess(kind, self.environment, self.log).process
            self.lives += 1

    def check(self) -> None:
        """Note it where it ended though nobody had told it to; start it again."""
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
                self.fallen.append(f"{self.title} does not end when told to")
                self.process.kill()
            await asyncio.sleep(0.02)
        # Told to end before it listens to signals, it is ended by the first.
        if self.process.returncode not in (0, *(-number for number in numbers)):
            self.fallen.append(f"{self.title}, told to end: status {self.process.returncode}")
        self.process = None


class Run:
    """One run: a fleet, what is sent to it and done to it, and the evidence of what happened."""

    def __init__(self, plan: Plan, node: Broker, folder: Path, seed: int) -> None:
        self._plan = plan
        self._node = node
        self._folder = folder
        self._seed = seed
        # Names of its own: a given broker may still have the queues of others.
        run = secrets.token_hex(3)
        self._names = [f"chaos-{run}-{number}" for number in range(len(plan.seats))]
        self._group = f"{GROUP}-{run}"
        self._settings = DispatcherSettings(amqp_url=(node.url,), settle=timedelta(seconds=1))
        self._broker_lock = asyncio.Lock()
        self._offset: int | None = None
        self._remains_before: set[str] = set()
        self.evidence = Evidence()
        self.members: list[Member] = []
        self.cutters: list[Cutter] = []
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
                    others += [
                        tasks.create_task(self._strike(fault)) for fault in self._plan.faults
                    ]
                    await self._progress(seconds)
                    self._peace()
                    await asyncio.wait(others)
                    tell("all is sent and all faults are over; it drains")
                    await self._drain()
                    watch.cancel()
            self._gather_remains()
            await asyncio.gather(*(member.end(signal.SIGTERM) for member in self.members))
            await self._read()
        self._gather_remains()
        self._gather_files()

    # The fleet

    @asynccontextmanager
    async def _fleet(self) -> AsyncIterator[None]:
        stations: dict[int, Workstation] = {}
        try:
            for seat in self._plan.seats:
                name = self._names[seat.workstation]
                if seat.workstation not in stations:
                    (self._folder / name).mkdir()
                    stations[seat.workstation] = Workstation(
                        name, self._node.url, self._folder / name
                    )
                member = await self._member(seat, stations[seat.workstation])
                self.members.append(member)
                member.start()
            yield
        finally:
            for cutter in self.cutters:
                cutter.close()
            for member in self.members:
                if member.process is not None:
                    member.process.kill()
                    member.process.wait()
            for pid in self._commands():  # what runs on without its agent
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    async def _member(self, seat: Seat, ws: Workstation) -> Member:
        url = URL(self._node.url)
        if seat.cut:
            drawn = random.Random(f"{self._seed} {seat}")
            cutter = Cutter(url.host or "", url.port or 5672, drawn)
            self.cutters.append(cutter)
            url = url.with_host("127.0.0.1").with_port(await cutter.start())
        environment = {
            **ws.environment,
            "PCM_AMQP_URL": str(url),
            "PCM_USER": seat.user or "root",
            "PCM_GROUPS": self._group if seat.workstation in self._plan.group else "",
            "PCM_ACCEPT_OFFERS": str(seat.accepts),
            "PCM_NO_WINDOW": "true",
            # Commands get these, and none that begins with PCM_.
            "CHAOS_FILES": str(self._folder / "files"),
            "CHAOS_WORKSTATION": ws.name,
            "CHAOS_AGENT": seat.agent,
        }
        return Member(seat, ws, environment, self.evidence.fallen)

    async def _consuming(self) -> None:
        """Wait until each agent has been served by the broker once, and its queue is settled."""
        deadline = time.monotonic() + 60
        for member in self.members:
            while not any(event["event"] == "broker.connected" for event in _events(member.log)):
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

    def _peace(self) -> None:
        for cutter in self.cutters:
            cutter.cutting = False

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
        names = tuple(self._names[number] for number in order.workstations)
        sent = self.evidence.sent[job.id] = Sent(job, names, order.shape)
        async with asyncio.TaskGroup() as tasks:
            for wish in order.wishes:
                tasks.create_task(self._wish(wish, job))
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
        return tuple(workstation(self._names[number]) for number in order.workstations)

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

    async def _wish(self, wish: Wish, job: Job) -> None:
        """Tell the user's agent what the user wants; that it may not be there is part of it."""
        await asyncio.sleep(wish.after)
        member = next(member for member in self.members if member.seat == wish.seat)
        words = ["pcm-agent", wish.verb, job.id]
        if wish.verb == "postpone":
            words += ["--until", f"+{wish.postponed_by:.1f}s"]
        for _ in range(2):  # it may not have been offered yet
            try:
                done = await asyncio.to_thread(member.ws.run, *words, user=wish.seat.user)
            except subprocess.TimeoutExpired:
                self.evidence.fallen.append(f"{words}: does not end")
                return
            if done.returncode not in (0, 1) or "Traceback" in done.stderr:
                self.evidence.fallen.append(f"{words}: status {done.returncode}: {done.stderr}")
            if done.returncode == 0:
                self.faults[f"user: {wish.verb}"] += 1
                break
            await asyncio.sleep(1)

    async def _dose(self, dose: Dose) -> None:
        """Publish something that no agent can read."""
        await asyncio.sleep(dose.at)
        name = self._names[dose.workstation]
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
            async with self._broker_lock:
                self._note(fault.kind, f"{fault.kind}, {fault.seconds:.1f} s")
                await self._strike_broker(fault)
                self._note("", f"{fault.kind}: over")
            return
        member = next(member for member in self.members if member.seat == fault.seat)
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
                await asyncio.to_thread(node.ctl, "close_all_connections", "chaos")
            case "stop app":
                await asyncio.to_thread(node.ctl, "stop_app")
                await asyncio.sleep(fault.seconds)
                await asyncio.to_thread(node.ctl, "start_app")
            case "kill broker":
                assert isinstance(node, Node)
                node.kill()
                await asyncio.sleep(fault.seconds)
                await asyncio.to_thread(node.start)
                # RabbitMQ 3.10, killed again at once, may lose what the stream just confirmed.
                await asyncio.sleep(_SETTLED)
            case _:
                assert isinstance(node, Node)
                node.freeze()
                await asyncio.sleep(fault.seconds)
                node.thaw()

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
            await self._read()
            if not self.evidence.unfinished(time.time()):
                break
            await asyncio.sleep(1)
        else:
            tell(f"still waiting: {', '.join(self.evidence.unfinished(time.time())[:9])}")
        await asyncio.sleep(_QUIET)

    async def _read(self) -> None:
        """Take in what came to the stream and to the dead letters since the last time."""
        evidence = self.evidence
        try:
            async with connect(self._settings, "chaos") as connection:
                publisher = await Publisher.open(connection)
                async for entry in stream.read_all(connection, publisher, self._offset):
                    self._offset = entry.offset + 1
                    evidence.records += [
                        record
                        for record in entry.records()
                        if not isinstance(record, Report) or record.workstation in self._names
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
        mark = f"CHAOS_FILES={self._folder / 'files'}".encode()
        for process in Path("/proc").iterdir():
            with suppress(OSError):
                variables = (
                    (process / "environ").read_bytes().split(b"\0")
                    if process.name.isdecimal()
                    else []
                )
                if mark in variables and any(text.startswith(b"PCM_JOB_ID=") for text in variables):
                    yield int(process.name)

    def _gather_remains(self) -> None:
        for pid in self._commands():
            with suppress(OSError):
                text = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
                ours = [text for text in variables if text.startswith(("PCM_JOB", "CHAOS_W"))]
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
                name = topology.queue_name(kind, self._names[seat.workstation], seat.user)
                await channel.queue_delete(name)

    # What is told

    def table(self, findings: list[Finding]) -> str:
        """Return what was done and what came of it."""
        evidence = self.evidence
        ends: Counter[str] = Counter()
        for reports in evidence.reports().values():
            ends.update({str(report.state) for report in reports if report.state.final})
        told = evidence.reports().keys()
        unseen = sum(
            (sent.job.id, name) not in told
            for sent in evidence.sent.values()
            for name in sent.workstations
        )
        starts = sum(line.what == "start" for lines in evidence.lines.values() for line in lines)
        forbidden = Counter(finding.figure for finding in findings)
        rows: list[tuple[str, object]] = [
            ("workstations", len({member.ws for member in self.members})),
            ("agents", len(self.members)),
            ("their lives", sum(member.lives for member in self.members)),
            ("jobs", len(evidence.sent)),
            ("jobs x workstations", sum(len(sent.workstations) for sent in evidence.sent.values())),
            ("records read", len(evidence.records)),
            ("poison messages", len(evidence.poison)),
            ("connections cut", sum(cutter.cuts for cutter in self.cutters)),
            *sorted(self.faults.items()),
            ("executions", starts),
            *((f"ended {state}", count) for state, count in sorted(ends.items())),
            ("expired before any agent saw it", unseen),
            ("ended by another workstation's agent", _ended_by_others(evidence)),
            *((figure, forbidden[figure]) for figure in Figure),
        ]
        return "\n".join(f"{name:<48}{value:>8}" for name, value in rows)

    def story(self, finding: Finding) -> str:
        """Return all that is known of a finding's job there."""
        evidence = self.evidence
        lines = [f"--- {finding.figure}: {finding.text}"]
        sent = evidence.sent.get(finding.job_id)
        if sent:
            asked = sent.job.model_dump_json(exclude={"command"}, exclude_none=True)
            said = "stored" if sent.stored else "not stored"
            lines.append(f"{sent.job.context} {sent.job.requirement}, {said}: {asked}")
        events: list[tuple[float, str]] = [(at, f"fault  {text}") for at, text in self.diary]
        here = {finding.workstation} if finding.workstation else set(self._names)
        for (job_id, name), reports in evidence.reports().items():
            events += [
                (
                    report.at.timestamp(),
                    f"report {report.state} by {report.agent} of {name}: {report.reason}",
                )
                for report in reports
                if job_id == finding.job_id and name in here
            ]
        for (job_id, name), written in evidence.lines.items():
            events += [
                (
                    line.at,
                    f"file   {line.what} {line.token[:8]} by {line.agent} of {name}: {line.code}",
                )
                for line in written
                if job_id == finding.job_id and name in here
            ]
        for member in self.members:
            if member.ws.name in here:
                events += [
                    (_stamp(event), f"log    {json.dumps(event)}")
                    for event in _events(member.log)
                    if event.get("job") in (None, finding.job_id)
                ]
        told = [at for at, text in events if text.startswith(("report", "file"))]
        if sent:
            told.append(sent.job.created_at.timestamp())
        first, last = min(told, default=0) - 5, max(told, default=0) + 15
        lines += [
            f"{datetime.fromtimestamp(at, UTC):%H:%M:%S.%f} {text}"
            for at, text in sorted(events)
            if first <= at <= last or finding.job_id in text
        ]
        return "\n".join(lines)


def _ended_by_others(evidence: Evidence) -> int:
    """Count the commands that a signal ended, though they ended by themselves for their agent."""
    return sum(
        report.state is State.FAILED and report.result is not None and bool(report.result.signal)
        for reports in evidence.reports().values()
        for report in reports
    )


def _events(log: Path) -> Iterator[dict[str, Any]]:
    for line in log.read_text(errors="replace").splitlines():
        with suppress(ValueError):  # an agent may be killed while it writes
            event = json.loads(line)
            if isinstance(event, dict):
                yield event


def _stamp(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["timestamp"]).timestamp()


def chaos(
    seed: int,
    seconds: float,
    workstations: int,
    jobs: int,
    given: Broker | None = None,
) -> list[Finding]:
    """Make one run, tell of it, and return what is forbidden and happened."""
    tell(f"seed {seed}: {seconds:.0f} s, {workstations} workstations, {jobs} jobs")
    plan = draw(seed, seconds, workstations, jobs, given=given is not None)
    with _folder() as folder, _broker(given) as node:
        run = Run(plan, node, folder, seed)
        try:
            asyncio.run(run.work(seconds))
            if given is not None:
                asyncio.run(run.forget())
            findings = judge(run.evidence)
        except BaseException:
            (folder / "keep").touch()
            raise
        tell(run.table(findings))
        for finding in findings[:_TOLD]:
            tell(run.story(finding))
        if findings:
            (folder / "keep").touch()
            tell(f"seed {seed}: {len(findings)} findings")
        return findings


@contextmanager
def _folder() -> Iterator[Path]:
    """Make a folder, and remove it unless it is marked to be kept."""
    folder = Path(tempfile.mkdtemp(prefix="pcm-chaos-"))
    try:
        yield folder
    finally:
        if (folder / "keep").exists():
            tell(f"the agents' logs and ledgers are kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _broker(given: Broker | None) -> Iterator[Broker]:
    if given is not None:
        yield given
    else:
        with Node() as node:
            yield node


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3, help="how long faults strike")
    parser.add_argument("--seed", type=int, help="what is planned; default: any")
    parser.add_argument("--workstations", type=int, default=4)
    parser.add_argument("--jobs", type=int, help="default: 120 a minute")
    parser.add_argument("--url", help="another broker than one of its own")
    parser.add_argument("--ctl", default="rabbitmqctl", help="the command that steers it")
    words = parser.parse_args()
    seed = secrets.randbelow(10**6) if words.seed is None else words.seed
    given = Broker(words.url, words.ctl.split(), dict(os.environ)) if words.url else None
    jobs = round(words.minutes * 120) if words.jobs is None else words.jobs
    sys.exit(bool(chaos(seed, words.minutes * 60, words.workstations, jobs, given)))


if __name__ == "__main__":
    main()
