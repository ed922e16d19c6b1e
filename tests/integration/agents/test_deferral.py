"""Limits of postponements, reminders, and stopping by the user."""

import itertools
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broker import Dispatcher
from schemas import State
from tests.support.clock import Clock
from tests.support.counted import ended, now, reports_until_end
from tests.support.waiting import until_there
from tests.support.window import asked, offer, row, seen, watching
from tests.support.workstation import Workstation

HOUR = timedelta(hours=1)


async def test_no_more_postponements_than_the_job_allows_whatever_is_restarted(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    agent = ws.start("interactive")
    job = await dispatcher.dispatch(ws.job("true", mandatory_at=now(hours=9), max_postponements=2))
    assert seen(ws, job)["postponements_left"] == 2
    chosen = now(hours=1)
    first = asked(ws, "postpone", job, until=chosen.isoformat())
    assert first["message"].startswith("true: postponed until ")
    found = seen(ws, job, state="postponed")
    assert found["postponements_left"] == 1
    assert found["until"] == pytest.approx(chosen.timestamp(), abs=0.001)
    agent.end(9)
    agent = ws.start("interactive")
    assert seen(ws, job)["postponements_left"] == 1
    began = time.time()
    assert ws.run("pcm-agent", "postpone", job.id, "--until", "+2h").returncode == 0
    until = seen(ws, job)["until"]
    assert int(began) + 7200 <= until <= time.time() + 7200
    assert agent.end() == 0
    ws.start("interactive")
    assert seen(ws, job)["postponements_left"] == 0
    third = ws.run("pcm-agent", "postpone", job.id, "--until", "+3h")
    assert (third.returncode, third.stderr) == (
        1,
        "pcm-agent: true: can be postponed 2 times only\n",
    )
    assert seen(ws, job)["until"] == until
    asked(ws, "run", job)
    states = [report.state for report in await reports_until_end(dispatcher, job)]
    assert states.count(State.POSTPONED) == 2


async def test_a_job_that_may_not_be_postponed_says_so(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    ws.start("interactive")
    job = await dispatcher.dispatch(ws.job("true", max_postponements=0))
    assert seen(ws, job)["postponements_left"] == 0
    reply = asked(ws, "postpone", job, until=now(hours=1).isoformat())
    assert reply == {"error": "true: cannot be postponed"}


async def test_a_postponement_is_not_shorter_than_the_job_says(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    ws.start("interactive")
    due = now(hours=3)
    job = await dispatcher.dispatch(
        ws.job("true", mandatory_at=due, min_interval=2 * HOUR, max_postponements=3)
    )
    assert seen(ws, job)["min_interval"] == 7200
    short = asked(ws, "postpone", job, until=now(hours=1).isoformat())
    assert "a postponement lasts at least 2h, until" in short["error"]
    late = asked(ws, "postpone", job, until=now(hours=4).isoformat())
    assert "the job runs at" in late["error"]
    # What was refused was no choice.
    assert seen(ws, job)["postponements_left"] == 3
    # Chosen two hours ahead, and a moment on its way.
    began = time.time()
    assert "message" in asked(ws, "postpone", job, until=now(hours=2, seconds=-2).isoformat())
    until = seen(ws, job, state="postponed")["until"]
    assert began + 7200 <= until <= time.time() + 7200

    near = await dispatcher.dispatch(
        ws.job("true", mandatory_at=now(minutes=30), min_interval=2 * HOUR)
    )
    deadline = seen(ws, near)["deadline"]
    short = asked(ws, "postpone", near, until=now(minutes=20).isoformat())
    assert "a postponement lasts at least 2h" in short["error"]
    longest = datetime.fromtimestamp(deadline, UTC).isoformat()
    assert "message" in asked(ws, "postpone", near, until=longest)
    assert seen(ws, near, state="postponed")["until"] == pytest.approx(deadline, abs=0.001)


async def test_time_while_the_agent_was_away_is_not_the_users_choice(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    clock = Clock(ws)
    agent = clock.start("interactive")
    job = await dispatcher.dispatch(ws.job("true", max_postponements=2))
    seen(ws, job)
    assert "message" in asked(ws, "postpone", job, until=now(hours=1).isoformat())
    agent.end()
    clock.set(2 * 3600)  # the postponement ends meanwhile
    for _ in range(2):
        agent = clock.start("interactive")
        assert seen(ws, job, state="offered")["postponements_left"] == 1
        agent.end()
    clock.start("interactive")
    seen(ws, job)
    asked(ws, "run", job)
    states = [report.state for report in await reports_until_end(dispatcher, job)]
    assert (states.count(State.POSTPONED), states.count(State.OFFERED)) == (1, 2)


async def test_an_optional_offer_is_shown_again_without_a_report(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    """Q187287."""
    ws.start("interactive", remind="1s")
    job = await dispatcher.dispatch(ws.job("true"))
    due = await dispatcher.dispatch(ws.job("true", mandatory_at=now(hours=1)))
    declined = await dispatcher.dispatch(ws.job("true"))
    once = {one.id: seen(ws, one)["shown_at"] for one in (due, declined)}
    asked(ws, "decline", declined)
    shown: set[float] = set()
    with watching(ws) as window:
        while len(shown) < 4:
            snapshot = window.next()
            if found := offer(snapshot, job):
                shown.add(found["shown_at"])
    times = sorted(shown)
    assert all(later - earlier >= 1 for earlier, later in itertools.pairwise(times))
    assert seen(ws, due)["shown_at"] == once[due.id]
    asked(ws, "run", job)
    states = [report.state for report in await reports_until_end(dispatcher, job)]
    assert states.count(State.OFFERED) == 1
    found = seen(ws, declined, state="declined")
    assert found["shown_at"] < times[-1]


@pytest.mark.parametrize("mandatory", [False, True])
async def test_a_user_is_reminded_when_they_asked_for_it(
    ws: Workstation, dispatcher: Dispatcher, *, mandatory: bool
) -> None:
    ws.start("interactive", remind="0")
    due = {"mandatory_at": now(hours=1)} if mandatory else {"expires_at": now(hours=1)}
    job = await dispatcher.dispatch(ws.job("true", max_postponements=1, **due))
    first = seen(ws, job)["shown_at"]
    for after in (0, -1, "1", None, float("nan"), float("inf"), 1e300):
        assert "after: " in asked(ws, "remind", job, after=after)["error"]
    late = asked(ws, "remind", job, after=7200)["error"]
    assert f"the job {'runs' if mandatory else 'expires'} at" in late
    assert "is shown again at" in asked(ws, "remind", job, after=1)["message"]
    with watching(ws) as window:
        snapshot = window.until(lambda snapshot: offer(snapshot, job)["shown_at"] > first)  # type: ignore[index]
    found = offer(snapshot, job)
    assert found is not None
    assert found["shown_at"] - first >= 1
    assert (found["state"], found["postponements_left"]) == ("offered", 1)
    assert "message" in asked(ws, "postpone", job, until=now(minutes=30).isoformat())
    assert "is postponed" in asked(ws, "remind", job, after=1)["error"]
    asked(ws, "run", job)
    states = [report.state for report in await reports_until_end(dispatcher, job)]
    assert (states.count(State.OFFERED), states.count(State.POSTPONED)) == (1, 1)


async def test_the_reason_of_a_decline_reaches_the_administrator(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    ws.start("interactive")
    job = await dispatcher.dispatch(ws.job("true"))
    seen(ws, job)
    for reason in ("x" * 1001, "\ud800", 5, None):
        assert "--reason: " in asked(ws, "decline", job, reason=reason)["error"]
    wrong = ws.run("pcm-agent", "decline", job.id, "--reason", "x" * 1001)
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "pcm-agent: --reason: must be text of 1000 characters at most\n",
    )
    assert seen(ws, job)["state"] == "offered"
    done = ws.run("pcm-agent", "decline", job.id, "--reason", "in a class until noon")
    assert done.returncode == 0
    assert seen(ws, job, state="declined")["may_decline"] is False
    asked(ws, "run", job)
    reports = await reports_until_end(dispatcher, job)
    (declined,) = [report for report in reports if report.state is State.DECLINED]
    assert declined.reason == "in a class until noon"


async def test_a_user_stops_what_they_may_stop(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    """Q191338: with a grace period, and it stays stopped."""
    ws.start("interactive")
    jobs = []
    for number, may_stop in enumerate((False, True)):
        script = f"trap '' TERM; echo x > {tmp_path / str(number)}; sleep 20; sleep 20"
        fields = {"user_may_stop": may_stop, "rerun_interrupted": True}
        jobs.append(await dispatcher.dispatch(ws.job(script, shell=True, **fields)))
    kept, stopped = jobs
    for number, job in enumerate(jobs):
        seen(ws, job)
        assert asked(ws, "stop", job) == {"error": f"{job.id}: no such job runs"}
        asked(ws, "run", job)
        until_there(tmp_path / str(number))
    with watching(ws) as window:
        rows = window.until(lambda snapshot: len(snapshot["running"]) == 2)["running"]
    assert {found["job"]: found["may_stop"] for found in rows} == {kept.id: False, stopped.id: True}
    assert "its user is not allowed to stop it" in asked(ws, "stop", kept)["error"]
    done = ws.run("pcm-agent", "stop", stopped.id)
    assert (done.returncode, done.stdout) == (0, f"{stopped.title}: is being stopped\n")
    final = await ended(dispatcher, stopped)
    assert (final.state, final.reason) == (State.CANCELLED, "stopped by the user (ada)")
    assert final.result is not None
    assert final.result.signal == 9
    with watching(ws) as window:
        found = row(window.next()["history"], stopped)
    assert found is not None
    assert (found["state"], found["reason"], found["signal"]) == (
        "cancelled",
        "stopped by the user (ada)",
        9,
    )
    refused = ws.run("pcm-agent", "stop", kept.id)
    assert refused.returncode == 1
    await dispatcher.cancel(kept.id)
    assert (await ended(dispatcher, kept)).state is State.CANCELLED


async def test_what_the_administrator_said_of_it_is_sent_and_shown(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    ws.start("interactive")
    history = {"history_url": f"sqlite:///{tmp_path / 'history.db'}"}
    sent = ws.run(
        *("pcm", "send", "--to", str(ws.target), "--comment", "the old one has a hole"),
        *("--max-postponements", "3", "--min-interval", "1h", "--user-may-stop", "--", "true"),
    )
    assert sent.returncode == 0, sent.stderr
    job = ws.job("true", id=sent.stdout.strip())
    found = seen(ws, job)
    assert (found["comment"], found["postponements_left"], found["min_interval"]) == (
        "the old one has a hole",
        3,
        3600,
    )
    asked(ws, "run", job)
    await reports_until_end(dispatcher, job)
    shown = ws.run("pcm", "show", job.id, **history).stdout
    assert "comment       the old one has a hole\n" in shown
    assert "postponement  3 times at most, for 1 h at least\n" in shown
    assert "may be stopped by the user" in shown
    rows = json.loads(ws.run("pcm", "show", job.id, "--json", **history).stdout)["sent"]
    assert (rows["max_postponements"], rows["min_interval"]) == (3, 3600)
