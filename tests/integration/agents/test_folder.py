"""An agent's folder with wrong things in it: a clear line, or it works; never a traceback."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from agents.store.ledger_schema import MIGRATIONS
from broker import Dispatcher
from schemas import State
from tests.support.workstation import Workstation, final, follow


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        return process.pid


def _stale(path: Path) -> None:
    path.write_text(f"{dead_pid()}\n")


def _nonsense(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 100)


def _read_only(path: Path) -> None:
    path.touch(mode=0o400)


def _link(path: Path) -> None:
    path.symlink_to(path.parent / "elsewhere")


def folder_of_the_service(ws: Workstation) -> Path:
    ws.state_dir.mkdir()
    folder = ws.state_dir / "service"
    folder.mkdir(mode=0o700)
    return folder


@pytest.mark.parametrize("spoil", [_stale, _nonsense, _read_only])
async def test_a_lock_file_without_a_holder_does_not_block_the_start(
    ws: Workstation, dispatcher: Dispatcher, spoil: Callable[[Path], None]
) -> None:
    path = folder_of_the_service(ws) / "lock"
    spoil(path)
    if os.access(path, os.W_OK):
        service = ws.start("service")
        assert path.read_text() == f"{service.process.pid}\n"
        job = await dispatcher.dispatch(ws.job("true", background=True))
        assert final(await follow(dispatcher, job)).state is State.SUCCEEDED
    else:
        assert "Permission denied" in refused(ws)


def refused(ws: Workstation, *words: str) -> str:
    """Return the one line of a program that fails."""
    found = ws.run("pcm-agent", *(words or ("service",)))
    assert (found.returncode, found.stdout) == (1, ""), found
    (line,) = found.stderr.splitlines()
    assert line.startswith("pcm-agent: ")
    return line


@pytest.mark.parametrize("spoil", [Path.mkdir, os.mkfifo, _link])
def test_a_lock_that_is_no_plain_file_is_refused(
    ws: Workstation, spoil: Callable[[Path], None]
) -> None:
    path = folder_of_the_service(ws) / "lock"
    spoil(path)
    assert f"PCM_STATE_DIR: {path}: " in refused(ws)


def _empty(path: Path) -> None:
    path.touch()


def _foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE jobs (id, body)")
        database.commit()


def _first_version(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.executescript(f"{MIGRATIONS[0]} PRAGMA user_version = 1;")


def _cut(path: Path) -> None:
    _first_version(path)
    path.write_bytes(path.read_bytes()[:5000])


def _no_plain_file(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("what", ["pending", "history"])
@pytest.mark.parametrize("spoil", [_nonsense, _empty, _foreign, _first_version, _cut])
def test_a_listing_of_a_wrong_ledger_is_one_line(
    ws: Workstation, spoil: Callable[[Path], None], what: str
) -> None:
    path = folder_of_the_service(ws) / "ledger.db"
    spoil(path)
    before = path.read_bytes()
    assert str(path) in refused(ws, what)
    assert path.read_bytes() == before


@pytest.mark.parametrize("what", ["pending", "history"])
@pytest.mark.parametrize("spoil", [Path.mkdir, os.mkfifo, _no_plain_file])
def test_a_listing_passes_by_what_is_no_ledger(
    ws: Workstation, spoil: Callable[[Path], None], what: str
) -> None:
    spoil(folder_of_the_service(ws) / "ledger.db")
    (ws.state_dir / "note").write_text("no folder")
    found = ws.run("pcm-agent", what)
    assert (found.returncode, found.stderr) == (0, "")
    assert len(found.stdout.splitlines()) == 1


@pytest.mark.full
@pytest.mark.parametrize("what", ["pending", "history"])
@pytest.mark.parametrize(
    "damage",
    [
        "body = x'00'",
        "state = 'unheard of'",
        "state = cast(x'ff' AS TEXT)",
        "final = x'7b7d'",
        "received_at = 1e300",
        "until = 1e300",
    ],
)
async def test_a_listing_of_a_wrong_record_is_no_traceback(
    ws: Workstation, dispatcher: Dispatcher, damage: str, what: str
) -> None:
    service = ws.start("service")
    job = await dispatcher.dispatch(ws.job("true", user_input_required=True))
    service.wait_for("job.received")
    service.end()
    with closing(sqlite3.connect(ws.state_dir / "service" / "ledger.db")) as database:
        assert database.execute(f"UPDATE jobs SET {damage} WHERE id = ?", (job.id,)).rowcount == 1
        database.commit()
    for words in ((what,), (what, "--json")):
        found = ws.run("pcm-agent", *words)
        assert found.returncode in {0, 1}
        assert "Traceback" not in found.stderr
        assert len(found.stderr.splitlines()) == found.returncode
