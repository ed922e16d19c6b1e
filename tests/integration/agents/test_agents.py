"""Jobs on a workstation with real agents: the domain's table, and defects of the past."""

import asyncio
import getpass
import json
import signal
import sqlite3
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path

import pytest

from agents.service import ServiceAgent
from agents.settings import AgentSettings
from agents.store import ledger
from agents.store.transaction import SCHEMA_VERSION
from broker import Dispatcher
from broker.amqp import connection
from schemas import Report, State
from tests.support.clock import LOOK_EVERY, Clock
from tests.support.counted import an_offer_runs, now, past
from tests.support.rabbitmq import Broker
from tests.support.waiting import LIMIT, Gate, until_there, until_true
from tests.support.workstation import Workstation, agents_of, final, follow, until_state

BOTH = {"service", "interactive-ada"}
HOUR = 3600.0


def started_at(reports: list[Report]) -> float:
    """Return when a job was started, in seconds since the epoch."""
    return next(report.at.timestamp() for report in reports if report.state is State.STARTED)


async def test_background_jobs_are_the_services_alone(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    """Q165147, Q174933, Q164657: with a user logged on, mandatory or not."""
    ws.start("service")
    interactive = ws.start("interactive")
    for mandatory_at in (None, now()):
        job = await dispatcher.dispatch(ws.job("id", background=True, mandatory_at=mandatory_at))
        reports = await follow(dispatcher, job)
        assert {report.agent for report in reports} == {"service"}
        assert final(reports).state is State.SUCCEEDED
        assert job.id not in interactive.log.read_text()
    assert not ledger.read(ws.state_dir / "interactive-ada" / "ledger.db")


@pytest.mark.full
async def test_login_names_of_any_letters(ws: Workstation, dispatcher: Dispatcher) -> None:
    """Q173388: each user is offered the job, and is shown as named; Ada is not ada."""
    users = ("ada", "Ada", "ada.lovelace@example.com", "EXAMPLE\\Żółw")
    agents = {user: ws.start("interactive", user=user) for user in users}
    job = await dispatcher.dispatch(ws.job("true"))
    for agent in agents.values():
        agent.wait_for("job.offered")
    names = {f"interactive-{user}" for user in users}
    shown = ws.run("pcm-agent", "pending", "--json")
    assert {row["agent"] for row in json.loads(shown.stdout)} == names
    said = ws.run("pcm-agent", "run", job.id, user=users[-1])
    assert said.returncode == 0, said.stderr
    reports = await follow(dispatcher, job)
    assert agents_of(reports, State.OFFERED) == names
    assert agents_of(reports, State.SUCCEEDED) == {f"interactive-{users[-1]}"}


@pytest.mark.parametrize(
    "answer", ["nothing", pytest.param("postpone", marks=pytest.mark.full), "run"]
)
async def test_whose_session_runs_a_mandatory_job(
    ws: Workstation, dispatcher: Dispatcher, answer: str
) -> None:
    """Of two users, that of the one who has answered; else of the one who was shown it first.

    The first has the claim, since its countdown began. Who says run does not wait for its end.
    """
    clock = Clock(ws)
    others = [
        clock.start("service", takeover_grace="0s"),
        clock.start("interactive", user="ben", countdown="10m"),
    ]
    ada = clock.start("interactive", countdown="10m")
    for other in others:
        other.process.send_signal(signal.SIGSTOP)
    job = await dispatcher.dispatch(ws.job("true", mandatory_at=now()))
    ada.wait_for("job.offered")
    until_true((ws.state_dir / "claims" / job.id).exists)
    for other in others:
        other.process.send_signal(signal.SIGCONT)
    others[1].wait_for("job.offered")
    others[0].wait_for("job.received")
    if answer != "nothing":
        until = ("--until", "+5m") if answer == "postpone" else ()
        said = ws.run("pcm-agent", answer, job.id, *until, user="ben")
        assert said.returncode == 0, said.stderr
    if answer != "run":
        clock.set(11 * 60)
    user = "ada" if answer == "nothing" else "ben"
    reports = await follow(dispatcher, job)
    assert agents_of(reports, State.STARTED) == {f"interactive-{user}"}
    assert final(reports).state is State.SUCCEEDED


async def test_a_user_runs_an_offer(ws: Workstation, dispatcher: Dispatcher) -> None:
    """Q149683: optional foreground jobs run only if the user says so."""
    ws.start("service")
    ws.start("interactive")
    job = await dispatcher.dispatch(ws.job("echo", "hello"))
    await until_state(dispatcher, job, State.OFFERED)
    assert job.id in ws.run("pcm-agent", "pending").stdout
    said = ws.run("pcm-agent", "run", job.id)
    assert (said.returncode, said.stdout) == (0, "echo hello: runs now\n")
    reports = await follow(dispatcher, job)
    assert agents_of(reports, State.RECEIVED) == BOTH
    assert agents_of(reports, State.STARTED) == {"interactive-ada"}
    ended = final(reports)
    assert ended.result is not None
    assert str(ended.result.stdout) == "hello\n"
    assert "nothing is pending" in ws.run("pcm-agent", "pending").stdout
    assert "hello" in ws.run("pcm-agent", "history", "--json").stdout


async def test_a_mandatory_job_counts_down_and_runs(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    """Q185805: offered from its offer time, run when its countdown ends, by the user's agent."""
    ws.start("service", takeover_grace="1h")
    ws.start("interactive", countdown="300ms")
    job = await dispatcher.dispatch(ws.job("true", mandatory_at=now()))
    reports = await follow(dispatcher, job)
    assert agents_of(reports, State.OFFERED) == {"interactive-ada"}
    assert agents_of(reports, State.STARTED) == {"interactive-ada"}
    # Overdue when first shown: a whole countdown all the same.
    (entry,) = ledger.read(ws.state_dir / "interactive-ada" / "ledger.db")
    assert entry.shown_at is not None
    assert started_at(reports) - entry.shown_at >= 0.3


@pytest.mark.full
async def test_nothing_that_the_user_does_escapes_a_mandatory_job(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    """Q122202."""
    clock = Clock(ws)
    clock.start("service", takeover_grace="1h")
    interactive = clock.start("interactive", concurrency="1", missing_after=LOOK_EVERY)
    job = await dispatcher.dispatch(ws.job("true", mandatory_at=now(hours=2)))
    await until_state(dispatcher, job, State.OFFERED)
    declined = ws.run("pcm-agent", "decline", job.id)
    assert declined.returncode == 1
    assert "is mandatory" in declined.stderr
    too_late = ws.run("pcm-agent", "postpone", job.id, "--until", "+3h")
    assert too_late.returncode == 1
    assert "the job runs at" in too_late.stderr
    assert ws.run("pcm-agent", "postpone", job.id, "--until", "+1h").returncode == 0
    clock.set(HOUR + 1)
    interactive.wait_for("job.offered", 2)
    await an_offer_runs(ws, dispatcher)
    assert job.id not in {event["job"] for event in interactive.events("job.started")}
    clock.set(2 * HOUR + 1)
    reports = await follow(dispatcher, job)
    assert agents_of(reports, State.POSTPONED) == {"interactive-ada"}
    assert [report.state for report in reports].count(State.OFFERED) == 2
    assert final(reports).state is State.SUCCEEDED


async def test_the_service_takes_over_where_nobody_is_logged_on(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    ws.start("service", takeover_grace="300ms")
    job = await dispatcher.dispatch(ws.job("true", mandatory_at=now()))
    reports = await follow(dispatcher, job)
    assert agents_of(reports, State.STARTED) == {"service"}
    (entry,) = ledger.read(ws.state_dir / "service" / "ledger.db")
    assert started_at(reports) - entry.received_at >= 0.3


async def test_what_needs_the_user_waits_for_the_next_logon(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    """Q173388: overdue ones then run in the order of their mandatory times."""
    service = ws.start("service", concurrency="1", takeover_grace="100ms")
    ws.start("interactive").end()
    jobs = [
        await dispatcher.dispatch(
            ws.job("true", user_input_required=True, mandatory_at=now(seconds=-seconds))
        )
        for seconds in (10, 30, 20)
    ]
    service.wait_for("job.received", len(jobs))
    await past(ws, dispatcher, now(seconds=0.2))  # and the service's grace period
    assert "started" not in ws.run("pcm-agent", "pending").stdout
    ws.start("interactive", concurrency="1")
    starts = {}
    for job in jobs:
        reports = await follow(dispatcher, job)
        assert agents_of(reports, State.STARTED) == {"interactive-ada"}
        starts[job.id] = started_at(reports)
    by_start = sorted(jobs, key=lambda job: starts[job.id])
    assert by_start == sorted(jobs, key=lambda job: str(job.mandatory_at))


@pytest.mark.parametrize("kind", ["service", "interactive"])
def test_a_user_left_empty_is_the_login_name(kind: str, ws: Workstation) -> None:
    agent = ws.start(kind, user="")
    names = {event["agent"] for event in agent.events("agent.started")}
    assert names == {"service" if kind == "service" else f"interactive-{getpass.getuser()}"}


async def test_two_users_one_job(ws: Workstation, dispatcher: Dispatcher) -> None:
    """A claim has one holder, whoever counts down."""
    ws.start("service")
    ws.start("interactive", user="ada")
    ws.start("interactive", user="bob")
    job = await dispatcher.dispatch(ws.job("true", mandatory_at=now()))
    reports = await follow(dispatcher, job)
    assert len(agents_of(reports, State.STARTED)) == 1
    assert final(reports).state is State.SUCCEEDED


async def test_an_offer_ends_with_its_expiry(ws: Workstation, dispatcher: Dispatcher) -> None:
    """Q225056, Q152229, Q188042: never run means expired, said once, and not run later."""
    clock = Clock(ws)
    clock.start("service", missing_after=LOOK_EVERY)
    interactive = clock.start("interactive", missing_after=LOOK_EVERY)
    job = await dispatcher.dispatch(ws.job("true", expires_at=now(hours=1)))
    interactive.wait_for("job.offered")
    clock.set(2 * HOUR)
    reports = await follow(dispatcher, job)
    assert final(reports).state is State.EXPIRED
    assert not agents_of(reports, State.STARTED)
    refusal = (1, f"pcm-agent: {job.id}: no such job is offered\n")
    # Once the user's agent has noticed what the service agent reported.
    await asyncio.to_thread(until_true, lambda: _run_offer(ws, job.id) == refusal)


def _run_offer(ws: Workstation, job_id: str) -> tuple[int, str]:
    """Accept an offer; return the exit status and stderr."""
    done = ws.run("pcm-agent", "run", job_id)
    return done.returncode, done.stderr


async def test_a_job_that_expired_while_the_workstation_was_off_never_runs(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    """Q255284."""
    ws.start("service").end()
    job = await dispatcher.dispatch(ws.job("true", background=True, expires_at=now(hours=1)))
    service = Clock(ws, 2 * HOUR).start("service")
    assert final(await follow(dispatcher, job)).state is State.EXPIRED
    assert not service.events("job.started")


async def test_a_declined_offer_ends_the_watching(ws: Workstation, dispatcher: Dispatcher) -> None:
    ws.start("service")
    ws.start("interactive")
    job = await dispatcher.dispatch(ws.job("true"))
    await until_state(dispatcher, job, State.OFFERED)
    assert ws.run("pcm-agent", "decline", job.id).returncode == 0
    watched = ws.run("pcm", "watch", job.id)
    assert watched.returncode == 1
    assert "1 declined" in watched.stdout


async def test_offers_are_accepted_by_a_standing_yes(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    ws.start("service")
    ws.start("interactive", accept_offers="true")
    reports = await follow(dispatcher, await dispatcher.dispatch(ws.job("true")))
    assert agents_of(reports, State.ACCEPTED) == {"interactive-ada"}
    assert final(reports).state is State.SUCCEEDED


@pytest.mark.full
async def test_a_cancelled_job_never_starts(ws: Workstation, dispatcher: Dispatcher) -> None:
    """Q140928, Q269768: wherever it went, also during the countdown, and it is reported."""
    ws.start("service", takeover_grace="1h")
    ws.start("interactive", countdown="30m")
    later = ws.job("true", background=True, mandatory_at=now(hours=1))
    offered = ws.job("true", mandatory_at=now(hours=1))
    counting = ws.job("true", mandatory_at=now())
    for job in (later, offered, counting):
        await dispatcher.dispatch(job)
        await until_state(
            dispatcher, job, State.RECEIVED if job.command.background else State.OFFERED
        )
        await dispatcher.cancel(job.id, "not wanted")
        reports = await follow(dispatcher, job)
        assert (final(reports).state, final(reports).reason) == (State.CANCELLED, "not wanted")
        assert not agents_of(reports, State.STARTED)


async def test_a_cancelled_job_is_stopped_where_it_runs(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    """Q191338."""
    ws.start("service")
    job = await dispatcher.dispatch(ws.job("sleep", "93.2109", background=True))
    await until_state(dispatcher, job, State.STARTED)
    await dispatcher.cancel(job.id)
    ended = final(await follow(dispatcher, job))
    assert ended.state is State.CANCELLED
    assert ended.result is not None
    assert ended.result.signal == signal.SIGTERM


async def test_a_cancellation_waits_for_a_workstation_that_is_off(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    """Q140928: in order behind its job."""
    ws.start("service").end()
    job = await dispatcher.dispatch(ws.job("true", background=True))
    await dispatcher.cancel(job.id)
    ws.start("service")
    reports = await follow(dispatcher, job)
    assert final(reports).state is State.CANCELLED
    assert not agents_of(reports, State.STARTED)


async def test_the_same_job_twice_is_one_job(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    """Sent again by whomever; other content under its id is refused, and the job goes on."""
    service = ws.start("service")
    ran = tmp_path / "ran"
    job = ws.job(f"echo x >> {ran}", shell=True, background=True)
    await dispatcher.dispatch(job)
    await follow(dispatcher, job)
    await dispatcher.dispatch(
        job.model_copy(update={"sender": "somebody else", "created_at": now()})
    )
    await dispatcher.dispatch(
        job.model_copy(update={"command": job.command.model_copy(update={"argv": ("true",)})})
    )
    await follow(dispatcher, await dispatcher.dispatch(ws.job("true", background=True)))
    assert ran.read_text() == "x\n"
    reports = await follow(dispatcher, job)
    assert final(reports).state is State.SUCCEEDED
    assert agents_of(reports, State.CONFLICT) == {"service"}
    assert len(service.events("job.received")) == 2


async def test_wrong_platforms_are_not_applicable_at_once(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    """Q156250."""
    ws.start("service")
    ws.start("interactive")
    platforms = frozenset({"windows"})
    for background in (False, True):
        job = ws.job("true", background=background, platforms=platforms)
        ended = final(await follow(dispatcher, await dispatcher.dispatch(job)))
        assert ended.state is State.NOT_APPLICABLE
        assert "runs on windows" in ended.reason


async def test_a_command_that_cannot_start_fails_with_the_reason(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    """Q193224."""
    ws.start("service")
    job = await dispatcher.dispatch(ws.job("/no/such/program", background=True))
    ended = final(await follow(dispatcher, job))
    assert (ended.state, ended.reason) == (
        State.FAILED,
        "/no/such/program: No such file or directory",
    )


async def test_several_jobs_at_once_and_a_hanging_one_stops_nobody(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    """Q214448."""
    ws.start("service", concurrency="2")
    hanging = await dispatcher.dispatch(ws.job("sleep", "92.1098", background=True))
    for _ in range(3):
        job = await dispatcher.dispatch(ws.job("true", background=True))
        assert final(await follow(dispatcher, job)).state is State.SUCCEEDED
    await dispatcher.cancel(hanging.id)
    assert final(await follow(dispatcher, hanging)).state is State.CANCELLED


async def test_a_killed_agent_reports_interrupted_and_runs_nothing_twice(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    """Q164887, Q158644: the start is recorded before the command runs."""
    ran = tmp_path / "ran"
    clock = Clock(ws)
    service = clock.start("service")
    script = f"echo x >> {ran}; sleep 91.0987"
    job = await dispatcher.dispatch(ws.job(script, shell=True, background=True))
    later = await dispatcher.dispatch(ws.job("true", background=True, mandatory_at=now(hours=1)))
    service.wait_for("job.received", 2)
    until_there(ran)
    service.end(signal.SIGKILL)
    clock.set(2 * HOUR)
    clock.start("service")
    ended = final(await follow(dispatcher, job))
    assert ended.state is State.INTERRUPTED
    assert "its remaining processes were stopped" in ended.reason
    assert ran.read_text() == "x\n"
    # Q163488: what waited for its time runs at it, also after a restart.
    assert final(await follow(dispatcher, later)).state is State.SUCCEEDED


async def test_a_claim_of_a_killed_agent_is_free_again(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    """A countdown's claim dies with its holder; the service then takes over."""
    service = ws.start("service", concurrency="1", takeover_grace="0s")
    service.process.send_signal(signal.SIGSTOP)  # until the user's agent has the claim
    interactive = ws.start("interactive", countdown="1h")
    job = await dispatcher.dispatch(ws.job("true", mandatory_at=now()))
    await until_state(dispatcher, job, State.OFFERED)
    until_true((ws.state_dir / "claims" / job.id).exists)
    service.process.send_signal(signal.SIGCONT)
    service.wait_for("job.received")
    await past(ws, dispatcher, now(seconds=0.1))  # and the service's grace period
    assert "started" not in ws.run("pcm-agent", "pending").stdout
    interactive.end(signal.SIGKILL)
    reports = await follow(dispatcher, job)
    assert agents_of(reports, State.STARTED) == {"service"}


async def test_sigterm_lets_a_service_command_finish(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    service = ws.start("service", drain="1h")
    gate = Gate(tmp_path / "go")
    job = await dispatcher.dispatch(ws.job(gate.script, shell=True, background=True))
    await until_state(dispatcher, job, State.STARTED)
    service.process.send_signal(signal.SIGTERM)
    service.wait_for("agent.stopping")
    gate.open()
    assert service.process.wait(LIMIT) == 0
    assert final(await follow(dispatcher, job)).state is State.SUCCEEDED


async def test_an_agent_stopped_while_it_connects_ends(
    ws: Workstation, node: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library may swallow a cancellation: where wait_for's result comes at the same time."""
    settings = AgentSettings(
        amqp_url=(node.url,), workstation=ws.name, state_dir=ws.state_dir, drain=timedelta(0)
    )
    agent = ServiceAgent(settings)
    ours = connection.OurConnection
    library = ours.connect

    async def connect(connecting_one: connection.OurConnection) -> None:
        agent.stop()
        connecting = asyncio.ensure_future(library(connecting_one))
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()  # until the cancellation comes
        await connecting

    monkeypatch.setattr(ours, "connect", connect)
    async with asyncio.timeout(LIMIT):
        await agent.run()


async def test_a_second_signal_stops_at_once(ws: Workstation, dispatcher: Dispatcher) -> None:
    service = ws.start("service", drain="1h")
    job = await dispatcher.dispatch(
        ws.job("trap '' TERM; sleep 89.8765", shell=True, background=True)
    )
    await until_state(dispatcher, job, State.STARTED)
    service.process.send_signal(signal.SIGTERM)
    service.wait_for("agent.stopping")
    assert service.end() == 0
    ws.start("service")  # what was not sent before is sent now
    assert final(await follow(dispatcher, job)).state is State.INTERRUPTED


async def test_logging_off_interrupts_the_users_command(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    ws.start("service")
    interactive = ws.start("interactive", accept_offers="true")
    job = await dispatcher.dispatch(ws.job("sleep", "90.9876"))
    await until_state(dispatcher, job, State.STARTED)
    assert interactive.end(signal.SIGHUP) == 0
    ended = final(await follow(dispatcher, job))
    assert (ended.state, ended.agent) == (State.INTERRUPTED, "interactive-ada")


async def test_a_second_instance_says_so_and_exits(ws: Workstation) -> None:
    """Q174460, Q230660."""
    for kind in ("service", "interactive"):
        ws.start(kind)
        second = ws.run("pcm-agent", kind)
        assert second.returncode == 1
        assert "is already running" in second.stderr
        assert len(second.stderr.splitlines()) == 1


async def test_a_group_that_was_left_is_unbound(ws: Workstation) -> None:
    ws.start("service", groups=f"{ws.name}-a,{ws.name}-b").end()
    ws.start("service", groups=f"{ws.name}-b")
    sent = ws.run(
        "pcm", "send", "--to", f"group:{ws.name}-a", "--to", f"group:{ws.name}-b", "--", "true"
    )
    assert sent.returncode == 1
    assert f"no workstation is bound to group:{ws.name}-a;" in sent.stderr


async def test_a_ledger_of_a_newer_version_is_not_touched(ws: Workstation) -> None:
    ws.start("service").end()
    path = ws.state_dir / "service" / "ledger.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    refused = ws.run("pcm-agent", "service")
    assert refused.returncode == 1
    assert "the ledger has version" in refused.stderr


async def test_a_folder_that_others_may_write_to_is_not_used(ws: Workstation) -> None:
    ws.state_dir.mkdir()
    folder = ws.state_dir / "service"
    folder.mkdir()
    folder.chmod(0o777)
    refused = ws.run("pcm-agent", "service")
    assert refused.returncode == 1
    assert f"{folder}: has mode 0777; it must be 0700: chmod 700 {folder}" in refused.stderr
