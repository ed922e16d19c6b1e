"""The claim and hand-over protocol, step by step, with crashes between and within its steps.

Three agents of one workstation have one foreground job. Each goes through its steps in the order
of agents/agent.py, over real claims and real ledgers; which of them moves next, what it wants,
and which dies when, is Hypothesis's choice. Afterwards all are started again and left in peace.
"""

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agents.claims.claim_file import UNKNOWN
from agents.claims.claims import Claims
from agents.identity import Identity
from agents.store.repair import open_ledger
from agents.store.transaction import JobRecord, Transaction
from broker import Progress
from broker.amqp.topology import AgentKind
from schemas import Command, Job, Report, State, everyone

JOB = Job(id="job-1", command=Command(argv=("true",)), targets=(everyone,))
RUN, EXPIRE, COUNT_DOWN = "run", "expire", "count down"
AGENTS = [
    Identity(AgentKind.SERVICE, "ws"),
    Identity(AgentKind.INTERACTIVE, "ws", "ada"),
    Identity(AgentKind.INTERACTIVE, "ws", "bob"),
]


class Crash(BaseException):
    """The process ends here."""


class Life:
    """One process of an agent, from its start to its end or its kill."""

    def __init__(self, model: "Model", identity: Identity) -> None:
        self.model = model
        self.identity = identity
        self.wish = RUN
        self.over = False
        self.claims = Claims(model.folder, identity.name)
        self.database = open_ledger(model.folder / f"{identity.name}.db")
        self.transaction = Transaction(self.database)
        self.steps = self._live()

    def step(self) -> None:
        """Go on to the next point between two steps."""
        try:
            next(self.steps)
        except StopIteration:
            self.over = True

    def die(self) -> None:
        """Leave everything as it is now; the kernel closes the files."""
        self.steps.close()
        self.claims.close()  # closes files, writes nothing
        self.database.close()

    def _live(self) -> Generator[None, None, None]:
        known = self.transaction.open_records()
        self.claims.conclude_all({entry.job.id for entry in known})
        yield
        if not known and not self.transaction.knows(JOB.id):
            with self._transaction():
                assert isinstance(self.transaction.accept(JOB, 1.0), JobRecord)
            yield
        yield from self._send()
        for entry in self.transaction.open_records():
            if entry.state is State.STARTED:
                yield from self._take_up(entry)
            else:
                yield from self._work(entry)
        yield from self._send()

    def _take_up(self, entry: JobRecord) -> Iterator[None]:
        while not self.claims.resume(JOB.id):
            decision = self.claims.decision(JOB.id)
            assert decision is not None
            if decision.agent != self.identity.name:
                self._save(replace(entry, open=False))
                return
            yield
        yield
        yield from self._finish(entry, State.INTERRUPTED)

    def _work(self, entry: JobRecord) -> Iterator[None]:
        while entry.open:
            wish = self.wish
            if wish == COUNT_DOWN and self.claims.take(JOB.id):
                yield  # it is held while the user looks at the countdown
            state = State.EXPIRED if wish == EXPIRE else State.STARTED
            if self.claims.decide(JOB.id, state):
                yield
                if state is State.STARTED:
                    entry = replace(entry, state=state, starts=1)
                    self._save(entry, self.identity.report(JOB.id, state))
                    yield
                    self.model.executions += 1
                    yield
                    state = State.FAILED  # by its exit code
                yield from self._finish(entry, state)
                return
            yield
            decision = self.claims.decision(JOB.id)
            service = self.identity.kind is AgentKind.SERVICE
            if decision is None:
                continue
            if decision.agent == self.identity.name or (decision.agent == UNKNOWN and service):
                expired = decision.state == State.EXPIRED
                yield from self._finish(entry, State.EXPIRED if expired else State.INTERRUPTED)
                return
            if decision.running and service:
                if self.claims.orphaned(JOB.id):
                    yield
                    if self.claims.adopt(JOB.id):
                        yield
                        yield from self._finish(entry, State.INTERRUPTED)
                        return
                yield
                continue
            self._save(replace(entry, open=False))
            return

    def _finish(self, entry: JobRecord, state: State) -> Iterator[None]:
        final = self.identity.report(JOB.id, state)
        self._save(replace(entry, state=state, open=False, final=final), final)
        yield
        self.claims.conclude(JOB.id)
        yield

    def _send(self) -> Iterator[None]:
        for pending in self.transaction.pending_reports(10):
            self.model.stream.append(Report.read(pending.body))
            yield  # the broker has it, and we do not know yet
            with self._transaction():
                self.transaction.delete_confirmed(pending.sequence)

    def _save(self, entry: JobRecord, report: Report | None = None) -> None:
        with self._transaction():
            self.transaction.save(entry)
            if report is not None:
                self.transaction.add_report(report)

    def _transaction(self) -> Any:
        self.database.execute("BEGIN IMMEDIATE")
        return self.database  # commits at the end of the block


class Model(RuleBasedStateMachine):
    """All agents of the workstation, and what is promised of them."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="pcm-protocol-"))
        self.executions = 0
        self.stream: list[Report] = []
        self.lives: dict[str, Life] = {}

    @rule(
        identity=st.sampled_from(AGENTS),
        wish=st.sampled_from([RUN, COUNT_DOWN, COUNT_DOWN, EXPIRE]),
        steps=st.integers(1, 4),
        fault=st.sampled_from([*[None] * 8, "between", "before", "half", "unsynced"]),
    )
    def move(self, identity: Identity, wish: str, steps: int, fault: str | None) -> None:
        """Let an agent take its next steps; start it if it does not run; perhaps kill it.

        Between two steps; or within the first of them: before it writes into a claim, when it
        has written half, or before that is synced.
        """
        life = self.lives.get(identity.name)
        if life is None or life.over:
            self._end(identity)
            life = self.lives[identity.name] = Life(self, identity)
        life.wish = wish
        write = os.pwrite

        def cut_off(file: int, *words: Any) -> int:
            if fault == "half":
                write(file, words[0][: len(words[0]) // 2], words[1])
            raise Crash

        call = "fsync" if fault == "unsynced" else "pwrite"
        if fault in ("before", "half", "unsynced"):
            with patch(f"agents.claims.claims.os.{call}", cut_off), suppress(Crash):
                life.step()
        else:
            for _ in range(steps):
                life.step()
                self.started_once()
        if fault is not None:
            self._end(identity)

    @invariant()
    def started_once(self) -> None:
        """The command is started at most once."""
        assert self.executions <= 1

    @invariant()
    def one_final_report(self) -> None:
        """The stream shows one end; how the command ended counts over what was concluded.

        The service concludes that a user's agent is gone; that agent may have stored the end, and
        send it when it comes back. Of two that concluded the same, the order of reports chooses.
        """
        finals = [report for report in self.stream if report.state.final]
        assert len({report.id for report in finals}) <= 1
        ran = [report for report in finals if report.state is State.FAILED]
        if finals:
            assert self._view() in (ran or finals)

    def teardown(self) -> None:
        """Start all again and leave them in peace: then the job ends, in what really happened."""
        try:
            for identity in AGENTS:
                self._end(identity)
            for _ in range(3):  # after the others ended, too
                for identity in AGENTS:
                    life = self.lives[identity.name] = Life(self, identity)
                    while not life.over:
                        life.step()
                    self._end(identity)
                self.started_once()
            ended = self._view()
            assert ended is not None
            assert ended.state in ({State.FAILED, State.INTERRUPTED, State.EXPIRED})
            if ended.state is State.FAILED:
                assert self.executions == 1
            if ended.state is State.EXPIRED:
                assert self.executions == 0
        finally:
            shutil.rmtree(self.folder)

    def _end(self, identity: Identity) -> None:
        if life := self.lives.pop(identity.name, None):
            life.die()

    def _view(self) -> Report | None:
        progress = Progress(JOB.id)
        for report in self.stream:
            progress.add(report)
        found = progress.workstations.get("ws")
        return found if found and found.state.final else None


TestProtocol = Model.TestCase
_EXAMPLES = 25 if settings.get_current_profile_name() == "quick" else 300
TestProtocol.settings = settings(max_examples=_EXAMPLES, stateful_step_count=30)
