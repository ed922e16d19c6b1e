"""Secrets reach the commands that they are for, and stand nowhere else as they are."""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from broker import Dispatcher, DispatcherSettings
from broker.amqp.connection import connect
from broker.amqp.publisher import Publisher
from broker.stream import stream
from schemas import State
from tests.support.programs import scrambled
from tests.support.workstation import Workstation, checked_in, final

VALUE = "correct-horse-battery-staple"
_LOOK = (
    'printf %s "$TOKEN" | tr a-z b-za; '
    "cat /proc/self/cmdline /proc/$PPID/cmdline > {seen}; sleep {s}"
)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file with a secret, in a folder that the test does not search afterwards."""
    folder = tmp_path / "kept"
    folder.mkdir()
    file = folder / "token"
    file.write_text(VALUE + "\n")
    return file


def _sent(ws: Workstation, *words: str, **settings: str) -> str:
    """Send a job, as an administrator does; return its id."""
    done = ws.run("pcm", "send", *words, **_admin(ws), **settings)
    assert done.returncode == 0, done.stderr
    assert VALUE not in done.stdout + done.stderr
    return done.stdout.split()[0]


def _admin(ws: Workstation) -> dict[str, str]:
    return {"history_url": f"sqlite:///{ws.folder}/history.db"}


async def _ended(dispatcher: Dispatcher, job_id: str) -> tuple[State, str]:
    report = final([report async for report in dispatcher.follow(job_id)])
    return report.state, report.reason


async def _stream(settings: DispatcherSettings) -> AsyncIterator[bytes]:
    async with connect(settings, "test") as connection:
        publisher = await Publisher.open(connection)
        async with aclosing(stream.read_all(connection, publisher, None)) as entries:
            async for entry in entries:
                yield entry.body


@pytest.mark.full
async def test_a_secret_is_seen_by_its_command_and_found_nowhere(
    ws: Workstation, dispatcher: Dispatcher, settings: DispatcherSettings, secret: Path
) -> None:
    service = ws.start("service")
    interactive = ws.start("interactive", accept_offers="true", no_window="true")
    await checked_in(settings, ws, 2)
    seen = ws.folder / "seen"
    script = _LOOK.format(seen=seen, s=0)
    to = ("--to", str(ws.target), "--secret", f"TOKEN=@{secret}")
    ids = [
        _sent(ws, *to, "--background", "--shell", "--", script),
        _sent(ws, *to, "--shell", "--name", "for a user", "--", script),
        _sent(
            ws, "--to", str(ws.target), "--background", "--secret", "TOKEN=env:PCM_FROM_HERE",
            "--shell", "--survives-agent", "--", script, from_here=VALUE,
        ),
    ]  # fmt: skip
    for job_id in ids:
        reports = [report async for report in dispatcher.follow(job_id)]
        report = final(reports)
        assert report.state is State.SUCCEEDED, report
        assert report.result is not None
        assert str(report.result.stdout) == scrambled(VALUE)  # which is how we know that it came
    runs = [
        ws.run(*words, **_admin(ws))
        for words in (
            ("pcm", "show", ids[0]),
            ("pcm", "show", ids[1], "--json"),
            ("pcm", "why", ids[0], ws.name),
            ("pcm", "jobs", "--json"),
            ("pcm-agent", "history", "--json"),
            ("pcm-agent", "pending"),
            ("pcm", "dead", "list", "--json"),
        )
    ]
    assert all(done.returncode == 0 for done in runs)
    assert "TOKEN (sealed for 1 agent)" in runs[0].stdout
    for agent in (service, interactive):
        agent.end()
    places = {path: path.read_bytes() for path in ws.folder.rglob("*") if path.is_file()}
    places.pop(secret)
    assert {path.name for path in places} > {"ledger.db", "history.db", "seen", "sealing.key"}
    texts = [*places.values(), *(f"{done.stdout}{done.stderr}".encode() for done in runs)]
    texts += [body async for body in _stream(settings)]
    for text in texts:
        assert VALUE.encode() not in text
        assert VALUE.encode().hex().encode() not in text


@pytest.mark.full
@pytest.mark.parametrize("kind", ["service", "interactive"])
async def test_an_agent_with_another_key_does_not_run_it(
    ws: Workstation,
    dispatcher: Dispatcher,
    settings: DispatcherSettings,
    secret: Path,
    kind: str,
) -> None:
    """An agent that was installed again: the former state folder is lost."""
    agents = {"service": ws.start("service"), "interactive": ws.start("interactive")}
    await checked_in(settings, ws, 2)
    ran = ws.folder / "ran"
    background = ["--background"] if kind == "service" else []
    agents[kind].end()
    (ws.state_dir / _folder(kind) / "sealing.key").rename(ws.folder / "sealing.key")
    job_id = _sent(
        ws, "--to", str(ws.target), *background,
        "--secret", f"TOKEN=@{secret}", "--", "touch", str(ran),
    )  # fmt: skip
    again = ws.start(kind)
    state, reason = await _ended(dispatcher, job_id)
    assert state is State.REFUSED
    assert "its secrets cannot be opened by the key that" in reason
    assert not ran.exists()
    if kind == "interactive":
        return
    # The key is back: what is sealed for it can be opened, also when the job is sent once more.
    again.end()
    (ws.folder / "sealing.key").rename(ws.state_dir / _folder(kind) / "sealing.key")
    ws.start(kind)
    rerun = ws.run("pcm", "rerun", job_id, "--state", "refused", **_admin(ws))
    assert rerun.returncode == 0, rerun.stderr
    assert await _ended(dispatcher, rerun.stdout.split()[0]) == (State.SUCCEEDED, "")


def _folder(kind: str) -> str:
    return "service" if kind == "service" else "interactive-ada"


def test_a_key_outlives_its_agent_and_a_damaged_one_is_set_aside(ws: Workstation) -> None:
    ws.start("service").end()
    file = ws.state_dir / "service" / "sealing.key"
    key = file.read_bytes()
    assert (len(key), file.stat().st_mode & 0o777) == (32, 0o600)
    ws.start("service").end()
    assert file.read_bytes() == key
    file.write_bytes(key[:10])
    service = ws.start("service")
    assert len(service.events("sealing_key.damaged")) == 1
    assert file.with_suffix(".damaged").read_bytes() == key[:10]
    assert len(file.read_bytes()) == 32
    service.end()
    file.chmod(0o644)
    done = ws.run("pcm-agent", "service")
    assert done.returncode == 1
    assert "sealing.key: must be a regular file of this user" in done.stderr


def test_nothing_is_sent_where_a_workstation_has_sent_no_key(ws: Workstation, secret: Path) -> None:
    ws.start("service")
    mark = f"for {ws.name}"
    to = ("--to", str(ws.target), "--to", "workstation:nobody-there")
    for words in (to, ("--to", "group:nobody-there")):
        done = ws.run(
            "pcm",
            "send",
            *words,
            "--name",
            mark,
            "--secret",
            f"TOKEN=@{secret}",
            "--",
            "true",
            **_admin(ws),
        )
        assert done.returncode == 2
        assert "nothing was sent" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    jobs = json.loads(ws.run("pcm", "jobs", "--json", **_admin(ws)).stdout)
    assert not [row for row in jobs if row["name"] == mark]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("TOKEN=hunter2", "'TOKEN': write NAME=@FILE, NAME=- or NAME=env:VARIABLE"),
        ("TOKEN", "write NAME=@FILE"),
        ("=@file", "cannot be an environment variable"),
        ("TOKEN=@/no/such/file", "TOKEN: /no/such/file: No such file"),
        ("TOKEN=env:NO_SUCH", "there is no variable 'NO_SUCH'"),
    ],
)
def test_a_wrong_option_is_reported_without_the_value(
    ws: Workstation, option: str, said: str
) -> None:
    done = ws.run("pcm", "send", "--to", "all", "--secret", option, "--", "true")
    assert done.returncode == 2
    assert said in done.stderr
    assert "hunter2" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
