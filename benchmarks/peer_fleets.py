"""Start, measure and end fleets of other systems, for `benchmarks.fleet`."""

import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.processes import end
from tests.support.rabbitmq import Node, free_port

ROOT = Path(__file__).parent.parent
PEERS, SALT = ROOT / ".bench" / "bin", ROOT / ".bench-salt" / "bin"
Ways = Mapping[str, Callable[[], float]]
"""The measurements of each side, which return seconds."""
_READY_LIMIT = 240.0
_CALL_LIMIT = 120.0


class Failed(Exception):
    """A system failed, or did not finish in time."""


@contextmanager
def process(
    words: Sequence[object], environment: Mapping[str, str], log: Path, *, asked: bool = False
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program in its own process group, which is ended; `asked`: with pipes for requests."""
    with log.open("ab") as output:
        begun = subprocess.Popen(
            [str(word) for word in words],
            cwd=ROOT,
            env={"PATH": os.defpath, "LANG": "C.UTF-8", **environment},
            stdin=subprocess.PIPE if asked else subprocess.DEVNULL,
            stdout=subprocess.PIPE if asked else output,
            stderr=output,
            process_group=0,
        )
    try:
        yield begun
    finally:
        end(begun)


@contextmanager
def work_folder() -> Iterator[Path]:
    """Yield a temporary folder; add the end of its `log` to the text of a failure."""
    with tempfile.TemporaryDirectory(prefix="fleet-") as name:
        folder = Path(name)
        (folder / "log").touch()
        try:
            yield folder
        except Failed as failure:
            text = (folder / "log").read_text(errors="replace").strip()[-500:]
            raise Failed(f"{failure}; {text}") from failure


def ask(asked: "subprocess.Popen[bytes]", what: str, limit: float = _CALL_LIMIT) -> float:
    """Send a request line to one of our programs; return its answer.

    Raises:
        Failed: there was no answer within `limit` seconds.
    """
    assert asked.stdin
    assert asked.stdout
    asked.stdin.write(f"{what}\n".encode())
    asked.stdin.flush()
    if not select.select([asked.stdout], [], [], limit)[0]:
        raise Failed(f"{what}: not in {limit:.0f} s")
    if not (answer := asked.stdout.readline()):
        raise Failed(f"{what}: failed")
    return float(answer)


def timed(words: Sequence[object], environment: Mapping[str, str], wanted: str) -> float:
    """Return the seconds that a program takes; `wanted` is the required output as `TEXT x COUNT`.

    Raises:
        Failed: the output differs, or is late.
    """
    text, _, count = wanted.rpartition(" x ")
    began = time.perf_counter()
    try:
        done = subprocess.run(
            [str(word) for word in words],
            env={"PATH": os.defpath, "LANG": "C.UTF-8", **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CALL_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{words[0]}: not in {_CALL_LIMIT:.0f} s") from error
    took = time.perf_counter() - began
    if (found := done.stdout.count(text)) != int(count):
        raise Failed(f"{words[0]}: {found} of {count} answered: {done.stderr[-500:]}")
    return took


@contextmanager
def celery(count: int) -> Iterator[Ways]:
    """Run a Celery worker for each workstation."""
    with ExitStack() as stack:
        node = stack.enter_context(Node())
        folder = stack.enter_context(work_folder())
        environment = {"CELERY_BROKER_URL": node.url, "HOME": str(folder), "C_FORCE_ROOT": "1"}
        worker = [
            PEERS / "celery",
            "--app",
            "benchmarks.peers.celery_fleet",
            "worker",
            "--pool",
            "solo",
        ]
        worker += ["--without-gossip", "--without-mingle", "--loglevel", "ERROR"]
        for name in (f"ws-{number:03}" for number in range(count)):
            words = [*worker, "--queues", name, "--hostname", f"{name}@bench"]
            stack.enter_context(process(words, environment, folder / "log"))
        words = [PEERS / "python", "-m", "benchmarks.peers.celery_fleet", str(count)]
        sender = stack.enter_context(process(words, environment, folder / "log", asked=True))
        ask(sender, "ready", _READY_LIMIT)
        yield {
            "Celery, a publish each": lambda: ask(sender, "publishes"),
            "Celery, control broadcast": lambda: ask(sender, "broadcast"),
        }


@contextmanager
def ansible(count: int) -> Iterator[Ways]:
    """Set up Ansible's hosts: this machine under `count` names."""
    with work_folder() as folder:
        inventory = folder / "hosts"
        local = f"ansible_connection=local ansible_python_interpreter={PEERS / 'python'}"
        inventory.write_text("".join(f"ws-{number:03} {local}\n" for number in range(count)))
        (folder / "ansible.cfg").touch()
        environment = {"HOME": str(folder), "ANSIBLE_CONFIG": str(folder / "ansible.cfg")}
        words = [PEERS / "ansible", "all", "-i", inventory, "-f", str(count), "-a", "uname", "-m"]
        wanted = f"rc=0 x {count}"
        yield {
            "Ansible, command": lambda: timed([*words, "command"], environment, wanted),
            "Ansible, raw": lambda: timed([*words, "raw"], environment, wanted),
        }


@contextmanager
def salt(count: int) -> Iterator[Ways]:
    """Run a Salt master, and a minion for each workstation."""
    with ExitStack() as stack:
        folder = stack.enter_context(work_folder())
        environment = {"HOME": str(folder)}
        publish, answer = free_port(), free_port()
        master = {
            "interface": "127.0.0.1",
            "publish_port": publish,
            "ret_port": answer,
            "auto_accept": True,
        }
        words = [SALT / "salt-master", "-c", _salted(folder / "master", master), "-l", "error"]
        stack.enter_context(process(words, environment, folder / "log"))
        for name in (f"ws-{number:03}" for number in range(count)):
            minion = {"id": name, "master": "127.0.0.1", "master_port": answer}
            words = [SALT / "salt-minion", "-c", _salted(folder / name, minion), "-l", "error"]
            stack.enter_context(process(words, environment, folder / "log"))
        configuration = str(folder / "master")
        words = [SALT / "python", "-m", "benchmarks.peers.salt_fleet", configuration, str(count)]
        sender = stack.enter_context(process(words, environment, folder / "log", asked=True))
        ask(sender, "ready", _READY_LIMIT)
        line = [SALT / "salt", "-c", configuration, "--out", "txt", "*", "cmd.run", "uname"]
        yield {
            "Salt, command line": lambda: timed(line, environment, f": Linux x {count}"),
            "Salt, Python client": lambda: ask(sender, "run"),
        }


def _salted(folder: Path, settings: Mapping[str, object]) -> Path:
    """Create the folder of a master or a minion, owned by this user; return it."""
    folder.mkdir()
    own = {"root_dir": str(folder), "pki_dir": "pki", "log_file": "log", **settings}
    for name in ("master", "minion"):
        (folder / name).write_text(json.dumps(own))  # JSON is YAML
    return folder
