"""A foreground job has one runner on a workstation, whichever agents there are."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.claims.claim_file import UNKNOWN, ClaimRecord
from agents.claims.claims import Claims
from schemas import State

HOLD = """
import sys, time
from pathlib import Path
from agents.claims.claims import Claims
claims = Claims(Path(sys.argv[1]), "interactive-ada")
print(claims.take("job-1"), flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Another process that holds the claim of job-1."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, cwd=Path.cwd()
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"True\n"
        yield process
        process.kill()


def test_one_holder_and_free_again_when_it_is_killed(
    tmp_path: Path, holder: "subprocess.Popen[bytes]"
) -> None:
    claims = Claims(tmp_path, "service")
    assert not claims.take("job-1")
    assert not claims.decide("job-1", State.STARTED)
    assert claims.decision("job-1") is None
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert claims.take("job-1")
    assert claims.holds("job-1")


def test_what_is_decided_stays_decided(tmp_path: Path) -> None:
    service, interactive = Claims(tmp_path, "service"), Claims(tmp_path, "interactive-ada")
    assert interactive.decide("job-1", State.STARTED)
    assert interactive.holds("job-1")
    interactive.conclude("job-1")
    for claims in (service, interactive):
        assert not claims.take("job-1")
        assert not claims.decide("job-1", State.EXPIRED)
        assert claims.decision("job-1") == ClaimRecord("interactive-ada", State.STARTED, ended=True)


def test_release_gives_it_back(tmp_path: Path) -> None:
    service, interactive = Claims(tmp_path, "service"), Claims(tmp_path, "interactive-ada")
    assert interactive.take("job-1")
    assert interactive.take("job-1")
    assert not service.take("job-1")
    interactive.release("job-1")
    assert service.take("job-1")
    service.close()
    assert interactive.take("job-1")


def test_half_a_decision_is_one(tmp_path: Path) -> None:
    """An agent that began to write may have started the command: no other agent starts it."""
    claims = Claims(tmp_path, "service")
    (tmp_path / "claims" / "job-1").write_bytes(b'{"agent": "interact')
    assert not claims.take("job-1")
    assert claims.decision("job-1") == ClaimRecord(UNKNOWN, "unreadable")


def test_a_link_in_the_shared_folder_leads_nowhere(tmp_path: Path) -> None:
    """A user must not make the service write to a file of their choice."""
    claims = Claims(tmp_path, "service")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "claims" / "job-1").symlink_to(victim)
    assert not claims.decide("job-1", State.STARTED)
    assert claims.decision("job-1") == ClaimRecord(UNKNOWN, "unreadable")
    assert victim.read_text() == "precious"


def test_what_is_no_file_stands_only_in_its_own_jobs_way(tmp_path: Path) -> None:
    """Neither an error nor a wait: the service's other jobs continue."""
    claims = Claims(tmp_path, "service")
    (tmp_path / "claims" / "folder").mkdir()
    os.mkfifo(tmp_path / "claims" / "pipe")
    for job_id in ("folder", "pipe"):
        assert not claims.take(job_id)
        assert claims.decision(job_id) == ClaimRecord(UNKNOWN, "unreadable")
    assert claims.take("job-1")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
def test_two_users_share_the_folder(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    Claims(tmp_path, "service").decide("by-root", State.STARTED)
    code = (
        "import os, sys; os.setgid(65534); os.setuid(65534)\n"
        "from pathlib import Path; from agents.claims.claims import Claims\n"
        "from schemas import State\n"
        "claims = Claims(Path(sys.argv[1]), 'interactive-nobody')\n"
        "found = claims.decision('by-root')\n"
        "print(found.agent, found.state, claims.take('by-root'), end=' ')\n"
        "print(claims.decide('by-user', State.STARTED))"
    )
    code = "import agents.claims.claims\n" + code  # before the rights to read it are gone
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.stdout == "service started False True\n", done.stderr
    assert not Claims(tmp_path, "service").take("by-user")


def test_many_processes_at_once_have_one_winner(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from agents.claims.claims import Claims; from schemas import State\n"
        "claims = Claims(Path(sys.argv[1]), f'interactive-{sys.argv[2]}')\n"
        "print(sum(claims.decide(f'job-{n}', State.STARTED) for n in range(50)))"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, tmp_path, str(n)], stdout=subprocess.PIPE, text=True
        )
        for n in range(4)
    ]
    wins = [int(racer.communicate()[0]) for racer in racers]
    claims = Claims(tmp_path, "service")
    assert sum(wins) == 50
    assert all(claims.decision(f"job-{n}") for n in range(50))
