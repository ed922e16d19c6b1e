"""Rollouts on real workstations, driven by the real program, which is killed at named points."""

import asyncio
import json
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from schemas import Job
from tests.support.fleets import Administrator, Fleet, fleet, killed_at, line_of, runs
from tests.support.rabbitmq import Broker
from tests.support.waiting import LIMIT

PACE = ("--waves", "1,100%")


@pytest.fixture(scope="module")
def three(node: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three workstations with service agents."""
    with fleet(3, node.url, tmp_path_factory.mktemp("fleet")) as made:
        made.start()
        asyncio.run(made.seen())
        yield made


@pytest.fixture
def admin(node: Broker, tmp_path: Path) -> Iterator[Administrator]:
    made = Administrator(node.url, tmp_path)
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """A file to which each run writes the name of its workstation."""
    return tmp_path / "ran"


def send(made: Fleet, ran: Path, *options: str, script: str = "") -> tuple[str, ...]:
    """Return the words of a rollout whose command leaves a line for each of its runs."""
    note = f"echo $PCM_WORKSTATION >> {ran}; {script}"
    return ("send", *made.to, "--background", *PACE, *options, "--shell", "--", note)


def once(made: Fleet) -> dict[str, int]:
    return dict.fromkeys(made.names, 1)


def test_a_rollout_in_two_waves(three: Fleet, admin: Administrator, ran: Path) -> None:
    done = admin.pcm(*send(three, ran, "--pause", "1s"))
    assert (done.returncode, done.stderr) == (0, ""), done
    rollout_id, size, *lines = done.stdout.splitlines()
    assert size == "3 workstations in 2 waves: 1, 2"
    assert lines[0] == "nothing sent; sending wave 1 to 1 workstation"
    assert "wave 1 of 2; sending wave 2 to 2 workstations; 1 succeeded" in lines
    assert lines[-1] == "wave 2 of 2; finished; 3 succeeded"
    assert runs(ran) == once(three)
    shown = admin.rollout(rollout_id[:-1])
    assert (shown["state"], shown["sent_to"], shown["counts"]) == ("finished", 3, {"succeeded": 3})
    assert [len(wave["workstations"]) for wave in shown["plan"]] == [1, 2]
    first, second = (datetime.fromisoformat(wave["begun_at"]) for wave in shown["plan"])
    assert second - first >= timedelta(seconds=1)
    assert rollout_id in admin.pcm("rollout", "list").stdout
    assert "finished" in admin.pcm("rollout", "show", rollout_id).stdout
    resumed = admin.pcm("rollout", "resume", rollout_id)
    assert (resumed.returncode, resumed.stdout) == (0, f"{lines[-1]}\n")
    for what in ("pause", "abort"):
        refused = admin.pcm("rollout", what, rollout_id)
        assert (refused.returncode, refused.stderr.count("finished")) == (1, 1), refused


def test_progress_as_json(three: Fleet, admin: Administrator, ran: Path) -> None:
    done = admin.pcm(*send(three, ran, "--json"))
    first, *lines = map(json.loads, done.stdout.splitlines())
    assert (first["workstations"], first["waves"]) == (3, [1, 2])
    assert {line["rollout"] for line in lines} == {first["rollout"]}
    assert [line["state"] for line in (lines[0], lines[-1])] == ["due", "finished"]
    assert first["rollout"] in {line["rollout"] for line in admin.json("rollout", "list")}


RECORD, JOB = r"pcm.reports job\.\S+-w{}\b", r"pcm.jobs \S+ \S+-w{}\b"
"""Of a wave's job: what goes to the stream, and what to the workstations."""


@pytest.mark.full
@pytest.mark.parametrize("wave", ["1", "2"])
@pytest.mark.parametrize(
    ("point", "text"),
    [
        ("sending", RECORD),
        ("sent", RECORD),
        ("sending", JOB),
        ("sent", JOB),
        ("recording", "number={}"),
        ("recorded", "number={}"),
    ],
)
def test_a_driver_that_is_killed_is_followed_by_another(
    three: Fleet, admin: Administrator, ran: Path, point: str, text: str, wave: str
) -> None:
    """Between any two steps: nothing is lost, and nothing runs twice."""
    killed = admin.pcm_by(killed_at(point, text.format(wave)), *send(three, ran))
    assert killed.returncode == -signal.SIGKILL, killed
    rollout_id = killed.stdout.splitlines()[0]
    done = admin.pcm("rollout", "resume", rollout_id)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout.endswith("wave 2 of 2; finished; 3 succeeded\n")
    assert runs(ran) == once(three)


@pytest.mark.parametrize(("point", "known"), [("recording", []), ("recorded", ["due"])])
def test_a_driver_that_is_killed_as_it_begins(
    three: Fleet, admin: Administrator, ran: Path, point: str, known: list[str]
) -> None:
    before = {row["rollout"] for row in admin.json("rollout", "list")}
    killed = admin.pcm_by(killed_at(point, "kind='rollout'"), *send(three, ran))
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, "")
    begun = [row for row in admin.json("rollout", "list") if row["rollout"] not in before]
    assert ([row["state"] for row in begun], runs(ran)) == (known, {})
    for row in begun:
        assert admin.pcm("rollout", "resume", row["rollout"]).returncode == 0
        assert runs(ran) == once(three)


@pytest.mark.full
def test_drivers_that_are_killed_again_and_again(
    three: Fleet, admin: Administrator, ran: Path
) -> None:
    options = ("--waves", "1,2,3", "--pause", "1s")
    killed = admin.pcm_by(killed_at("sent", RECORD.format(1)), *send(three, ran, *options))
    rollout_id = killed.stdout.splitlines()[0]
    chance = random.Random(7)
    for _ in range(12):
        driver = admin.begin("rollout", "resume", rollout_id)
        with suppress(subprocess.TimeoutExpired):
            driver.wait(chance.uniform(0.7, 1.7))
        driver.kill()
    assert admin.pcm("rollout", "resume", rollout_id).returncode == 0
    assert runs(ran) == once(three)


def test_a_wave_that_is_known_as_sent_is_not_sent_again(
    three: Fleet, admin: Administrator, ran: Path
) -> None:
    program = killed_at("recorded", "number=1")
    rollout_id = admin.pcm_by(program, *send(three, ran)).stdout.splitlines()[0]
    # A program that sent the first wave again would be killed; the second wave is sent.
    done = admin.pcm_by(killed_at("sending", JOB.format(1)), "rollout", "resume", rollout_id)
    assert done.returncode == 0, done
    assert runs(ran) == once(three)


def test_failures_stop_it_and_it_goes_on_when_more_are_borne(
    three: Fleet, admin: Administrator, ran: Path
) -> None:
    done = admin.pcm(*send(three, ran, script="exit 3"))
    rollout_id, *_, state, hint = done.stdout.splitlines()
    assert done.returncode == 1
    assert state == ("wave 1 of 2; stopped: failures: 1 of 1 workstations, more than 0; 1 failed")
    assert hint == (
        f"to continue: pcm rollout resume {rollout_id} --max-failures N,"
        f" or pcm rollout abort {rollout_id}"
    )
    assert sum(runs(ran).values()) == 1
    refused = admin.pcm("rollout", "resume", rollout_id)
    assert (refused.returncode, "--max-failures" in refused.stderr) == (1, True)
    assert admin.pcm("rollout", "resume", rollout_id, "--max-failures", "100%").returncode == 0
    assert runs(ran) == once(three)
    assert admin.rollout(rollout_id)["failures"] == 3


def test_failures_stop_it_in_the_middle_of_a_wave(
    three: Fleet, admin: Administrator, ran: Path, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    script = f"mkdir {tmp_path}/first && exit 1; while ! test -e {go}; do sleep 0.1; done"
    words = send(three, ran, "--waves", "2,100%", script=script)
    done = admin.pcm(*words)
    assert (done.returncode, "stopped: failures: 1 of 2" in done.stdout) == (1, True), done
    rollout_id = done.stdout.splitlines()[0]
    assert admin.rollout(rollout_id)["counts"] == {"failed": 1, "started": 1}
    go.touch()
    shown = admin.until(rollout_id, lambda shown: shown["counts"].get("succeeded"))
    assert (shown["state"], shown["sent_to"]) == ("stopped", 2)
    assert admin.pcm("rollout", "abort", rollout_id).returncode == 0


def test_who_does_not_end_in_time_has_failed(three: Fleet, admin: Administrator, ran: Path) -> None:
    done = admin.pcm(*send(three, ran, "--wave-limit", "1s", script="exec sleep 60"))
    assert (done.returncode, "stopped: failures: 1 of 1" in done.stdout) == (1, True), done
    rollout_id = done.stdout.splitlines()[0]
    aborted = admin.pcm("rollout", "abort", rollout_id, "--reason", "too slow")
    assert (aborted.returncode, aborted.stderr) == (0, "")
    shown = admin.until(rollout_id, lambda shown: "cancelled" in shown["counts"])
    assert (shown["state"], shown["counts"]) == ("aborted", {"cancelled": 1})
    assert shown["reason"].endswith(": too slow")
    again = admin.pcm("rollout", "resume", rollout_id)
    assert (again.returncode, "aborted" in again.stderr) == (1, True)


def test_paused_by_another_administrator_and_resumed(
    three: Fleet, admin: Administrator, ran: Path, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    driver = admin.begin(*send(three, ran, script=f"while ! test -e {go}; do sleep 0.1; done"))
    assert driver.stdout is not None
    rollout_id = driver.stdout.readline().strip()
    line_of(driver, ["1 started"])
    paused = admin.pcm("rollout", "pause", rollout_id, "--reason", "lunch")
    assert (paused.returncode, paused.stderr) == (0, "")
    out, _ = driver.communicate(timeout=LIMIT)
    assert (driver.returncode, ": lunch" in out) == (1, True)
    go.touch()
    shown = admin.until(rollout_id, lambda shown: shown["counts"] == {"succeeded": 1})
    assert (shown["state"], sum(runs(ran).values())) == ("paused", 1)
    assert admin.pcm("rollout", "resume", rollout_id).returncode == 0
    assert runs(ran) == once(three)


@pytest.mark.full
def test_aborted_after_the_job_expired(three: Fleet, admin: Administrator, ran: Path) -> None:
    """A running command continues after the expiry, until it is cancelled."""
    admin.pcm("rollout", "list")  # what there is to read is read before the time counts
    done = admin.pcm(
        *send(three, ran, "--expires-at", "+8s", "--give-up-after", "9s", script="exec sleep 60")
    )
    rollout_id = done.stdout.splitlines()[0]
    shown = admin.rollout(rollout_id)
    assert (shown["state"], shown["counts"]) == ("running", {"started": 1})
    assert admin.pcm("rollout", "abort", rollout_id, "--reason", "x" * 1000).returncode == 0
    admin.until(rollout_id, lambda shown: shown["counts"] == {"cancelled": 1})


@pytest.mark.full
def test_a_job_that_expires_between_two_waves(
    three: Fleet, admin: Administrator, ran: Path
) -> None:
    admin.pcm("rollout", "list")
    done = admin.pcm(*send(three, ran, "--expires-at", "+8s", "--pause", "9s"))
    assert (done.returncode, done.stderr) == (1, "")
    assert "expired: the job expired before wave 2 was sent" in done.stdout
    assert sum(runs(ran).values()) == 1
    assert admin.pcm("rollout", "abort", done.stdout.splitlines()[0]).returncode == 0


def test_aborted_by_another_administrator(three: Fleet, admin: Administrator, ran: Path) -> None:
    """Its running commands are ended."""
    driver = admin.begin(*send(three, ran, script="exec sleep 60"))
    assert driver.stdout is not None
    rollout_id = driver.stdout.readline().strip()
    line_of(driver, ["1 started"])
    assert admin.pcm("rollout", "abort", rollout_id).returncode == 0
    out, _ = driver.communicate(timeout=LIMIT)
    assert (driver.returncode, "aborted" in out) == (1, True)
    admin.until(rollout_id, lambda shown: shown["counts"] == {"cancelled": 1})
    assert sum(runs(ran).values()) == 1


def test_a_wave_cancelled_by_hand_holds_the_rest(
    three: Fleet, admin: Administrator, ran: Path
) -> None:
    driver = admin.begin(*send(three, ran, script="exec sleep 60"))
    assert driver.stdout is not None
    rollout_id = driver.stdout.readline().strip()
    line_of(driver, ["1 started"])
    assert admin.pcm("cancel", f"{rollout_id}-w1").returncode == 0
    out, _ = driver.communicate(timeout=LIMIT)
    assert (driver.returncode, "cancelled wave 1" in out) == (1, True)
    assert admin.pcm("rollout", "abort", rollout_id).returncode == 0


@pytest.mark.full
def test_two_drivers_at_once(three: Fleet, admin: Administrator, ran: Path) -> None:
    program = killed_at("recorded", "kind='rollout'")
    before = {row["rollout"] for row in admin.json("rollout", "list")}
    admin.pcm_by(program, *send(three, ran, "--waves", "1,2,3", "--pause", "2s"))
    (rollout_id,) = {row["rollout"] for row in admin.json("rollout", "list")} - before
    drivers = [admin.begin("rollout", "resume", rollout_id) for _ in range(2)]
    for driver in drivers:
        out, errors = driver.communicate(timeout=LIMIT)
        assert (driver.returncode, errors) == (0, "")
        assert out.endswith("finished; 3 succeeded\n")
    assert runs(ran) == once(three)


def test_with_a_collector(three: Fleet, admin: Administrator, ran: Path) -> None:
    """Only the collector reads the stream then."""
    admin.begin("collect")
    deadline = time.monotonic() + LIMIT
    while not (status := json.loads(admin.pcm("history", "status", "--json").stdout))["collector"]:
        assert time.monotonic() < deadline, status
    done = admin.pcm(*send(three, ran))
    assert done.returncode == 0, done
    assert runs(ran) == once(three)
    status = json.loads(admin.pcm("history", "status", "--json").stdout)
    assert status["collector"]


@pytest.mark.full
def test_interrupted_it_tells_how_to_go_on(three: Fleet, admin: Administrator, ran: Path) -> None:
    driver = admin.begin(*send(three, ran, "--pause", "1h"))
    assert driver.stdout is not None
    rollout_id = driver.stdout.readline().strip()
    line_of(driver, ["pausing until"])
    driver.send_signal(signal.SIGINT)
    _, errors = driver.communicate(timeout=LIMIT)
    assert driver.returncode == 130
    assert errors == f"pcm: no program runs it now: pcm rollout resume {rollout_id} continues it\n"
    assert admin.rollout(rollout_id)["state"] == "pausing"
    left = admin.pcm(*send(three, ran, "--pause", "1h", "--give-up-after", "3s"))
    assert (left.returncode, "pcm rollout resume" in left.stderr) == (1, True)
    for row in admin.json("rollout", "list"):
        if row["state"] == "pausing":
            admin.pcm("rollout", "abort", row["rollout"])


async def test_a_workstation_whose_queue_is_gone_is_left_out(
    node: Broker, admin: Administrator, ran: Path, tmp_path: Path
) -> None:
    with fleet(2, node.url, tmp_path) as two:
        here, away = two.names
        two.start(here)
        await two.check_in(away)
        await two.seen()
        done = admin.pcm(*send(two, ran))
        assert (done.returncode, done.stderr) == (
            0,
            f"pcm: left out: no queue is bound for {away}\n",
        )
        assert runs(ran) == {here: 1}
        two.stop()


def test_some_are_excluded(three: Fleet, admin: Administrator, ran: Path) -> None:
    job = Job.model_validate(
        {
            "command": {
                "argv": [f"echo $PCM_WORKSTATION >> {ran}"],
                "shell": True,
                "background": True,
            },
            "targets": [f"group:{three.group}"],
            "excluded": [f"workstation:{three.names[0]}"],
        }
    )
    file = ran.with_name("job.json")
    file.write_bytes(job.body())
    done = admin.pcm("send", "--file", str(file), *PACE)
    assert done.returncode == 0, done
    assert runs(ran) == dict.fromkeys(three.names[1:], 1)


def test_no_workstation_is_known(admin: Administrator) -> None:
    done = admin.pcm("send", "--to", "group:no-such-group", "--waves", "1,100%", "--", "true")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "pcm: no known workstation is in group:no-such-group; nothing was sent\n"
    )


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["send", "--waves", "5%,1%", "--", "true"], "--waves"),
        (["send", "--waves", "1,x", "--", "true"], "--waves"),
        (["send", "--max-failures", "1", "--", "true"], "--max-failures"),
        (["send", "--waves", "1,100%", "--max-failures", "1.5%", "--", "true"], "--max-failures"),
        (["send", "--waves", "1,100%", "--pause", "5", "--", "true"], "--pause"),
        (["send", "--waves", "1,100%", "--wave-limit", "0s", "--", "true"], "--wave-limit"),
        (["rollout"], "list|show"),
        (["rollout", "show"], "ID"),
        (["rollout", "resume", "x", "--max-failures", "many"], "--max-failures"),
    ],
)
def test_bad_input_is_one_line_that_names_it(
    admin: Administrator, words: list[str], named: str
) -> None:
    done = admin.pcm(*words)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert len(done.stderr.splitlines()) == 1
    assert named in done.stderr


def test_waves_that_leave_workstations_out(three: Fleet, admin: Administrator, ran: Path) -> None:
    done = admin.pcm(*send(three, ran, "--waves", "1,50%"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("pcm: --waves: 50%: only 2 of 3 workstations: end with 100%\n")


def test_an_unknown_rollout(admin: Administrator) -> None:
    for what in ("show", "pause", "resume", "abort"):
        done = admin.pcm("rollout", what, "unknown")
        assert (done.returncode, done.stderr) == (
            1,
            "pcm: unknown: no such rollout in the history\n",
        )


def test_its_id_works_where_a_jobs_does(
    three: Fleet, admin: Administrator, ran: Path, tmp_path: Path
) -> None:
    done = admin.pcm(*send(three, ran, script='echo "hello from $PCM_WORKSTATION"'))
    rollout_id = done.stdout.splitlines()[0]
    shown = admin.pcm("show", rollout_id)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"pcm rollout show {rollout_id} shows them" in shown.stdout
    assert all(
        f"hello from {name}" in admin.pcm("output", rollout_id).stdout for name in once(three)
    )
    for name in three.names:
        one = admin.pcm("output", rollout_id, name, "--stdout")
        assert one.stdout == f"hello from {name}\n"
        assert "succeeded" in admin.pcm("why", rollout_id, name).stdout
        assert f"{name}: succeeded" in admin.pcm("show", rollout_id, "--workstation", name).stdout
    assert admin.pcm("report", rollout_id, "--csv", "-").stdout.count("succeeded") == 3
    assert admin.pcm("report", rollout_id, "--html", str(tmp_path / "x.html")).returncode == 0
    watched = admin.pcm("watch", rollout_id)
    assert (watched.returncode, watched.stdout) == (0, "wave 2 of 2; finished; 3 succeeded\n")
    refused = admin.pcm("cancel", rollout_id)
    assert (refused.returncode, refused.stderr) == (1, "pcm: it is finished already\n")
    again = admin.pcm("rerun", rollout_id, "--state", "succeeded", "--workstation", three.names[0])
    assert (again.returncode, again.stderr) == (0, "")


def test_watched_and_cancelled_by_its_id(three: Fleet, admin: Administrator, ran: Path) -> None:
    driver = admin.begin(*send(three, ran, script="exec sleep 60"))
    assert driver.stdout is not None
    rollout_id = driver.stdout.readline().strip()
    line_of(driver, ["1 started"])
    watcher = admin.begin("watch", rollout_id)
    line_of(watcher, ["1 started"])
    (first, *_), *_ = [wave["workstations"] for wave in admin.rollout(rollout_id)["plan"]]
    (later, *_) = admin.rollout(rollout_id)["plan"][1]["workstations"]
    assert "was not sent" in admin.pcm("why", rollout_id, later).stdout
    there = admin.pcm("cancel", rollout_id, "--workstation", later)
    assert (there.returncode, "no wave with" in there.stderr) == (1, True)
    there = admin.pcm("cancel", rollout_id, "--workstation", first)
    assert there.stdout.startswith(f"{rollout_id}-w1: cancelled on {first}; ")
    assert admin.pcm("cancel", rollout_id).returncode in {0, 1}  # the driver may send the rest
    for process in (driver, watcher):
        process.communicate(timeout=LIMIT)
        assert process.returncode == 1


def test_several_matches_are_listed(three: Fleet, admin: Administrator, ran: Path) -> None:
    ids = [admin.pcm(*send(three, ran)).stdout.splitlines()[0] for _ in range(2)]
    for words in (["show"], ["output"], ["watch"], ["cancel"], ["rollout", "show"]):
        done = admin.pcm(*words, "20")
        assert done.returncode == 1
        assert "20: matches several" in done.stderr
        assert all(rollout_id in done.stderr for rollout_id in ids), done.stderr
