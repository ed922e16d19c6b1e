"""The environment of commands does not depend on how their agent was started."""

import json
import os
import resource
import signal
import sys
from pathlib import Path

import pytest

from agents.execution.environment import PATH, account
from broker import Dispatcher
from schemas import Job, State
from tests.support.counted import ended
from tests.support.programs import BIN, NOWHERE
from tests.support.waiting import until_there
from tests.support.workstation import Workstation

LOOK = """
import json, os, resource, signal
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
try:
    terminal = os.open("/dev/tty", os.O_RDWR)
except OSError:
    terminal = None
files = {}
for number in os.listdir("/proc/self/fd"):
    try:
        files[number] = os.readlink(f"/proc/self/fd/{number}").partition(":")[0]
    except OSError:
        pass  # what it lists them by
print(json.dumps({
    "environment": dict(os.environ),
    "files": files,
    "umask": os.umask(0),
    "blocked": int(status["SigBlk"], 16),
    "ignored": int(status["SigIgn"], 16),
    "session": os.getsid(0) == os.getpgid(0),
    "terminal": terminal,
    "files_limit": resource.getrlimit(resource.RLIMIT_NOFILE),
    "core_limit": resource.getrlimit(resource.RLIMIT_CORE),
    "oom": open("/proc/self/oom_score_adj").read(),
    "nice": os.nice(0),
    "cwd": os.getcwd(),
}))
"""
# glibc's own; where it starts a program by posix_spawn, it ignores them.
GLIBC = 1 << 31 | 1 << 32
OOM = Path("/proc/self/oom_score_adj").read_text()
# Starts an agent as badly as can be: on a terminal, with open files, signals ignored and blocked.
BADLY = """
import os, pty, resource, signal, sys
keep = os.open("/etc/hosts", os.O_RDONLY)
os.set_inheritable(keep, True)
master, slave = pty.openpty()
os.setsid()
import fcntl, termios
fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
os.set_inheritable(master, True)
os.umask(0o077)
os.nice(3)
unignorable = {signal.SIGKILL, signal.SIGSTOP}
for number in signal.valid_signals() - unignorable:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), hard))
resource.setrlimit(resource.RLIMIT_CORE, (4096, resource.getrlimit(resource.RLIMIT_CORE)[1]))
os.environ |= {
    "PATH": "/no/such/folder:" + os.environ["PATH"],
    "HOME": "/no/such/home",
    "LD_LIBRARY_PATH": "/no/such/folder",
    "PYTHONDONTWRITEBYTECODE": "1",
    "BASH_ENV": "/no/such/file",
    "IFS": "x",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "LC_TIME": "C",
    "TZ": "UTC",
    "DISPLAY": ":7",
}
os.execv(sys.argv[2], sys.argv[2:])
"""


def look(ws: Workstation, **fields: object) -> Job:
    """Return a job whose command prints its environment."""
    python = "/usr/bin/env", "python3", "-I"
    return ws.job(*python, "-c", LOOK, **fields)


@pytest.mark.parametrize("kind", ["service", "interactive"])
async def test_nothing_reaches_a_command_by_chance(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path, kind: str
) -> None:
    background = kind == "service"
    usual = 1500
    program = (sys.executable, "-c", BADLY, str(usual), BIN / "pcm-agent")
    agent = ws.start(kind, program=program, accept_offers="true")
    busy = tmp_path / "busy"
    sleeper = ws.job(f"echo $$ > {busy}; exec sleep 83.1", shell=True, background=background)
    await dispatcher.dispatch(sleeper)
    until_there(busy)  # whose pipes must not be seen either
    for number in (signal.SIGHUP, signal.SIGINT):  # as by nohup: it goes on
        agent.process.send_signal(number)
    report = await ended(dispatcher, await dispatcher.dispatch(look(ws, background=background)))
    await dispatcher.cancel(sleeper.id)
    assert report.state is State.SUCCEEDED, report
    assert report.result is not None
    found = json.loads(str(report.result.stdout))
    root = account("root") if os.geteuid() == 0 else None
    environment = found["environment"]
    assert environment.pop("PCM_JOB_ID") == report.job_id
    assert environment.pop("PCM_WORKSTATION") == ws.name
    assert environment.pop("PATH") == PATH
    if root:
        assert environment.pop("HOME") == found["cwd"] == root.home
        assert environment.pop("USER") == environment.pop("LOGNAME") == "root"
        assert environment.pop("SHELL") == root.shell
    assert environment.pop("DISPLAY", None) == (None if background else ":7")
    environment.pop("LC_CTYPE", None)  # python's own
    if root:
        assert environment == {"LC_TIME": "C", "TZ": "UTC"}
    assert set(found["files"]) <= {"0", "1", "2"}, found["files"]
    assert found["files"]["0"] == "/dev/null"
    assert (found["umask"], found["blocked"]) == (0o022, 0)
    by_python = sum(1 << number - 1 for number in (signal.SIGPIPE, signal.SIGXFSZ))
    assert found["ignored"] & ~GLIBC == by_python
    assert (found["session"], found["terminal"]) == (True, None)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert found["files_limit"] == [usual, hard]
    assert found["core_limit"][0] == 4096
    assert found["nice"] == os.nice(0) + 3
    assert found["oom"] == OOM
    assert not agent.events("agent.stopping")


def test_an_agent_logs_a_setting_without_effect(ws: Workstation) -> None:
    service = ws.start("service", connected=False, takover_grace="5m", amqp_url=NOWHERE)
    service.wait_for("settings.warning")
    (event,) = service.events("settings.warning")
    assert event["reason"] == (
        "PCM_TAKOVER_GRACE: unknown setting in the environment, ignored; did you mean"
        " PCM_TAKEOVER_GRACE?"
    )
