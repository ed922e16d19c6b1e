"""`pcm doctor`: each unsafe thing is really set up, and found; where there is none, nothing is."""

import asyncio
import itertools
import json
import os
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from yarl import URL

from broker.amqp import topology
from broker.amqp.management import Management
from broker.amqp.topology import AgentKind
from broker.enrolment.rights import NOTHING
from broker.settings import BrokerSettings
from schemas.reports.check_in import Machine
from tests.support import programs
from tests.support.admin import Admin, check_in
from tests.support.programs import BIN
from tests.support.rabbitmq import Broker, Node, free_port, or_skipped
from tests.support.waiting import LIMIT
from tests.support.workstation import PCM_AGENT, Workstation, checked_in

_numbers = itertools.count(1)
_GIVEN = "PCM_TEST_AMQP_URL" in os.environ
_SAFE = {"3.13": 19, "4.0": 24, "4.1": 15, "4.2": 10, "4.3": 5}  # of a series, the first
_OF_THE_WHOLE = {"guest", "encryption", "alarms", "descriptors"}  # not for us to mend there
Found = dict[str, list[dict[str, str]]]


@pytest.fixture(scope="module")
def hospital() -> Iterator[Broker]:
    """A broker with an administrator of its own; or the one that is given, as it is."""
    if given := Broker.given():
        yield given
        return
    room = "disk_free_limit.absolute = 2GB\n"
    with (
        or_skipped(),
        Node("rabbitmq_management", configuration=room, statistics=True, files=1024) as node,
    ):
        node.ctl("add_user", "chief", "of-staff")
        node.ctl("set_user_tags", "chief", "administrator")
        node.ctl("delete_user", "guest")
        for name in ("url", "management_url"):
            url = URL(getattr(node, name)).with_user("chief").with_password("of-staff")
            setattr(node, name, str(url))
        yield node


class Patient:
    """A virtual host that is examined."""

    def __init__(self, broker: Broker, folder: Path, **given: str) -> None:
        self.number = f"{os.getpid()}-{next(_numbers)}"
        self.host = f"doctor-{self.number}"
        self.url = str(URL(broker.url).with_path(f"/{self.host}"))
        self.folder = folder
        self.broker = broker
        at = URL(broker.management_url)
        self.management = Management(str(at.with_user(None)), at.user or "", at.password or "")
        self.management.put("vhosts", self.host, body=given)
        self.may(at.user or "", ".*", ".*", ".*")
        self.admin = Admin(self.url, folder)
        self._users: list[str] = []
        self.keys = folder / "keys"
        self.keys.mkdir()
        self.environment = {
            "PCM_MANAGEMENT_URL": broker.management_url,
            "PCM_STATE_DIR": str(folder / "state"),
            "PCM_TRUSTED_KEYS": str(self.keys),
        }

    def remove(self) -> None:
        for name in self._users:
            self.management.delete("users", name)
        self.management.delete("vhosts", self.host)

    def may(self, user: str, configure: str, write: str, read: str) -> None:
        body = {"configure": configure, "write": write, "read": read}
        self.management.put("permissions", self.host, user, body=body)

    def user(
        self, name: str, configure: str = "^$", write: str = "^$", read: str = "^$", **topics: str
    ) -> str:
        """Make a user; `jobs` and `reports` are what it may write there under which keys."""
        name = f"{name}-{self.number}" if "@" not in name else name
        self._users.append(name)
        self.management.put("users", name, body={"password": "x", "tags": ""})
        self.may(name, configure, write, read)
        for exchange, pattern in topics.items():
            body = {"exchange": f"pcm.{exchange}", "write": pattern, "read": "^$"}
            self.management.put("topic-permissions", self.host, name, body=body)
        return name

    def pcm(self, *words: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        environment = self.admin.environment | self.environment
        return programs.run(
            "pcm",
            words,
            environment | {f"PCM_{name.upper()}": value for name, value in settings.items()},
            cwd=self.folder,
        )

    def enrol(self, *words: str) -> dict[str, dict[str, str]]:
        """Enrol a workstation; return the settings of its agents."""
        done = self.pcm("enrol", *words, "--json")
        assert done.returncode == 0, done.stderr
        agents = json.loads(done.stdout)["agents"]
        self._users += [agent["login"] for agent in agents]
        return {agent["agent"]: agent["settings"] for agent in agents}

    def examined(self, **settings: str) -> Found:
        """Return what the doctor finds, by check."""
        done = self.pcm("doctor", "--json", **settings)
        assert done.returncode in {0, 1}, done.stderr
        findings = json.loads(done.stdout)["findings"]
        assert done.returncode == bool(findings)
        found: Found = {}
        for finding in findings:
            found.setdefault(finding["check"], []).append(finding)
        return found

    def until(self, check: str, text: str) -> Found:
        """Examine until it finds that, and return all: the broker counts only now and then."""
        deadline = time.monotonic() + LIMIT
        while text not in texts(found := self.examined(), check):
            assert time.monotonic() < deadline, found
        return found

    def bind(self, source: str, destination: str, key: str, kind: str = "q") -> None:
        body = {"routing_key": key, "arguments": {}}
        path = ("bindings", self.host, "e", source, kind, destination)
        self.management.post(*path, body=body)

    def queue(self, name: str, **arguments: Any) -> None:
        given = {f"x-{word.replace('_', '-')}": value for word, value in arguments.items()}
        body = {"durable": True, "auto_delete": False, "arguments": given}
        self.management.put("queues", self.host, name, body=body)


@pytest.fixture
def patient(hospital: Broker, tmp_path: Path) -> Iterator[Patient]:
    """A virtual host with our topology, and nothing else."""
    found = Patient(hospital, tmp_path)
    try:
        done = found.pcm("topology", "apply")
        assert done.returncode == 0, done.stderr
        yield found
    finally:
        found.remove()


def texts(found: Found, check: str) -> str:
    """Return what a check says."""
    return "\n".join(finding["text"] for finding in found.get(check, []))


def is_safe(patient: Patient) -> bool:
    """Whether the broker's version is one of those that have no known holes."""
    text: str = patient.management.get("overview")["rabbitmq_version"]
    series, _, patch = text.rpartition(".")
    return int(patch) >= _SAFE.get(series, 1000)


async def _ignore(_: object) -> None:
    pass


def severities(found: Found, check: str) -> set[str]:
    return {finding["severity"] for finding in found[check]}


@pytest.mark.full
def test_of_a_site_of_enrolled_agents_it_says_what_the_version_deserves(
    patient: Patient, tmp_path: Path
) -> None:
    ws = Workstation(f"ws-{patient.number}", patient.url, tmp_path)
    (patient.keys / "ada.pub").write_text("")
    try:
        agents = patient.enrol(ws.name, "--user", "ada", "--group", "lab", "--group", "b")
        for agent, settings in agents.items():
            words = {name.removeprefix("PCM_").lower(): value for name, value in settings.items()}
            words |= {"trusted_keys": str(patient.keys)}
            ws.start(agent.partition("-")[0], program=PCM_AGENT, connected=True, **words)
        asyncio.run(checked_in(BrokerSettings(amqp_url=(patient.url,)), ws, 2))
        found = patient.examined(state_dir=str(ws.state_dir))
    finally:
        ws.stop()
    assert found.keys() - (_OF_THE_WHOLE if _GIVEN else set()) <= {"version"}, found
    assert ("known holes" in texts(found, "version")) is not is_safe(patient)


def test_what_a_user_sees(patient: Patient) -> None:
    patient.bind(topology.JOBS, topology.REPORTS, "background.#")
    done = patient.pcm("doctor")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    where = lines.index("UNSAFE: the queue pcm.reports receives copies of jobs (background.#)")
    assert lines[where + 1].startswith("    ")
    assert lines[-1].startswith("unsafe: ")


def test_without_a_broker() -> None:
    environment = {**os.environ, "PCM_AMQP_URL": f"amqp://127.0.0.1:{free_port()}/"}
    done = subprocess.run(
        [BIN / "pcm", "doctor"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert done.stderr.startswith("pcm: the broker is unreachable")
    assert done.stderr.count("\n") == 1


@pytest.mark.full
def test_without_the_management_api(patient: Patient) -> None:
    found = patient.examined(management_url=f"http://127.0.0.1:{free_port()}")
    assert "logins, permissions, queues and bindings" in texts(found, "unchecked")
    assert severities(found, "unchecked") == {"hint"}
    assert ("version" in found) is not is_safe(patient)


@pytest.mark.full
def test_as_a_login_that_may_not_see_all(patient: Patient) -> None:
    name = patient.user("monitor", ".*", ".*", ".*")
    at = URL(patient.broker.management_url).with_user(name).with_password("x")
    found = patient.examined(management_url=str(at))
    assert "could not be checked" in texts(found, "unchecked")
    patient.management.put("users", name, body={"password": "x", "tags": "monitoring"})
    found = patient.examined(management_url=str(at))
    assert texts(found, "unchecked").startswith("logins and their permissions: could not")


@pytest.mark.full
def test_logins_that_may_too_much(patient: Patient) -> None:
    name = f"ws-{patient.number}"
    service, interactive = f"service@{name}", f"interactive-ada@{name}"
    patient.enrol(name, "--user", "ada")
    sender = patient.user("sender", write="^pcm")
    narrow = patient.user("narrow", write="^pcm.jobs$", jobs="^foreground")
    reader = patient.user("reader", configure="service", read="^pcm.service")
    template = patient.user("a.b", write="^pcm.reports$", reports="^failed.{username}$")
    everywhere = patient.user("everywhere", write="^(amq.default|x)$")
    patient.may(service, NOTHING, "^pcm", "^pcm")
    body = {"exchange": "pcm.jobs", "write": NOTHING, "read": "^background"}
    patient.management.put("topic-permissions", patient.host, interactive, body=body)
    found = patient.examined()
    rows = texts(found, "topic-rows")
    assert f"{sender} can write pcm.jobs without a topic permission there: it can send" in rows
    assert f"{sender} can write pcm.reports" in rows
    assert narrow not in rows
    assert (narrow in texts(found, "copies")) == ("RabbitMQ 3." in texts(found, "version"))
    assert f"{reader} can take jobs from agents' queues" in texts(found, "queues")
    assert f"{reader} can delete agents' queues" in texts(found, "queues")
    assert template in texts(found, "names")
    assert everywhere in texts(found, "default-exchange")
    rights = texts(found, "enrolled")
    assert (
        f"{service} has other permissions than enrolment gives: write '^pcm', read '^pcm'" in rights
    )
    assert f"{interactive} has other permissions than enrolment gives: read '^background'" in rights
    for check in ("topic-rows", "queues", "names", "default-exchange", "enrolled"):
        assert severities(found, check) == {"unsafe"}


@pytest.mark.full
def test_the_user_guest(patient: Patient) -> None:
    if _GIVEN:
        assert "guest" in patient.examined()
        return
    assert "guest" not in patient.examined()
    try:
        patient.management.put("users", "guest", body={"password": "another", "tags": ""})
        assert "guest" not in patient.examined()
        patient.management.put("users", "guest", body={"password": "guest", "tags": ""})
        assert severities(patient.examined(), "guest") == {"unsafe"}
    finally:
        patient.management.delete("users", "guest")
    try:  # the login of compose.yaml
        patient.management.put("users", "pcm", body={"password": "another", "tags": ""})
        assert "guest" not in patient.examined()
        patient.management.put("users", "pcm", body={"password": "pcm", "tags": ""})
        assert "the user pcm exists with its default password" in str(patient.examined())
    finally:
        patient.management.delete("users", "pcm")


@pytest.mark.full
async def test_agents_that_take_orders_nobody_signed(patient: Patient, tmp_path: Path) -> None:
    """They say so; of two agents of a workstation, one is enough to be commanded by."""
    ws = Workstation(f"ws-{patient.number}", patient.url, tmp_path)
    closed, half, unsaid = (f"{word}-{patient.number}" for word in ("closed", "half", "unsaid"))
    try:
        for kind, keys in (("service", str(patient.keys)), ("interactive", "")):
            ws.start(kind, trusted_keys=keys)
        await checked_in(BrokerSettings(amqp_url=(patient.url,)), ws, 2)
        await patient.admin.tell(
            [
                check_in(closed, signed_only=True),
                check_in(half, signed_only=True),
                check_in(half, agent="interactive-ada"),
                check_in(unsaid),
            ]
        )
        found = await asyncio.to_thread(patient.examined)
        rows = json.loads(patient.pcm("workstations", ws.name, "--json").stdout)
    finally:
        ws.stop()
    told = texts(found, "unsigned")
    assert "3 of 4 workstations" in told
    assert told.endswith(f": {half}, {unsaid}, {ws.name}")
    assert severities(found, "unsigned") == {"unsafe"}
    said = {agent["agent"]: agent["signed_only"] for agent in rows[0]["agents"]}
    assert said == {"service": True, "interactive-ada": False}


@pytest.mark.full
def test_agents_that_log_in_as_who_may_send(patient: Patient, tmp_path: Path) -> None:
    ws = Workstation(f"ws-{patient.number}", patient.url, tmp_path)
    try:
        ws.start("service")
        patient.until("agents-as-others", ws.name)
        found = patient.examined(state_dir=str(ws.state_dir), trusted_keys="")
        assert "accept unsigned orders" in texts(found, "unsigned")
    finally:
        ws.stop()


def test_bindings_that_should_not_be(patient: Patient) -> None:
    name, arguments = f"ws-{patient.number}", {"dead_letter_exchange": "pcm.dead"}
    patient.enrol(name, "--user", "ada", "--user", "ben")
    ada, service = f"pcm.interactive.{name}.ada", f"pcm.service.{name}"
    for key in (
        "background.mandatory.all",
        "#",
        "*.optional.all",
        "foreground.*.workstation.other",
    ):
        patient.bind(topology.JOBS, ada, key)
    patient.bind(topology.JOBS, service, "background.*.workstation.other")
    patient.bind(topology.JOBS, "amq.fanout", "#", "e")
    patient.queue("spy")
    patient.bind(topology.JOBS, "spy", "foreground.#")
    patient.queue("pcm.service.nobody", **arguments)
    patient.queue("pcm.service.astray")
    patient.queue("pcm.service.older", queue_type="quorum", **arguments)
    ben = f"pcm.interactive.{name}.ben"
    path = ("bindings", patient.host, "e", topology.JOBS, "q", ben)
    assert patient.management.delete(*path, "foreground.*.all")
    found = patient.examined()
    background = texts(found, "background")
    assert ada in background
    assert ben not in background
    for key in ("background.mandatory.all", "#", "*.optional.all"):
        assert key in background
    assert "workstation.other" not in background
    assert f"{ada} is bound by foreground.*.workstation.other" in texts(found, "bindings")
    assert f"{service} is bound by background.*.workstation.other" in texts(found, "bindings")
    assert ben in texts(found, "bindings")
    assert "pcm.service.nobody" in texts(found, "bindings")
    assert "the exchange amq.fanout receives copies" in texts(found, "listeners")
    assert "the queue spy receives copies" in texts(found, "listeners")
    assert "pcm.service.astray (to nowhere)" in texts(found, "dead-letters")
    assert "pcm.service.nobody" not in texts(found, "dead-letters")
    assert [finding["text"].rpartition(": ")[2] for finding in found["consumers"]] == [
        "pcm.service.older"
    ]
    for unknown in ("pcm.service.nobody", "pcm.service.astray", ada):
        assert unknown in texts(found, "abandoned")


@pytest.mark.full
def test_a_topology_that_is_another(patient: Patient) -> None:
    management, host = patient.management, patient.host
    management.delete("exchanges", host, topology.JOBS)
    management.delete("queues", host, topology.REPORTS)
    patient.queue(topology.REPORTS)
    management.delete("queues", host, topology.DEAD)
    patient.queue(topology.DEAD, queue_type="quorum")
    management.delete("exchanges", host, topology.DEAD)
    body = {
        "type": "fanout",
        "durable": True,
        "arguments": {"alternate-exchange": "amq.fanout"},
    }
    management.put("exchanges", host, topology.DEAD, body=body)
    told = texts(patient.examined(), "topology")
    assert f"missing: exchange {topology.JOBS}" in told
    assert "pcm.reports is a classic queue, and should be a stream" in told
    assert "pcm.reports is not bound by pcm.reports accepted.*.*" in told
    assert "pcm.dead drops a letter" in told
    assert "the exchange pcm.dead is fanout; it should be headers" in told
    assert "passes unroutable messages to amq.fanout" in told
    assert management.get("exchanges", host, topology.JOBS) is None  # looking changed nothing


@pytest.mark.full
def test_policies_that_drop(patient: Patient) -> None:
    for name, pattern, definition in (
        ("old", "^pcm\\.service", {"message-ttl": 1000}),
        ("others", "^else", {"message-ttl": 1000}),
    ):
        body = {"pattern": pattern, "definition": definition}
        patient.management.put("policies", patient.host, name, body=body)
    told = texts(patient.examined(), "policies")
    assert "the policy old" in told
    assert "others" not in told


@pytest.mark.full
async def test_clocks_and_dead_letters(patient: Patient) -> None:
    late, early = f"late-{patient.number}", f"early-{patient.number}"
    now = datetime.now(UTC)
    await patient.admin.tell(
        [
            check_in(early, at=now + timedelta(hours=1)),
            check_in(late, at=now - timedelta(hours=3), interval=60),
        ]
    )
    for standby, host in ((False, "web.site1"), (True, "web.site2")):
        machine = Machine(id=host, boot=host, host=host, address="10.0.0.1")
        twice = check_in(f"twice-{patient.number}", machine=machine, standby=standby)
        await patient.admin.tell([twice])
    await patient.admin.declare(late)
    connection = await aio_pika.connect(patient.url)
    async with connection, connection.channel() as channel:
        reports = await channel.get_exchange(topology.REPORTS)
        await reports.publish(aio_pika.Message(b"a letter"), "dead.ws.service")
        queue = await channel.get_queue(topology.queue_name(AgentKind.SERVICE, late))
        await queue.consume(_ignore)
        found = await asyncio.to_thread(patient.until, "clocks", "too old")
    assert f"ahead of this machine's: {early}" in texts(found, "clocks")
    assert late in texts(found, "clocks")
    assert "the broker's clock" not in texts(found, "clocks")
    several = texts(found, "machines")
    assert f"several machines are named twice-{patient.number}: web.site1 (10.0.0.1, " in several
    assert "receives the jobs; web.site2 (10.0.0.1, machine web.site2) receives nothing" in several
    assert "dead letters: 1" in texts(found, "dead-letters")
    assert late not in texts(found, "abandoned")


@pytest.mark.full
@pytest.mark.skipif(_GIVEN, reason="it concerns all that a broker has")
def test_files_and_alarms(patient: Patient) -> None:
    assert "descriptors" not in patient.examined()
    rows = [
        {"name": f"q{number}", "vhost": patient.host, "durable": True, "auto_delete": False}
        for number in range(200)
    ]
    patient.management.post(
        "definitions", body={"queues": [{**row, "arguments": {}} for row in rows]}
    )
    found = patient.until("descriptors", "can open")
    assert "can open 1,024 files" in texts(found, "descriptors")
    patient.broker.ctl("set_disk_free_limit", "9000000GB")
    try:
        found = patient.until("alarms", "is low on disk space: nothing can be published")
        assert "the broker accepts no messages" in texts(found, "unchecked")
    finally:
        patient.broker.ctl("set_disk_free_limit", "2GB")
    while "alarms" in patient.examined():  # and leave it so to the next test
        pass


@pytest.mark.full
@pytest.mark.parametrize("kind", ["quorum", "stream"])
def test_a_default_queue_type_makes_no_difference(
    hospital: Broker, tmp_path: Path, kind: str
) -> None:
    found = Patient(hospital, tmp_path, default_queue_type=kind, defaultqueuetype=kind)
    try:
        assert found.management.get("vhosts", found.host)["default_queue_type"] == kind
        assert found.pcm("topology", "apply").returncode == 0
        assert found.pcm("dead", "list").stdout == "no dead letters\n"
        assert "unchecked" not in found.examined()
        found.queue("pcm.service.x", queue_type="stream")
        assert "pcm.service.x: stream queues" in texts(found.examined(), "queue-types")
    finally:
        found.remove()


def test_this_machine(patient: Patient) -> None:
    state = patient.folder / "state"
    (state / "claims").mkdir(parents=True)
    (state / "service").mkdir(mode=0o700)
    (state / "service" / "ledger.db").touch(mode=0o600)
    (patient.keys / "ada.pub").touch(mode=0o644)
    for path in (state, state / "claims"):
        path.chmod(0o1777)
    here = ("folders", "keys", "unsigned", "settings")
    assert not patient.examined().keys() & {*here}
    (state / "claims").chmod(0o777)
    (state / "service").chmod(0o750)
    (state / "service" / "ledger.db").chmod(0o644)
    patient.keys.chmod(0o777)
    (patient.keys / "ada.pub").chmod(0o664)
    (patient.folder / ".env").touch()
    (patient.folder / ".env").chmod(0o666)
    found = patient.examined()
    told = texts(found, "folders")
    for name in ("state/claims", "state/service", "state/service/ledger.db"):
        assert name in told
    assert f"everybody can write to {patient.keys}" in texts(found, "keys")
    assert f"its group can write to {patient.keys}/ada.pub" in texts(found, "keys")
    assert ".env is not read" in texts(found, "settings")
