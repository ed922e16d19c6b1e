"""Enrolment, signatures, secrets and `run_as` together: what one of them keeps, none breaks."""

import asyncio
import base64
import itertools
import json
import os
import pwd
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import aio_pika
import pytest
from yarl import URL

from broker import Dispatcher, DispatcherSettings
from broker.amqp import topology
from schemas import Report, State, TrustedKey
from tests.support import other, programs
from tests.support.admin import check_in
from tests.support.counted import no_traceback
from tests.support.keys import Keys
from tests.support.processes import alive
from tests.support.programs import scrambled
from tests.support.site import Settings, Site
from tests.support.waiting import LIMIT, until_there
from tests.support.workstation import (
    PCM_AGENT,
    AgentProcess,
    Workstation,
    agents_of,
    checked_in,
    final,
)

_numbers = itertools.count(1)
VALUE = "correct-horse-battery-staple"
USER = pwd.getpwuid(other.UID).pw_name
AS_USER = ("--run-as", USER) if os.geteuid() == 0 else ()
ID = other.UID if AS_USER else os.geteuid()


class Plant:
    """Enrolled workstations that take signed orders only, and the administrator who signs."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site = site
        self.folder = folder
        self.keys = Keys(folder)
        self.keys.trust("chief")
        self.reaching = DispatcherSettings(amqp_url=(site.url,))
        self.workstations: list[Workstation] = []
        self.settings: dict[tuple[str, str], Settings] = {}
        (folder / "token").write_text(VALUE + "\n")
        self.secret = ("--secret", f"TOKEN=@{folder}/token")

    def enrol(self, *words: str) -> Workstation:
        """Enrol a workstation."""
        number = next(_numbers)
        folder = self.folder / f"ws-{number}"
        folder.mkdir()
        ws = Workstation(f"ws-{os.getpid()}-{number}", "", folder)
        for name in ("PCM_AMQP_URL", "PCM_WORKSTATION", "PCM_USER"):
            del ws.environment[name]
        self.workstations.append(ws)
        self.enrol_again(ws, *words)
        return ws

    def enrol_again(self, ws: Workstation, *words: str) -> None:
        for agent, given in self.site.enrol(ws.name, *words).items():
            self.settings[ws.name, agent] = given

    def start(self, ws: Workstation, agent: str, **more: str) -> AgentProcess:
        """Start an agent with what was handed out."""
        given = self.settings[ws.name, agent]
        settings = {name.removeprefix("PCM_").lower(): value for name, value in given.items()}
        settings |= {"trusted_keys": str(self.keys.folder), **more}
        return ws.start(agent.partition("-")[0], connected=True, program=PCM_AGENT, **settings)

    async def there(self, ws: Workstation, agents: int = 1) -> None:
        await checked_in(self.reaching, ws, agents)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "PCM_AMQP_URL": self.site.url,
            "PCM_MANAGEMENT_URL": self.site.broker.management_url,
            "PCM_HISTORY_URL": f"sqlite:///{self.folder}/history.db",
            "PCM_SIGNING_KEY": str(self.keys.private["chief"]),
            "PCM_SETTLE": "500ms",
        }

    def pcm(self, *words: str, **more: str) -> programs.Done:
        """Run pcm as the administrator who signs; settings without PCM_."""
        return programs.run(
            "pcm",
            words,
            self.environment | {f"PCM_{name.upper()}": value for name, value in more.items()},
            cwd=self.folder,
        )

    def done(self, *words: str, **more: str) -> str:
        """Run pcm, which has to succeed; return what it prints."""
        done = self.pcm(*words, **more)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        assert VALUE not in done.stdout + done.stderr
        return done.stdout

    def send(self, ws: Workstation, *words: str, **more: str) -> str:
        """Send a job; return its id."""
        return self.done("send", "--to", str(ws.target), *words, **more).split()[0]

    async def reports(self, job_id: str) -> list[Report]:
        """Return all reports of a job, once it has ended everywhere."""
        async with asyncio.timeout(LIMIT), Dispatcher.connect(self.reaching) as dispatcher:
            return [report async for report in dispatcher.follow(job_id)]

    async def ended(self, job_id: str) -> Report:
        return final(await self.reports(job_id))


@pytest.fixture
def plant(site: Site, tmp_path: Path) -> Iterator[Plant]:
    found = Plant(site, tmp_path)
    try:
        yield found
    finally:
        for ws in found.workstations:
            ws.stop()


LOOK = 'printf "%s " "$TOKEN" | tr a-z b-za; id -u'
SEEN = f"{scrambled(VALUE)} {ID}\n"


async def test_jobs_of_all_four_kinds_with_secrets(plant: Plant) -> None:
    """Background jobs run as another user; no other process, nor that user, can read a secret."""
    ws = plant.enrol("--user", "ada", "--group", "lab")
    service = plant.start(ws, "service")
    user = plant.start(ws, "interactive-ada", accept_offers="true")
    await plant.there(ws, 2)
    for background in (True, False):
        for when in ((), ("--mandatory-at", "+1s")):
            how = ("--background", *AS_USER) if background else ()
            job = plant.send(ws, *how, *when, *plant.secret, "--shell", "--", LOOK)
            reports = await plant.reports(job)
            assert final(reports).state is State.SUCCEEDED, reports
            who = "service" if background else "interactive-ada"
            assert agents_of(reports, State.STARTED) == {who}
            result = final(reports).result
            assert result is not None
            own = SEEN if background else SEEN.replace(str(ID), str(os.geteuid()))
            assert str(result.stdout) == own
            assert (job in user.log.read_text()) is not background
    for agent in (service, user):
        assert VALUE not in agent.log.read_text()
        assert not [event for event in agent.events() if event["level"] != "info"]


async def test_a_crash_a_pause_and_a_cancellation(plant: Plant) -> None:
    """Another user's processes are found after kill -9; that with the secret is ended."""
    ws = plant.enrol()
    service = plant.start(ws, "service")
    await plant.there(ws)
    shared = other.opened(ws.folder) / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    pid = shared / "pid"
    script = f"printf %s $TOKEN | tr a-z b-za; echo $$ > {pid}; trap '' TERM; sleep 83; sleep 83"
    long = plant.send(
        ws, "--background", *AS_USER, "--survives-agent", *plant.secret, "--shell", "--", script
    )
    brief = plant.send(
        ws, "--background", *AS_USER, *plant.secret, "--rerun-interrupted", "--shell", "--",
        f"echo x >> {shared}/again; test $(wc -l < {shared}/again) = 2 || sleep 83",
    )  # fmt: skip
    await asyncio.to_thread(until_there, pid)
    await asyncio.to_thread(until_there, shared / "again")
    plant.done("pause", ws.name, "--reason", "exam")
    service.wait_for("agent.paused")
    waits = plant.send(ws, "--background", *plant.secret, "--shell", "--", LOOK)
    service.wait_for("job.received", 3)
    service.end(signal.SIGKILL)
    again = plant.start(ws, "service")
    again.wait_for("job.found")
    assert again.events("agent.started")[0]["paused"]
    plant.done("cancel", long)
    stopped = await plant.ended(long)
    assert stopped.state is State.CANCELLED
    assert stopped.result is not None
    assert str(stopped.result.stdout) == scrambled(VALUE)
    assert not alive(int(pid.read_text()))
    assert not again.events("job.started")
    plant.done("resume", ws.name)
    assert (await plant.ended(waits)).state is State.SUCCEEDED
    reports = await plant.reports(brief)
    assert final(reports).state is State.SUCCEEDED
    assert [report.state for report in reports].count(State.STARTED) == 2
    assert VALUE not in service.log.read_text() + again.log.read_text()
    no_traceback(service, again)


async def test_waves_dead_letters_and_a_rerun(plant: Plant) -> None:
    two = [plant.enrol("--group", "pair") for _ in range(2)]
    services = [plant.start(ws, "service") for ws in two]
    for ws in two:
        await plant.there(ws)
    to = ("--to", "group:pair", "--background", *AS_USER)
    waves = plant.done(
        "send", *to, "--waves", "1,100%", *plant.secret, "--json", "--shell", "--", LOOK
    )
    started = [event for agent in services for event in agent.events("job.started")]
    assert len(started) == 2, waves
    # A letter: signed by a key that this workstation does not know yet.
    late = plant.keys.make("late")
    job = plant.send(
        two[0], "--background", *plant.secret, "--shell", "--", LOOK,
        signing_key=str(plant.keys.private["late"]),
    )  # fmt: skip
    refused = await plant.ended(job)
    assert refused.state is State.REFUSED
    assert "is not trusted" in refused.reason
    (letter,) = json.loads(plant.done("dead", "list", "--json"))
    known = TrustedKey(name="late", key=late.public_text)
    plant.keys.path("late").write_bytes(known.body())
    plant.done("dead", "requeue", letter["id"])
    again = plant.done(
        "rerun", job, "--state", "refused", trusted_keys=str(plant.keys.folder)
    ).split()[0]
    ran = await plant.ended(again)
    assert (ran.state, str(ran.result and ran.result.stdout)) == (
        State.SUCCEEDED,
        SEEN.replace(str(ID), str(os.geteuid())),
    )
    # What was refused is refused for good, also where its key has become a trusted one since.
    assert job not in [event["job"] for event in services[0].events("job.started")]
    no_traceback(*services)


async def test_an_agent_has_no_secret_of_another_sealed_for_it(plant: Plant) -> None:
    """A check-in with another workstation's key by a stolen login is rejected as a forgery."""
    ws, stolen = plant.enrol(), plant.enrol()
    plant.start(ws, "service")
    await plant.there(ws)
    forged = check_in(ws.name, sealing_key=base64.b64encode(bytes([9, *bytes(31)])).decode())
    login = URL(plant.settings[stolen.name, "service"]["PCM_AMQP_URL"])
    async with await aio_pika.connect(str(login)) as connection, connection.channel() as channel:
        reports = await channel.get_exchange(topology.REPORTS, ensure=False)
        message = aio_pika.Message(forged.body(), type="check_in", user_id=login.user)
        key = topology.report_key("check_in", stolen.name, "service")  # the only one it may use
        await reports.publish(message, key)
    job = plant.send(ws, "--background", *plant.secret, "--shell", "--", LOOK)
    assert (await plant.ended(job)).state is State.SUCCEEDED
    (letter,) = json.loads(plant.done("dead", "list", "--json"))
    assert f"service@{stolen.name}" in letter["reason"]


async def test_a_damaged_ledger_and_a_new_one(plant: Plant) -> None:
    """Jobs that may have run are refused; the key for secrets is lost with the folder only."""
    ws = plant.enrol()
    service = plant.start(ws, "service")
    await plant.there(ws)
    sealed = ("--background", *AS_USER, *plant.secret, "--shell")
    count = ("--", f"echo x >> {ws.folder}/ran; {LOOK}")
    (ws.folder / "ran").touch()
    (ws.folder / "ran").chmod(0o666)
    other.opened(ws.folder)
    ran = plant.send(ws, *sealed, *count)
    assert (await plant.ended(ran)).state is State.SUCCEEDED
    waits = plant.send(ws, *sealed, "--mandatory-at", "+1h", *count)
    service.wait_for("job.received", 2)
    service.end(signal.SIGKILL)
    ledger = ws.state_dir / "service" / "ledger.db"
    with closing(sqlite3.connect(ledger)) as database, database:
        database.execute("DELETE FROM jobs WHERE id = ?", (ran,))
        database.execute("UPDATE jobs SET digest = 'x' WHERE id = ?", (waits,))
    damaged = plant.start(ws, "service")
    assert damaged.events("ledger.damaged")
    new = plant.send(ws, *sealed, *count)
    assert (await plant.ended(new)).state is State.SUCCEEDED
    damaged.end()
    unheard = plant.send(ws, *sealed, *count)
    ws.state_dir.rename(ws.folder / "old")  # the machine is installed again
    plant.done("revoke", ws.name, "--yes")
    plant.enrol_again(ws)
    # Not sealed: of the new agent no key is known yet.
    late = plant.send(ws, "--background", *count)
    since = datetime.now(UTC)
    reinstalled = plant.start(ws, "service")
    await checked_in(plant.reaching, ws, since=since)
    refused = await plant.ended(late)
    assert refused.state is State.REFUSED
    assert "created before this agent's ledger" in refused.reason
    last = plant.send(ws, *sealed, *count)
    assert (await plant.ended(last)).state is State.SUCCEEDED
    assert (ws.folder / "ran").read_text().split() == ["x"] * 3
    assert unheard
    no_traceback(service, damaged, reinstalled)
