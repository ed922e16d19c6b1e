"""Windows see what an interactive agent does, as it happens, and hold up nothing."""

import json
import os
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from broker import Dispatcher, DispatcherSettings
from schemas import State
from tests.support.clock import LOOK_EVERY, Clock
from tests.support.counted import ended, now
from tests.support.steering import pause
from tests.support.waiting import LIMIT, until, until_there
from tests.support.window import asked, memory, offer, row, seen, watching, window
from tests.support.workstation import AgentProcess, Workstation

WAITING = "until test -e {go}; do sleep 0.05; done"


async def test_a_window_sees_all_that_happens_to_an_offer(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    began = time.time()
    ws.start("interactive", remind="none")
    go = tmp_path / "go"
    with watching(ws) as window:
        first = window.next()
        assert (first["workstation"], first["user"]) == (ws.name, "ada")
        assert (first["broker"], first["service"], first["paused"]) == ("connected", "absent", None)
        assert began <= first["now"] <= time.time()
        assert first["since"] <= first["now"]
        assert (first["offers"], first["running"], first["history"]) == ([], [], [])
        job = await dispatcher.dispatch(
            ws.job(
                WAITING.format(go=go) + "; exit 3",
                shell=True,
                name="Office update",
                comment="the old one has a hole",
                expires_at=now(hours=1),
                max_postponements=2,
                min_interval=timedelta(minutes=5),
                user_may_stop=True,
                restart_exit_codes=frozenset({3}),
            )
        )
        found = offer(window.until(lambda snapshot: offer(snapshot, job)), job)
        assert found is not None
        assert began <= found.pop("shown_at") <= time.time()
        assert job.expires_at is not None
        assert found.pop("expires_at") == job.expires_at.timestamp()  # type: ignore[union-attr]
        assert found == {
            "job": job.id,
            "name": "Office update",
            "comment": "the old one has a hole",
            "sender": job.sender,
            "command": str(job.command),
            "requirement": "optional",
            "state": "offered",
            "mandatory_at": None,
            "deadline": None,
            "countdown": False,
            "timeout": 3600,
            "until": None,
            "starts_at": None,
            "postponements_left": 2,
            "min_interval": 300,
            "may_decline": True,
        }
        assert asked(ws, "run", job) == {"message": "Office update: runs now"}
        snapshot = window.until(lambda snapshot: row(snapshot["running"], job))
        running = row(snapshot["running"], job)
        assert running is not None
        assert offer(snapshot, job) is None
        assert began <= running.pop("started_at") <= time.time()
        common = {name: found[name] for name in ("job", "name", "comment", "sender", "command")}
        assert running == {**common, "timeout": 3600, "may_stop": True}
        go.touch()
        snapshot = window.until(lambda snapshot: row(snapshot["history"], job))
        past = row(snapshot["history"], job)
        assert past is not None
        assert snapshot["running"] == []
        assert past.pop("duration") > 0
        assert began <= past.pop("at") <= time.time()
        assert past == {
            **common,
            "state": "succeeded",
            "exit_code": 3,
            "signal": None,
            "restart_required": True,
            "reason": "",
        }
    ws.agents[0].end()
    ws.start("interactive")
    with watching(ws) as window:
        (shown_again,) = window.until(lambda snapshot: snapshot["history"])["history"]
        assert shown_again.pop("duration") > 0
        assert began <= shown_again.pop("at") <= time.time()
        assert shown_again == past


async def test_a_mandatory_offer_tells_when_it_runs(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    clock = Clock(ws)
    clock.start("interactive", countdown="1h", missing_after=LOOK_EVERY)
    due = now(hours=2)
    job = await dispatcher.dispatch(ws.job("true", mandatory_at=due))
    found = seen(ws, job)
    assert (found["requirement"], found["may_decline"]) == ("mandatory", False)
    assert found["deadline"] == found["mandatory_at"] == due.timestamp()
    assert not found["countdown"]
    clock.set(3600 + 60)
    assert seen(ws, job, countdown=True)["deadline"] == due.timestamp()
    clock.set(2 * 3600 + 60)
    assert (await ended(dispatcher, job)).state is State.SUCCEEDED


async def test_nothing_of_background_jobs_nor_before_the_offer_time(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    """Q165147, Q149683."""
    ws.start("interactive")
    ws.start("service")
    with watching(ws) as window:
        hidden = await dispatcher.dispatch(ws.job("echo", "hidden", background=True))
        later = await dispatcher.dispatch(ws.job("echo", "later", offer_at=now(hours=1)))
        assert (await ended(dispatcher, hidden)).state is State.SUCCEEDED
        job = await dispatcher.dispatch(ws.job("true"))
        while True:
            snapshot = window.next()
            assert hidden.id not in json.dumps(snapshot)
            assert later.id not in json.dumps(snapshot)
            if offer(snapshot, job):
                break


@pytest.mark.full
async def test_the_service_and_a_pause_are_seen(
    ws: Workstation, settings: DispatcherSettings
) -> None:
    ws.start("interactive")
    with watching(ws) as window:
        assert window.next()["service"] == "absent"
        service = ws.start("service")
        window.until(lambda snapshot: snapshot["service"] == "up")
        began = time.time()
        await pause(settings, ws, reason="exams")
        paused = window.until(lambda snapshot: snapshot["paused"])["paused"]
        assert paused["reason"] == "exams"
        assert int(began) <= paused["since"] <= time.time()
        await pause(settings, ws, paused=False)
        window.until(lambda snapshot: snapshot["paused"] is None)
        service.end(9)
        window.until(lambda snapshot: snapshot["service"] == "absent")
        ws.start("service")
        window.until(lambda snapshot: snapshot["service"] == "up")


def test_a_broker_that_is_away_or_refuses_is_reported(ws: Workstation) -> None:
    ws.start("interactive", connected=False, amqp_url="amqp://127.0.0.1:1/").wait_for("broker.lost")
    with watching(ws) as window:
        assert window.next()["broker"] == "unreachable"
    ws.agents[0].end()
    url = ws.environment["PCM_AMQP_URL"].replace("guest:guest", "guest:wrong")
    assert "wrong" in url
    ws.start("interactive", connected=False, amqp_url=url).wait_for("broker.lost")
    with watching(ws) as window:
        window.until(lambda snapshot: snapshot["broker"] == "refused")


async def test_several_windows_see_the_same_and_one_that_goes_is_forgotten(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    agent = ws.start("interactive")
    with watching(ws) as window:
        window.next()
        before = open_files(agent)
        with watching(ws) as second, watching(ws) as third:
            assert second.next()["offers"] == third.next()["offers"] == []
            job = await dispatcher.dispatch(ws.job("true"))
            offers = [
                opened.until(lambda snapshot: offer(snapshot, job))["offers"]
                for opened in (window, second, third)
            ]
            assert offers[0] == offers[1] == offers[2]
            assert open_files(agent) == before + 2
        await until(lambda: open_files(agent) == before)
        asked(ws, "decline", job)
        window.until(lambda snapshot: snapshot["offers"][0]["state"] == "declined")


def open_files(agent: AgentProcess) -> int:
    return len(list(Path(f"/proc/{agent.process.pid}/fd").iterdir()))


async def test_a_window_does_not_keep_its_agent_from_ending(ws: Workstation) -> None:
    agent = ws.start("interactive")
    with watching(ws) as window:
        window.next()
        assert agent.end() == 0
        assert list(window.rest()) == []
    assert "Traceback" not in agent.log.read_text()


async def test_at_most_five_pictures_a_second(ws: Workstation, dispatcher: Dispatcher) -> None:
    ws.start("interactive")
    with watching(ws) as window:
        window.next()
        began = time.monotonic()
        jobs = [ws.job("true") for _ in range(60)]
        async for _ in dispatcher.dispatch_all(jobs):
            pass
        count = 1
        while len(window.next()["offers"]) < len(jobs):
            count += 1
        assert count <= 5 * (time.monotonic() - began) + 1


@pytest.mark.parametrize("survives", [False, True])
async def test_output_is_seen_as_it_comes(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path, *, survives: bool
) -> None:
    ws.start("interactive")
    go, began = tmp_path / "go", tmp_path / "began"
    script = f"echo first; echo x > {began}; {WAITING.format(go=go)}; echo wrong >&2; echo last"
    job = await dispatcher.dispatch(ws.job(script, shell=True, survives_agent=survives))
    seen(ws, job)
    refused = asked(ws, "output", job)
    assert refused == {"error": f"{job.id}: no such job runs or has ended here"}
    asked(ws, "run", job)
    until_there(began)
    request = {"do": "output", "job": job.id}
    with window(ws, request) as one, window(ws, request) as two:
        for opened in (one, two):
            assert opened.next() == {"stream": "stdout", "text": "first\n"}
        go.touch()
        for opened in (one, two):
            *lines, end = opened.rest()
            texts = {"stdout": "", "stderr": ""}
            for line in lines:
                texts[line["stream"]] += line["text"]
            assert texts == {"stdout": "last\n", "stderr": "wrong\n"}
            assert (end["ended"]["job"], end["ended"]["state"]) == (job.id, "succeeded")
    with window(ws, request) as opened:
        *lines, end = opened.rest()
    assert lines == [
        {"stream": "stdout", "text": "first\nlast\n"},
        {"stream": "stderr", "text": "wrong\n"},
    ]
    assert end["ended"]["exit_code"] == 0


async def test_ten_thousand_lines_a_second_all_arrive(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    ws.start("interactive")
    script = (
        "import sys, time\n"
        "for second in range(20):\n"
        "    for line in range(1000): print('line', second * 1000 + line, '\\u00fc' * 20)\n"
        "    sys.stdout.flush(); time.sleep(0.1)\n"
    )
    job = await dispatcher.dispatch(
        ws.job(sys.executable, "-c", script, environment={"PYTHONIOENCODING": "utf-8"})
    )
    seen(ws, job)
    asked(ws, "run", job)
    with watching(ws) as opened:
        opened.until(lambda snapshot: row(snapshot["running"], job))
    with window(ws, {"do": "output", "job": job.id}) as opened:
        *lines, end = opened.rest()
    text = "".join(line["text"] for line in lines)
    assert text.splitlines() == [f"line {number} {'ü' * 20}" for number in range(20_000)]
    assert end["ended"]["state"] == "succeeded"


async def test_a_slow_window_keeps_neither_the_command_nor_memory(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    agent = ws.start("interactive")
    go, began = tmp_path / "go", tmp_path / "began"
    script = (
        f"import os, time; open({str(began)!r}, 'w').write('x')\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.02)\n"
        "for line in range(100_000): print(line, 'x' * 100)\n"
    )
    job = await dispatcher.dispatch(ws.job(sys.executable, "-c", script))
    seen(ws, job)
    asked(ws, "run", job)
    until_there(began)
    with window(ws, {"do": "output", "job": job.id}) as slow:
        before = memory(agent.process.pid)
        go.touch()
        assert (await ended(dispatcher, job)).state is State.SUCCEEDED
        assert memory(agent.process.pid) - before < 16 * 1024 * 1024
        *lines, end = slow.rest()
    dropped = sum(line.get("dropped", 0) for line in lines)
    text = "".join(line.get("text", "") for line in lines)
    whole = sum(len(f"{line} {'x' * 100}\n") for line in range(100_000))
    assert dropped > whole / 2
    assert dropped + len(text) == whole
    assert text.endswith(f"\n99999 {'x' * 100}\n")
    assert end["ended"]["exit_code"] == 0


STRANGER = """
import os, socket, sys
os.chdir(sys.argv[1])
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
speaker = socket.socket(socket.AF_UNIX)
speaker.connect("control.sock")
speaker.sendall(b'{"do": "watch"}\\n')
print(speaker.makefile().readline(), end="")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
async def test_another_user_is_refused(ws: Workstation) -> None:
    ws.start("interactive")
    with watching(ws) as window:
        window.next()
    folder = ws.state_dir / "interactive-ada"

    def strangers() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", STRANGER, folder],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )

    assert "PermissionError" in strangers().stderr
    # Also if the permissions were widened.
    folder.chmod(0o711)
    (folder / "control.sock").chmod(0o666)
    assert json.loads(strangers().stdout) == {"error": "this agent serves another user"}


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"hello", "one line of JSON"),
        (b"[" * 60_000, "one line of JSON"),
        (b"[]", "a JSON object"),
        (b"{}", "job: must be text"),
        (b'{"do": "output"}', "job: must be text"),
        (b'{"do": "dance", "job": "x"}', "unknown action: 'dance'"),
        (b'{"do": "run", "job": ""}', "JOB: must be a job's id"),
        (b'{"do": "stop", "job": "x"}', "x: no such job runs"),
        (b'{"do": "output", "job": "\\ud800"}', "job: '\\ud800' is not UTF-8"),
    ],
)
async def test_what_is_no_request_is_answered_in_a_sentence(
    shared: Workstation, line: bytes, error: str
) -> None:
    with window(shared, line) as opened:
        (reply,) = opened.rest()
    assert error in reply["error"]
    assert "\n" not in reply["error"]


@pytest.fixture
def shared(ws: Workstation) -> Workstation:
    alone(ws)
    return ws


def alone(ws: Workstation) -> AgentProcess:
    """Start an agent that finds no broker."""
    agent = ws.start("interactive", connected=False, amqp_url="amqp://127.0.0.1:1/")
    agent.wait_for("agent.started")
    return agent


def test_a_stale_socket_does_not_block_the_start(ws: Workstation) -> None:
    agent = alone(ws)
    with watching(ws) as window:
        window.next()
    agent.end(9)
    left = ws.state_dir / "interactive-ada" / "control.sock"
    assert left.is_socket()
    with socket.socket(socket.AF_UNIX) as speaker, pytest.raises(ConnectionRefusedError):
        speaker.connect(str(left))
    alone(ws)
    with watching(ws) as window:
        window.next()
