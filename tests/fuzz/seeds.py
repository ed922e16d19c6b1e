"""Bytes as they ought to be, from which worse ones are made."""

import json
import struct
from datetime import UTC, datetime, timedelta
from typing import Any

from nacl.signing import SigningKey
from pamqp import encode

from broker.signing.signer import Signer
from schemas import (
    AgentsRevoked,
    Cancellation,
    CheckIn,
    Command,
    Facts,
    Job,
    Message,
    Output,
    Pause,
    RejectedRecord,
    Report,
    Result,
    Rollout,
    RolloutOrder,
    Schedule,
    ScheduleRemoval,
    State,
    TrustedKey,
    WallClock,
    WaveEnded,
    WaveSent,
    WorkstationForgotten,
    everyone,
    group,
    workstation,
)
from schemas.orders.signature import write_signatures

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
WS = "ws-1"
_HERE = (workstation(WS),)
_MADE: dict[str, Any] = {"sender": "ada@admin", "created_at": NOW}

_ASKED: tuple[dict[str, Any], ...] = (
    {"command": Command(argv=("uname", "-a"), background=True)},
    {
        "command": Command(
            argv=("/opt/update", "ä"),
            cwd="/tmp",
            environment={"LANG": "C"},
            platforms=frozenset({"linux/x86_64"}),
            background=True,
            survives_agent=True,
            leaves_processes=True,
        ),
        "mandatory_at": WallClock(local=datetime(2026, 12, 1, 2)),  # noqa: DTZ001
        "expires_at": WallClock(local=datetime(2026, 12, 2, 2)),  # noqa: DTZ001
        "respects_windows": True,
        "supersedes": "update",
    },
    {
        "command": Command(argv=("df | tail -1",), shell=True, user_may_stop=True),
        "excluded": (group("lab"),),
        "offer_at": NOW + timedelta(hours=1),
        "expires_at": NOW + timedelta(days=1),
        "max_postponements": 3,
        "min_interval": timedelta(hours=1),
        "comment": "why",
    },
)
_JOBS = tuple(
    Job(id=f"20261130-120000-{number:010}", targets=_HERE, **_MADE, **fields)
    for number, fields in enumerate(_ASKED)
)
_PLAN = Job(
    id="plan", command=Command(argv=("true",), background=True), targets=(everyone,), **_MADE
)
_RESULT = Result(
    exit_code=0,
    duration=timedelta(seconds=1),
    max_memory=1 << 20,
    stdout=Output(head=b"Linux\n", dropped=3, tail=b"\xff"),
)
_PAUSE = Pause(workstation=WS, paused=True, reason="exam", **_MADE)
_AGENT: dict[str, Any] = {"workstation": WS, "agent": "service", "at": NOW}


def _bodies(*messages: Message) -> tuple[bytes, ...]:
    return tuple(message.body() for message in messages)


JOB = _JOBS[0].body()
MESSAGES: dict[type[Message], tuple[bytes, ...]] = {
    Job: _bodies(*_JOBS),
    Cancellation: _bodies(Cancellation(job_id="j", workstations=(WS,), reason="no", **_MADE)),
    Pause: _bodies(_PAUSE),
    Report: _bodies(
        Report(id="r", job_id="j", state=State.SUCCEEDED, result=_RESULT, **_AGENT),
        Report(id="r", job_id="j", state=State.POSTPONED, until=NOW, reason="x", **_AGENT),
    ),
    CheckIn: _bodies(
        CheckIn(
            pause=_PAUSE,
            groups=("lab", "os-linux"),
            facts=Facts(os="linux", arch="x86_64", release="debian-12", memory=1 << 30),
            interval=timedelta(minutes=15),
            **_AGENT,
        )
    ),
    WorkstationForgotten: _bodies(WorkstationForgotten(workstation=WS, **_MADE)),
    AgentsRevoked: _bodies(
        AgentsRevoked(workstation=WS, agents=("service", "interactive-ada.lovelace"), **_MADE)
    ),
    Rollout: _bodies(
        Rollout(id="o", job=_PLAN, waves=((WS,), ("ws-2", "ws-3")), max_failures="5%", **_MADE)
    ),
    RolloutOrder: _bodies(RolloutOrder(rollout_id="o", action="pause", **_MADE)),
    WaveSent: _bodies(WaveSent(rollout_id="o", number=1, **_MADE)),
    WaveEnded: _bodies(WaveEnded(rollout_id="o", number=1, **_MADE)),
    Schedule: _bodies(
        Schedule(
            name="s", repeat="0 2 * * 0", job=_PLAN, expires_after=timedelta(hours=1), **_MADE
        ),
        Schedule(name="s", repeat="*/5 1-3 * 2 *", zone="Europe/Berlin", job=_PLAN, **_MADE),
    ),
    RejectedRecord: _bodies(RejectedRecord(digest="0" * 32, **_MADE)),
    ScheduleRemoval: _bodies(ScheduleRemoval(name="s", **_MADE)),
}
ORDERS = MESSAGES[Job] + MESSAGES[Cancellation] + MESSAGES[Pause]

_SIGNER = Signer("ada", SigningKey(bytes(32)))
TRUSTED = TrustedKey(name="ada", key=_SIGNER.public_text)
SIGNED = tuple(
    write_signatures([_SIGNER.sign(order)]).encode() + b"\n" + order.body()
    for order in (_JOBS[0], _JOBS[1], Cancellation(job_id="j", **_MADE), _PAUSE)
)
SIGNATURES = (b"", *(signed.partition(b"\n")[0] for signed in SIGNED))

_HEADERS = encode.field_table(
    {
        "reason": "no JSON",
        "workstation": WS,
        "agent": "service",
        "job": "j",
        "at": "2026-11-30T12:00:00+00:00",
        "x-delivery-count": 2,
        "x-first-death-queue": f"pcm.service.{WS}",
        "x-death": [{"count": 1, "time": NOW, "queue": "q"}],
    }
)
PROPERTIES = (
    # Content type, headers, mode, expiration, id, time, type: in the order of their bits.
    struct.pack(">H", 1 << 15 | 1 << 13 | 1 << 12 | 1 << 8 | 1 << 7 | 1 << 6 | 1 << 5)
    + b"\x10application/json"
    + _HEADERS
    + b"\x02"
    + b"\x0560000"
    + b"\x02id"
    + struct.pack(">Q", int(NOW.timestamp()))
    + b"\x03job",
    struct.pack(">H", 1 << 13) + encode.field_table({}),
    struct.pack(">H", 1 << 13)
    + encode.field_table({"a": [1, 1.5, bytearray(b"\xff"), True, None, {"b": []}]}),
)

_JSON = json.dumps({"jobs": [json.loads(body) for body in MESSAGES[Job]]}).encode()
_YAML = b"""\
# two jobs
- command: {argv: [uname, -a], background: true}
  targets: [all]
- command:
    argv: &a ["/opt/update", "x"]
    timeout: 1h30m
  targets: ["group:lab"]
  mandatory_at: 2036-12-01 02:00 local
  expires_at: 2036-12-03 02:00 local
  comment: |
    why
"""
_TOML = b"""\
[[jobs]]
targets = ["all"]
mandatory_at = 2026-12-01T02:00:00Z
command.argv = ["true"]
[[jobs]]
command = { argv = ["true"], environment = { A = "b" } }
targets = [
    "workstation:ws-1",
]
comment = \"\"\"
why\"\"\"
"""
FILES = {
    ".json": (_JSON, JOB),
    ".yaml": (_YAML, b"{a: *a, b: !!binary x}\n---\n...\n"),
    ".toml": (_TOML,),
    "": (_YAML, JOB),
}

VARIABLES = (
    b"AMQP_URL=amqps://u:p@h:5671/v?heartbeat=5, amqp://h\nWORKSTATION=ws-1\nGROUPS=lab, b",
    b"OUTPUT_LIMIT=64KiB\nCONCURRENCY=4\nCOUNTDOWN=5m\nQUEUE_TYPE=classic\nREMIND=none",
    b"WINDOWS=Sun 02:00-06:00\nSTATE_DIR=/var/lib/pcm\nUSER=ada\nACCEPT_OFFERS=yes\nKEEP=90d",
    b"PATIENCE=10s\nSETTLE=2s\nHISTORY_URL=postgresql://u@h/d\nHISTORY_KEEP=365d",
)
ENV_FILES = (
    b"# ours\nexport PCM_GROUPS='lab, b'\nPCM_AMQP_URL=\"amqp://a:${HOME}@h/\"\nPCM_USER=a # b\n",
)
SECRETS = (b"amqp://u:p@h/\n\nlab, b\n",)
CLAIMS = (
    b'{"agent": "service", "state": "started", "ended": false}  ',
    b'{"agent": "interactive-ada", "state": "cancelled"}',
)
REQUESTS = (
    b'{"do": "run", "job": "j"}\n',
    b'{"do": "postpone", "job": "j", "until": "2026-11-30T12:00:00+00:00"}\n',
    b'{"do": "decline", "job": "j", "reason": "no"}\n',
    b'{"do": "remind", "job": "j", "after": 5.0}\n',
)
DURATIONS = (b"30s", b"1h30m", b"250ms", b"1.5d")
MOMENTS = (b"now", b"+10m", b"2026-11-30T02:00Z", b"2026-11-30T02:00 local", b"2026-W49-1T02+01")
CRONS = (b"0 2 * * 0", b"*/5 1-3,7 1,L * MON-FRI", b"0 0 29 2 *", b"30 2 * * SUN#1")
WINDOWS = (b"Sun 02:00-06:00, Mon-Fri 22:00-04:00", b"daily 00:00-24:00", b"02:00-03:00")
