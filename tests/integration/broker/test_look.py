"""`pcm jobs`, `show` and `output` on a history."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import termios
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from broker.history.queries.rows import FAILURES, STATES, WAITING
from schemas import Cancellation, Job, Output, Report, State, WorkstationForgotten, group
from tests.support.programs import BIN
from tests.support.simulated_fleet import SimulatedFleet, result
from tests.support.waiting import LIMIT
from tests.support.workstation import Workstation

S = State
NOW = datetime.now(UTC)
ADA = "interactive-ada"
NASTY = "\x1b[2J\x1b]0;owned\x07wiped\rover\x9b31m\u202etxt"


async def in_every_state(fleet: SimulatedFleet) -> Job:
    """Append a job with one workstation in each state, named after it, and three that failed."""
    words = [*STATES, "failed2", "failed3"]
    job = fleet.job(*words, argv=("apt-get", "upgrade"), name="Office update", sender="ada@hq")
    reports: list[tuple[str, State, dict[str, Any]]] = [
        (S.RECEIVED, S.RECEIVED, {}),
        (S.OFFERED, S.OFFERED, {"agent": ADA}),
        (S.POSTPONED, S.POSTPONED, {"agent": ADA, "until": NOW + timedelta(hours=1)}),
        (S.ACCEPTED, S.ACCEPTED, {"agent": ADA}),
        (S.STARTED, S.STARTED, {}),
        (S.SUCCEEDED, S.SUCCEEDED, {"result": result(0, stdout="done\n")}),
        (S.FAILED, S.FAILED, {"result": result(7, stderr="no disk\n"), "reason": "exit code 7"}),
        ("failed2", S.FAILED, {"result": result(7, stderr="no disk\n"), "reason": "exit code 7"}),
        ("failed3", S.FAILED, {"reason": "no such program: apt-get"}),
        (S.TIMED_OUT, S.TIMED_OUT, {"result": result(None, signal=15), "reason": "too long"}),
        (S.INTERRUPTED, S.INTERRUPTED, {"reason": "the agent ended"}),
        (S.REFUSED, S.REFUSED, {"reason": "unreadable"}),
        (S.EXPIRED, S.EXPIRED, {"reason": "it was not started in time"}),
        (S.CANCELLED, S.CANCELLED, {"reason": "not now"}),
        (S.DECLINED, S.DECLINED, {"agent": ADA}),
        (S.NOT_APPLICABLE, S.NOT_APPLICABLE, {"reason": "runs on windows"}),
    ]
    await fleet.append(*(fleet.check_in(word) for word in words if word != "unreachable"))
    await fleet.append(job)
    await fleet.append(*(fleet.report(job, word, state, **more) for word, state, more in reports))
    return job


async def test_the_sums_add_up_for_a_job_in_all_states(fleet: SimulatedFleet) -> None:
    job = await in_every_state(fleet)
    (row,) = json.loads(fleet.pcm("jobs", "--text", job.id, "--json").stdout)
    assert row["counts"] == {state: 3 if state == S.FAILED else 1 for state in STATES}
    assert row["total"] == len(STATES) + 2
    assert row["open"] == len(WAITING) + 1
    assert row["failures"] == len(FAILURES) + 2
    shown = json.loads(fleet.pcm("show", job.id, "--json").stdout)
    assert {name: shown[name] for name in row} == row
    assert len(shown["workstations"]) == row["total"]
    assert sum(found["count"] for found in shown["failure_groups"]) == row["failures"]
    assert Job.model_validate(shown["sent"]) == job
    for one in (fleet.name(word) for word in STATES):
        (state,) = [of["state"] for of in shown["workstations"] if of["workstation"] == one]
        assert one.endswith(state)


async def test_show_tells_all_of_it(fleet: SimulatedFleet) -> None:
    job = await in_every_state(fleet)
    done = fleet.pcm("show", job.id[:20])
    assert (done.returncode, done.stderr) == (0, "")
    head, counts, failures, pairs = done.stdout.split("\n\n")
    for line in ("name          Office update", "command       apt-get upgrade", "ada@hq"):
        assert line in head
    *rows, total = [line.split() for line in counts.splitlines()]
    assert total == ["total", "18", "100.0", "%"]
    percents = [float(words[words.index("%") - 1]) for words in rows]
    assert round(sum(percents), 1) == 100
    assert sum(int(words[words.index("%") - 2]) for words in rows) == 18
    assert failures.splitlines()[2].split()[:5] == ["2", "failed", "7", "no", "disk"]
    assert "no such program: apt-get" in failures
    lines = [line.split() for line in pairs.splitlines()[1:]]
    assert len(lines) == 18
    assert [words[1] for words in lines[:4]] == ["started", "failed", "failed", "failed"]
    assert "exit code 7" not in pairs
    assert "until " in pairs


async def test_show_narrows_to_states_and_says_what_is_left_out(fleet: SimulatedFleet) -> None:
    words = [f"{number:03}" for number in range(60)]
    job = fleet.job(*words, background=True)
    await fleet.append(*map(fleet.check_in, words), job)
    reports = [fleet.report(job, word, S.STARTED) for word in words[:55]]
    await fleet.append(*reports, fleet.report(job, "001", S.FAILED, reason="broken"))
    whole = fleet.pcm("show", job.id).stdout
    assert whole.endswith("\n\n10 more workstations; --all shows them, --state selects\n")
    assert fleet.pcm("show", job.id, "--all").stdout.count(fleet.prefix) == 60 + 1 + 10
    running = json.loads(fleet.pcm("show", job.id, "--state", "running", "--json").stdout)
    assert (len(running["workstations"]), running["left_out"]) == (50, 4)
    both = json.loads(
        fleet.pcm("show", job.id, "--state", "failures", "--state", "queued", "--json").stdout
    )
    assert [of["state"] for of in both["workstations"]] == ["failed"] + ["queued"] * 5
    assert both["left_out"] == 0
    ended = json.loads(fleet.pcm("show", job.id, "--state", "ended", "--json").stdout)
    assert [of["workstation"] for of in ended["workstations"]] == [fleet.name("001")]


async def test_show_tells_one_workstation_s_story(fleet: SimulatedFleet) -> None:
    job = fleet.job("a", "b")
    await fleet.append(
        fleet.check_in("a"),
        job,
        fleet.report(job, "a", S.RECEIVED),
        fleet.report(job, "a", S.OFFERED, agent=ADA),
        fleet.report(job, "a", S.POSTPONED, agent=ADA, until=NOW + timedelta(hours=3)),
        fleet.report(job, "b", S.RECEIVED),
    )
    done = fleet.pcm("show", job.id, "--workstation", fleet.name("a"))
    lines = done.stdout.splitlines()[4:]
    assert [line.split()[3] for line in lines] == ["received", "offered", "postponed"]
    assert "until " in lines[2]
    found = json.loads(fleet.pcm("show", job.id, "--workstation", fleet.name("a"), "--json").stdout)
    assert [one["state"] for one in found["reports"]] == ["received", "offered", "postponed"]
    assert found["outcome"]["state"] == "postponed"
    other = fleet.pcm("show", job.id, "--workstation", "nowhere")
    assert (other.returncode, len(other.stderr.splitlines())) == (1, 1)
    assert f"pcm why {job.id} nowhere explains it" in other.stderr


async def test_states_without_reports_follow_from_the_job(fleet: SimulatedFleet) -> None:
    """An expired job is listed as a failure, too."""
    expired = fleet.job(
        "a", background=True, created_at=NOW - timedelta(hours=2),
        expires_at=NOW - timedelta(hours=1),
    )  # fmt: skip
    cancelled = fleet.job("a", "b", rerun_of=expired.id, rollout="plan", schedule="nightly")
    everywhere = Cancellation(job_id=cancelled.id, reason="a mistake", sender="bob@hq")
    await fleet.append(fleet.check_in("a"), fleet.check_in("b"), expired, cancelled, everywhere)
    shown = json.loads(fleet.pcm("show", expired.id, "--json").stdout)
    assert (shown["counts"], shown["failures"]) == ({"expired": 1}, 1)
    assert [(one["state"], one["count"]) for one in shown["failure_groups"]] == [("expired", 1)]
    text = fleet.pcm("show", cancelled.id).stdout
    for line in (
        f"rerun of      {expired.id}",
        "rollout       plan",
        "schedule      nightly",
        "cancelled     by bob@hq, ",
        ": a mistake",
        "cancelled               2  100.0 %",
    ):
        assert line in text
    here = fleet.pcm("jobs", "--text", fleet.prefix).stdout
    assert "2 cancelled" in here
    assert "bob@hq" in here


async def test_a_forgotten_workstation_is_reported(fleet: SimulatedFleet) -> None:
    job = fleet.job("a")
    await fleet.append(
        fleet.check_in("a"), job, WorkstationForgotten(workstation=fleet.name("a"), sender="x@y")
    )
    assert "x@y had the workstation forgotten" in fleet.pcm("show", job.id).stdout


async def test_jobs_are_listed_the_newest_first_and_narrowed(fleet: SimulatedFleet) -> None:
    def made(hours: int, **fields: Any) -> Job:
        return fleet.job("a", created_at=NOW - timedelta(hours=hours), **fields)

    old = made(50, name="Old 100%", sender="ada@hq")
    middle = made(5, argv=("echo", "MIDDLE"), sender="bob@hq", background=True)
    new = made(1, sender="ada@hq", mandatory_at=NOW + timedelta(hours=1))
    await fleet.append(
        fleet.check_in("a"),
        *(new, old, middle),
        fleet.report(old, "a", S.SUCCEEDED, result=result(0)),
        fleet.report(middle, "a", S.FAILED, reason="broken"),
    )

    def listed(*words: str) -> list[str]:
        done = fleet.pcm("jobs", "--text", fleet.name("a"), "--json", *words)
        assert (done.returncode, done.stderr) == (0, "")
        return [row["job"] for row in json.loads(done.stdout)]

    assert listed() == [new.id, middle.id, old.id]
    assert listed("--sender", "ADA") == [new.id, old.id]
    assert listed("--since", "2d") == [new.id, middle.id]
    assert listed("--since", (NOW - timedelta(hours=2)).isoformat()) == [new.id]
    assert listed("--state", "failed") == [middle.id]
    assert listed("--state", "failures", "--state", "queued") == [new.id, middle.id]
    assert listed("--state", "waiting") == [new.id]
    assert listed("--state", "running") == []
    assert listed("--state", "ended") == [middle.id, old.id]
    assert listed("--state", "ended", "--state", "waiting") == [new.id, middle.id, old.id]

    def found(text: str) -> list[str]:
        rows = json.loads(fleet.pcm("jobs", "--text", text, "--json").stdout)
        return [row["job"] for row in rows if row["targets"] == [f"workstation:{fleet.name('a')}"]]

    assert found("middle") == [middle.id]
    assert found("old 100%") == [old.id]
    assert found(new.id[-10:]) == [new.id]
    assert found("100_") == []
    table = fleet.pcm("jobs", "--text", fleet.prefix, "--limit", "2")
    assert table.stderr == "pcm: there are more; --limit 20 shows more\n"
    head, first, second = table.stdout.splitlines()
    assert head.split()[:3] == ["JOB", "NAME", "CONTEXT"]
    assert first.startswith(new.id)
    assert first.split().index("foreground") + 1 == first.split().index("mandatory")
    assert " UTC, 1 h " in first
    assert "1 queued" in first
    assert second.split().index("background") + 1 == second.split().index("optional")
    assert "1 failed" in second
    assert fleet.pcm("jobs", "--text", "nothing has this").stdout == "no jobs\n"


async def test_what_commands_wrote_is_shown(fleet: SimulatedFleet) -> None:
    job = fleet.job("a", "b", "c", "d")
    await fleet.append(
        *(fleet.check_in(word) for word in "abcd"),
        job,
        fleet.report(job, "a", S.SUCCEEDED, result=result(0, stdout="same\n")),
        fleet.report(job, "b", S.SUCCEEDED, result=result(0, stdout="same\n")),
        fleet.report(job, "c", S.FAILED, result=result(3, stdout="part\n", stderr="broken")),
    )
    a, b, c, d = map(fleet.name, "abcd")
    done = fleet.pcm("output", job.id)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"== {a}  succeeded  exit 0\nsame\n\n== {b}  succeeded  exit 0\nsame\n\n"
        f"== {c}  failed  exit 3\npart\n-- stderr\nbroken\n\n"
    )
    together = fleet.pcm("output", job.id, "--together").stdout
    assert together.startswith(f"== 2 workstations  succeeded  exit 0\n== {a}, {b}\nsame\n\n")
    assert together.count("same") == 1
    only = fleet.pcm("output", job.id, "--stderr").stdout
    assert only == f"== {c}  failed  exit 3\n-- stderr\nbroken\n\n"
    some = fleet.pcm("output", job.id, c, d).stdout
    assert some.endswith(f"== {d}  queued  (no output)\n")
    rows = list(map(json.loads, fleet.pcm("output", job.id, "--json").stdout.splitlines()))
    assert [row["workstation"] for row in rows] == [a, b, c]
    assert rows[2]["stderr"]["head"] == "broken"
    for words, message in (
        ([d], "no output"),
        ([a, "--stderr"], "no output on stderr"),
        (["nowhere"], "is not for nowhere"),
    ):
        nothing = fleet.pcm("output", job.id, *words)
        assert nothing.returncode == 1
        assert message in nothing.stderr
        assert len(nothing.stderr.splitlines()) == 1


async def test_an_unknown_workstation_is_answered_with_the_nearest(fleet: SimulatedFleet) -> None:
    job = fleet.job("a")
    name = fleet.name("a")
    await fleet.append(fleet.check_in("a"), job)
    shown = fleet.pcm("show", job.id, "--workstation", f"{name}x")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr.endswith(f" explains it; did you mean {name}?\n")
    explained = fleet.pcm("why", job.id, f"{name}x")
    assert (explained.returncode, explained.stderr) == (0, f"pcm: did you mean {name}?\n")
    assert fleet.pcm("why", job.id, name).stderr == ""


async def test_a_file_is_given_as_it_was_written(fleet: SimulatedFleet) -> None:
    body = bytes(range(256)) * 3
    job = fleet.job("a", "b")
    whole, cut = result(0), result(0)
    whole = whole.model_copy(update={"stdout": Output(head=body)})
    cut = cut.model_copy(update={"stdout": Output(head=b"begin\n", dropped=1234, tail=b"end")})
    await fleet.append(
        job,
        fleet.report(job, "a", S.SUCCEEDED, result=whole),
        fleet.report(job, "b", S.SUCCEEDED, result=cut),
    )
    done = fleet.pcm_bytes("output", job.id, fleet.name("a"), "--stdout")
    assert (done.returncode, done.stdout, done.stderr) == (0, body, b"")
    done = fleet.pcm_bytes("output", job.id, fleet.name("b"), "--stdout")
    assert done.stdout == b"begin\nend"
    assert b"1,234 bytes are missing after the first 6" in done.stderr
    assert (
        b"begin\n\n... 1,234 bytes left out ...\nend\n" in fleet.pcm_bytes("output", job.id).stdout
    )


def on_a_terminal(fleet: SimulatedFleet, *words: str) -> str:
    """Run pcm on a terminal, and return what that got."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    process = subprocess.Popen(
        [BIN / "pcm", *words], env=fleet.environment | {"TERM": "xterm"}, stdin=theirs,
        stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # its last user has closed it
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    assert process.wait(LIMIT) == 0
    return b"".join(parts).decode()


@pytest.mark.full
async def test_nothing_that_was_written_reaches_a_terminal_s_controls(
    fleet: SimulatedFleet,
) -> None:
    job = fleet.job("a", name="x" + NASTY)
    ended: Report = fleet.report(
        job, "a", S.FAILED, reason=NASTY, result=result(1, stdout=f"a\tb\r\n{NASTY}\n")
    )
    await fleet.append(fleet.check_in("a"), job, ended)
    for words in (
        ("jobs", "--text", fleet.prefix),
        ("show", job.id),
        ("show", job.id, "--workstation", fleet.name("a")),
        ("output", job.id),
        ("output", job.id, fleet.name("a"), "--stdout"),
        ("output", job.id, "--together"),
        ("why", job.id, fleet.name("a")),
    ):
        text = on_a_terminal(fleet, *words)
        assert "wiped" in text or words[0] == "jobs"
        for bad in ("\x1b[2J", "\x1b]", "\x07", "\x9b", "\u202e", "\rover"):
            assert bad not in text, words
    shown = on_a_terminal(fleet, "output", job.id)
    assert "a\tb\r\n\\x1b[2J" in shown
    assert NASTY.encode() in fleet.pcm_bytes("output", job.id).stdout


@pytest.mark.full
async def test_a_fleet_of_ten_thousand_does_not_flood(fleet: SimulatedFleet) -> None:
    words = [f"{number:05}" for number in range(10_000)]
    everyone = group(fleet.name("all"))
    job = Job.model_validate({**fleet.job("x").model_dump(), "targets": [everyone]})
    await fleet.append(*(fleet.check_in(word, groups=(everyone.name,)) for word in words))
    await fleet.append(job)
    wrote = [result(number % 2, stdout=f"{number % 3}\n") for number in range(6)]
    await fleet.append(
        *(
            fleet.report(job, word, (S.SUCCEEDED, S.FAILED)[place % 2], result=wrote[place % 6])
            for place, word in enumerate(words[:9_990])
        )
    )
    assert "4,995 succeeded, 4,995 failed, 10 queued" in fleet.pcm("jobs").stdout
    for command in (
        ["show", job.id],
        ["output", job.id],
        ["output", job.id, "--together"],
        ["show", job.id, "--json"],
    ):
        assert len(fleet.pcm(*command).stdout) < 30_000
    assert "9,950 more workstations" in fleet.pcm("show", job.id).stdout
    assert fleet.pcm("output", job.id).stderr == "pcm: 9,940 more; --all shows them\n"
    assert fleet.pcm("output", job.id, "--together").stdout.count("1,665 workstations") == 6
    assert fleet.pcm("output", job.id, "--all").stdout.count("== ") == 9_990


async def test_what_is_missing_from_the_history_is_reported(fleet: SimulatedFleet) -> None:
    from sqlalchemy import create_engine, insert

    from broker.history.schema import gaps

    job = fleet.job("a")
    await fleet.append(fleet.check_in("a"), job)
    assert fleet.pcm("show", job.id).stderr == ""
    engine = create_engine(fleet.environment["PCM_HISTORY_URL"])
    with engine.begin() as connection:
        connection.execute(insert(gaps).values(first=3, next=8, why="it was dropped"))
    engine.dispose()
    done = fleet.pcm("show", job.id)
    assert done.returncode == 0
    assert "incomplete: 5 entries of the stream from offset 3 are missing" in done.stderr


async def test_the_history_answers_without_the_broker(fleet: SimulatedFleet) -> None:
    job = fleet.job("a")
    await fleet.append(fleet.check_in("a"), job)
    fleet.pcm("show", job.id)
    nowhere = URL(fleet.environment["PCM_AMQP_URL"]).with_host("127.0.0.1").with_port(1)
    done = fleet.pcm("show", job.id, PCM_AMQP_URL=str(nowhere), PCM_PATIENCE="1s")
    assert done.returncode == 0
    assert "queued" in done.stdout
    assert done.stderr.startswith("pcm: the history may be out of date: ")


async def test_an_id_that_is_not_one_job_s_is_reported(fleet: SimulatedFleet) -> None:
    one = fleet.job("a", id=fleet.name("same-1"))
    other = fleet.job("a", id=fleet.name("same-2"))
    await fleet.append(one, other)
    for command in ("show", "output"):
        done = fleet.pcm(command, fleet.name("same"))
        assert (done.returncode, done.stdout) == (1, "")
        both = f"{other.id}, {one.id}"
        assert done.stderr == f"pcm: {fleet.name('same')}: matches several: {both}\n"
    assert fleet.pcm("show", one.id).returncode == 0


def test_what_a_real_agent_did_is_reported(ws: Workstation, tmp_path: Path) -> None:
    ws.start("service")
    to = ["--to", str(ws.target), "--background"]
    sent = ws.run("pcm", "send", *to, "--wait", "--shell", "--", "echo fine; echo odd >&2; exit 7")
    job = sent.stdout.split()[0]
    later = ws.run("pcm", "send", *to, "--mandatory-at", "+2h", "--", "true").stdout.strip()
    shown = ws.run("pcm", "show", job)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.splitlines()[-1].split()[:2] == [ws.name, "failed"]
    written = ws.run("pcm", "output", job)
    assert written.stdout == f"== {ws.name}  failed  exit 7\nfine\n-- stderr\nodd\n\n"
    why = ws.run("pcm", "why", job, ws.name).stdout
    assert why.startswith("The service agent ran it: it failed at ")
    assert " with exit code 7 in under a second: odd.\n" in why
    waits = ws.run("pcm", "why", later, ws.name).stdout
    assert "its mandatory time is" in waits
    page = tmp_path / "page.html"
    assert ws.run("pcm", "report", job, "--html", str(page)).returncode == 0
    assert "odd" in page.read_text()
