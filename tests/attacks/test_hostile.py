"""Another user of the workstation can neither make the service run, skip or repeat a job."""

import asyncio
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agents.claims import service_liveness
from agents.claims.claim_file import UNKNOWN, ClaimRecord, decision
from agents.claims.claims import Claims
from agents.jobs import takeover as standby
from agents.jobs.takeover import Takeover
from agents.settings import AgentSettings
from agents.store.state_folder import (
    StateError,
    check_state_directory,
    claims_directory,
    private_directory,
    shared_directory,
)
from agents.store.transaction import JobRecord
from agents.user import listing
from agents.user.control import ask
from broker import Dispatcher
from broker.settings import load
from schemas import Command, Job, State, everyone
from tests.support import other
from tests.support.counted import counted, ended, no_traceback
from tests.support.waiting import until
from tests.support.workstation import Workstation

pytestmark = other.needs_root

OBSTACLES = {
    "file": "open(a[0], 'w').write('mine'); os.chmod(a[0], 0o666)",
    "folder": "os.mkdir(a[0]); os.chmod(a[0], 0o777); open(a[0] + '/ledger.db', 'w').close()",
    "link": "os.symlink('/etc', a[0])",
    "dangling link": "os.symlink('/no/such/folder', a[0])",
    "pipe": "os.mkfifo(a[0])",
    "socket": "socket.socket(socket.AF_UNIX).bind(a[0])",
}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory of the service's, which another user can reach."""
    return shared_directory(other.opened(tmp_path) / "state")


def _announce(path: Path) -> Path:
    file = service_liveness.announce(path.parent)
    assert file is not None
    os.close(file)
    return path


@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize(
    ("name", "take"),
    [
        ("service", private_directory),
        ("claims", lambda path: claims_directory(path.parent)),
        ("service.up", _announce),
    ],
)
def test_what_another_user_put_in_the_way_is_set_aside(
    state: Path, name: str, take: Callable[[Path], Path], obstacle: str
) -> None:
    assert other.does(OBSTACLES[obstacle], state / name) == ""
    assert take(state / name).lstat().st_uid == 0
    assert (state / name).is_dir() is (name != "service.up")
    (aside,) = state.glob(f".{name}.aside-*")
    assert aside.lstat().st_uid == other.UID


def test_what_the_service_keeps_cannot_be_touched(state: Path) -> None:
    folder = private_directory(state / "service")
    (folder / "ledger.db").touch(mode=0o600)
    Claims(state, "service").decide("job-1", State.STARTED)
    attempts = (
        "os.rename(a[0] + '/service', a[0] + '/mine')",
        "os.listdir(a[0] + '/service')",
        "open(a[0] + '/service/ledger.db')",
        "os.link(a[0] + '/service/ledger.db', a[0] + '/mine')",
        "os.rename(a[0] + '/claims', a[0] + '/mine')",
        "os.unlink(a[0] + '/claims/job-1')",
        "os.rename(a[0] + '/claims/job-1', a[0] + '/claims/job-2')",
        "open(a[0] + '/claims/job-1', 'r+')",
        "os.chmod(a[0] + '/claims/job-1', 0o666)",
        "os.chmod(a[0], 0o777)",
    )
    for attempt in attempts:
        told = other.does(attempt, state)
        assert "PermissionError" in told, (attempt, told)
    assert sorted(path.name for path in state.iterdir()) == ["claims", "service"]


def _of_another(state: Path) -> str:
    os.chown(state, other.UID, other.UID)
    return f"{state}: belongs to nobody; it must be root's: chown root {state}"


def _without_sticky(state: Path) -> str:
    state.chmod(0o777)
    return f"{state}: has mode 0777"


def _for_a_group(state: Path) -> str:
    os.chown(state, 0, other.UID)
    state.chmod(0o775)
    return f"{state}: has mode 0775"


def _above_of_another(state: Path) -> str:
    os.chown(state.parent, other.UID, other.UID)
    return f"{state.parent}: belongs to nobody; it must be root's"


def _above_open(state: Path) -> str:
    state.parent.chmod(0o777)
    return f"{state.parent}: has mode 0777: others could replace its files"


@pytest.mark.parametrize(
    "spoil", [_of_another, _without_sticky, _for_a_group, _above_of_another, _above_open]
)
def test_a_state_directory_that_others_could_swap_is_refused(
    ws: Workstation, spoil: Callable[[Path], str]
) -> None:
    ws.state_dir = shared_directory(ws.folder / "above").joinpath("state")
    ws.environment["PCM_STATE_DIR"] = str(shared_directory(ws.state_dir))
    check_state_directory(ws.state_dir, service=True)
    expected = spoil(ws.state_dir)
    found = ws.run("pcm-agent", "service")
    (line,) = found.stderr.splitlines()
    assert (found.returncode, expected in line) == (1, True), line


def test_a_link_of_another_user_on_the_way_is_refused(state: Path) -> None:
    (state.parent / "ours").symlink_to(state)
    check_state_directory(state.parent / "ours", service=True)
    other.does("os.symlink(a[0], a[0] + '/way')", state)
    (state.parent / "through").symlink_to(state / "way")
    for way in (state / "way", state.parent / "through"):
        with pytest.raises(StateError, match=r"way: belongs to nobody"):
            check_state_directory(way, service=True)


def _link(path: Path) -> None:
    path.symlink_to("/etc/hosts")


def _given(path: Path) -> None:
    path.touch()
    os.chown(path, other.UID, -1)


def _open_to_all(path: Path) -> None:
    path.touch()
    path.chmod(0o666)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [(_link, "is a link"), (_given, "belongs to nobody"), (_open_to_all, "has mode 0666")],
)
def test_a_file_that_others_could_have_put_among_the_services_is_refused(
    state: Path, spoil: Callable[[Path], None], expected: str
) -> None:
    path = private_directory(state / "service") / "ledger.db"
    spoil(path)
    with pytest.raises(StateError, match=f"{path}: {expected}"):
        private_directory(path.parent)


def test_a_claim_in_the_services_name_is_not_believed(state: Path) -> None:
    claims = Claims(state, "service")
    forged = '{"agent": "service", "state": "succeeded", "ended": true}'
    other.does(f"open(a[0] + '/claims/job-1', 'w').write('{forged}')", state)
    assert (
        claims.decision("job-1") == decision(state, "job-1") == ClaimRecord(UNKNOWN, "unreadable")
    )


def test_who_made_an_empty_claim_cannot_alter_what_the_service_decides(state: Path) -> None:
    claims = Claims(state, "service")
    code = (
        "file = open(a[0] + '/claims/job-1', 'w'); os.chmod(file.name, 0o666)\n"
        "print('ready', flush=True)\n"
        "while True: os.pwrite(file.fileno(), b'{', 0) if time.sleep(0.01) is None and "
        "os.path.getsize(file.name) else None"
    )
    with other.doing(code, state):
        assert claims.decide("job-1", State.STARTED)
        assert (state / "claims" / "job-1").stat().st_uid == 0
        assert "PermissionError" in other.does("open(a[0], 'r+')", state / "claims" / "job-1")
        assert decision(state, "job-1") == ClaimRecord("service", State.STARTED)


def test_another_name_of_a_file_is_not_written_to(state: Path) -> None:
    """Where the kernel lets users link to what is not theirs (fs.protected_hardlinks)."""
    claims = Claims(state, "service")
    victim = state.parent / "victim"
    victim.touch()
    os.link(victim, state / "claims" / "job-1")
    assert not claims.decide("job-1", State.STARTED)
    assert victim.read_bytes() == b""
    assert decision(state, "job-1") == ClaimRecord(UNKNOWN, "unreadable")


def test_a_holder_that_is_overruled_does_not_start(state: Path) -> None:
    service, user = Claims(state, "service"), Claims(state, "interactive-ada")
    assert user.take("job-1")
    assert not service.decide("job-1", State.STARTED)
    assert service.force("job-1", None, State.STARTED)
    assert not user.decide("job-1", State.STARTED)
    assert decision(state, "job-1") == ClaimRecord("service", State.STARTED)
    service.conclude("job-1")
    assert decision(state, "job-1") == ClaimRecord("service", State.STARTED, ended=True)


def test_a_holder_that_decides_meanwhile_is_not_overruled(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wrote in the last instant, and may see that its file is gone: then nobody starts it."""
    service, user = Claims(state, "service"), Claims(state, "interactive-ada")
    assert user.take("job-1")
    started: list[bool] = []
    replace = Claims._replace

    def and_meanwhile(claims: Claims, job_id: str, found: ClaimRecord | None) -> bool:
        if not started:
            started.append(user.decide("job-1", State.STARTED))
        return replace(claims, job_id, found)

    monkeypatch.setattr(Claims, "_replace", and_meanwhile)
    assert not service.force("job-1", None, State.STARTED)
    assert started == [True]
    assert decision(state, "job-1") == ClaimRecord("interactive-ada", State.STARTED)


def _standby(state: Path, claims: Claims) -> Takeover:
    short = timedelta(0)
    settings = AgentSettings(
        state_dir=state, countdown=short, missing_after=short, stop_grace=short
    )
    return Takeover(settings, claims)


HOLD = (
    "file = open(a[0] + '/claims/job-1', 'w'); os.chmod(file.name, 0o666)\n"
    "fcntl.flock(file, fcntl.LOCK_EX); file.write(a[1]); file.flush()\n"
    "print('ready', flush=True); time.sleep(600)"
)
STARTED = '{"agent": "interactive-eve", "state": "started"}'


def test_a_claim_that_is_held_for_ever_is_overruled(state: Path) -> None:
    claims = Claims(state, "service")
    with other.doing(HOLD, state, ""):
        assert not claims.decide("job-1", State.STARTED)
        assert _standby(state, claims).force("job-1", State.STARTED)
        assert decision(state, "job-1") == ClaimRecord("service", State.STARTED)


def test_a_claim_is_left_to_a_user_who_said_run_for_some_seconds(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service agent may look at it first in the instant when another user's agent gives way."""
    service, user = Claims(state, "service"), Claims(state, "interactive-ada")
    waits = _standby(state, service)
    assert not waits.awaits_handover("job-1", accepted=False)
    assert waits.awaits_handover("job-1", accepted=True)
    assert user.take("job-1")
    assert not waits.awaits_handover("job-1", accepted=True)
    user.release("job-1")
    monkeypatch.setattr(standby, "_HANDOVER", 0.0)
    assert not waits.awaits_handover("job-1", accepted=True)
    assert service.decide("job-1", State.STARTED)


def test_a_start_that_never_ends_is_interrupted(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby, "_MARGIN", 0.0)
    claims = Claims(state, "service")
    waits = _standby(state, claims)

    def entry(timeout: timedelta) -> JobRecord:
        return JobRecord(
            Job(command=Command(argv=("true",), timeout=timeout), targets=(everyone,)), 0
        )

    with other.doing(HOLD, state, STARTED):
        told = claims.decision("job-1")
        assert told == ClaimRecord("interactive-eve", State.STARTED)
        long, short = (
            JobRecord(job.job.model_copy(update={"id": "job-1"}), 0)
            for job in (entry(timedelta(hours=1)), entry(timedelta(microseconds=1)))
        )
        assert waits.conclude(long, told) == ""
        assert "longer than its command may run" in waits.conclude(short, told)
        assert decision(state, "job-1") == ClaimRecord("service", State.INTERRUPTED)


@pytest.mark.parametrize(
    "make",
    [
        "open('.env', 'w').write('PCM_WORKSTATION=evil\\n')",
        "os.symlink('/dev/stdin', '.env')",
        "os.mkfifo('.env')",
    ],
)
def test_settings_are_not_read_from_another_users_file(
    state: Path, monkeypatch: pytest.MonkeyPatch, make: str
) -> None:
    monkeypatch.delenv("PCM_WORKSTATION", raising=False)
    monkeypatch.chdir(state)
    assert other.does(f"os.chdir(a[0])\n{make}", state) == ""
    assert load(AgentSettings, state_dir=state).workstation != "evil"


def test_settings_are_not_read_through_a_link(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even of a file of one's own: another user chose it, and could choose again."""
    monkeypatch.delenv("PCM_WORKSTATION", raising=False)
    monkeypatch.chdir(state)
    ours = state.parent / "ours"
    ours.write_text("PCM_WORKSTATION=evil\n")
    other.does("os.symlink(a[1], a[0] + '/.env')", state, ours)
    assert load(AgentSettings, state_dir=state).workstation != "evil"
    (state / ".env").unlink()
    ours.rename(state / ".env")
    assert load(AgentSettings, state_dir=state).workstation == "evil"


def test_another_users_folder_is_neither_read_nor_asked(state: Path) -> None:
    other.does(
        "os.mkdir(a[0]); os.chmod(a[0], 0o755); open(a[0] + '/ledger.db', 'w').write('x')",
        state / "interactive-root",
    )
    with pytest.raises(StateError, match="is another user's"):
        listing.pending(state)
    with pytest.raises(StateError, match="is another user's"):
        ask(state / "interactive-root", {"do": "run", "job": "x"})


ASSAULT = """
held = []
def mine(path):
    try:
        file = open(path, 'x'); os.chmod(path, 0o666); fcntl.flock(file, fcntl.LOCK_EX)
        file.write(a[1]); file.flush(); held.append(file)
    except OSError:
        pass
for name in ('service', 'claims', 'service.up'):
    os.mkdir(f'{a[0]}/{name}')
print('ready', flush=True)
def owner(path):
    try:
        return os.stat(path).st_uid
    except OSError:  # between the one and the other
        return None
while owner(f'{a[0]}/claims') != 0:
    time.sleep(0.01)
for job in a[2:]:
    while not os.path.exists(f'{a[0]}/claims/{job}'):
        mine(f'{a[0]}/claims/{job}'); time.sleep(0.01)
for number in range(2000):
    mine(f'{a[0]}/claims/{number}') if number < 200 else open(f'{a[0]}/{number}', 'w').close()
try:
    fcntl.flock(os.open(f'{a[0]}/service.up', os.O_RDONLY), fcntl.LOCK_SH)
except OSError:
    pass
time.sleep(600)
"""


@pytest.mark.full
async def test_the_service_runs_all_its_jobs_once_under_assault(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    """Background jobs as ever; a user's mandatory job that is held is overruled, and run."""
    other.opened(tmp_path)
    shared_directory(ws.state_dir)
    due = datetime.now(UTC) + timedelta(seconds=1)
    ran = [tmp_path / f"ran-{number}" for number in range(4)]
    jobs = [counted(ws, file, background=True, mandatory_at=due) for file in ran[:2]]
    jobs.append(counted(ws, ran[2], background=True))
    jobs.append(counted(ws, ran[3], mandatory_at=due))
    with other.doing(ASSAULT, ws.state_dir, "", *(job.id for job in jobs)):
        service = ws.start("service", missing_after="1s")
        await until((ws.state_dir / "claims" / jobs[-1].id).exists)
        for job in jobs:
            await dispatcher.dispatch(job)
        reports = await asyncio.gather(*(ended(dispatcher, job) for job in jobs))
        assert [report.state for report in reports] == [State.SUCCEEDED] * 4
        assert {report.agent for report in reports} == {"service"}
        assert len(service.events("claim.forced")) == 1
        service.end()
        again = ws.start("service", missing_after="1s")
        for job in jobs:
            await dispatcher.dispatch(job)
        after = counted(ws, tmp_path / "after", background=True)
        await dispatcher.dispatch(after)
        assert (await ended(dispatcher, after)).state is State.SUCCEEDED
    assert [file.read_text() for file in ran] == ["x\n"] * 4
    no_traceback(service, again)
