"""The messages refuse contradictions, name the field, and survive the wire."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas import (
    Cancellation,
    Command,
    Context,
    InvalidMessage,
    Job,
    Output,
    Report,
    Requirement,
    Result,
    State,
    Target,
    WallClock,
    everyone,
    explain,
    group,
    workstation,
)
from schemas.orders.job import id_time
from schemas.times import duration_text, parse_duration, parse_moment

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


def job(**fields: Any) -> Job:
    command = {name: fields.pop(name) for name in list(fields) if name in Command.model_fields}
    fields = {"targets": (everyone,), "created_at": NOW, **fields}
    return Job(command=Command(**{"argv": ("true",), **command}), **fields)


def problem(**fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        job(**fields)
    return explain(caught.value)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"background": True, "user_input_required": True}, "user_input_required"),
        ({"background": True, "user_may_stop": True}, "user_may_stop"),
        ({"background": True, "max_postponements": 1}, "max_postponements"),
        ({"background": True, "max_postponements": 0}, "max_postponements"),
        ({"background": True, "min_interval": timedelta(hours=1)}, "min_interval"),
        ({"max_postponements": 0, "min_interval": timedelta(hours=1)}, "min_interval"),
        ({"max_postponements": -1}, "max_postponements"),
        ({"min_interval": timedelta(seconds=-1)}, "min_interval"),
        ({"min_interval": timedelta(days=366)}, "min_interval"),
        ({"comment": "x" * 2001}, "comment"),
        ({"comment": "a\0b"}, "comment"),
        ({"offer_at": NOW + timedelta(hours=2), "mandatory_at": NOW}, "mandatory_at"),
        ({"mandatory_at": NOW + timedelta(hours=2), "expires_at": NOW + timedelta(hours=1)},
         "expires_at"),
        ({"offer_at": NOW + timedelta(hours=2), "expires_at": NOW + timedelta(hours=1)},
         "expires_at"),
        ({"expires_at": NOW - timedelta(seconds=1)}, "expires_at"),
        ({"mandatory_at": NOW, "expires_at": WallClock(local=datetime(2026, 12, 1))},  # noqa: DTZ001
         "expires_at"),
        ({"mandatory_at": datetime(2026, 12, 1)}, "mandatory_at"),  # noqa: DTZ001 - refused: no zone
        ({"argv": ()}, "argv"),
        ({"argv": ("",)}, "argv"),
        ({"argv": ("a\0b",)}, "argv"),
        ({"argv": ("echo", "x"), "shell": True}, "argv"),
        ({"cwd": "tmp"}, "cwd"),
        ({"environment": {"A=B": "c"}}, "environment"),
        ({"timeout": timedelta(0)}, "timeout"),
        ({"success_exit_codes": frozenset({-1})}, "success_exit_codes"),
        ({"success_exit_codes": frozenset({0, 256})}, "success_exit_codes"),
        ({"restart_exit_codes": frozenset({3010})}, "restart_exit_codes"),
        ({"argv": ("echo", "x" * 131_072)}, "argv"),
        ({"argv": ("echo", "ü" * 65_536)}, "argv"),
        ({"argv": ("#" * 131_072,), "shell": True}, "argv"),
        ({"argv": ("x",) * 220_000}, "argv"),
        ({"environment": {"A": "x" * 131_070}}, "environment"),
        ({"environment": {f"A{n}": "x" * 130_000 for n in range(16)}}, "argv"),
        ({"platforms": frozenset({"linus"})}, "platforms"),
        ({"targets": ()}, "targets"),
        ({"argv": ("\udcff",)}, "argv"),
        ({"name": "\udcff"}, "name"),
        ({"timeout": 1e300}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"timeout": "9" * 400 + "d"}, "timeout"),
        ({"mandatory_at": "9999-12-31T23:59:59-12:00"}, "mandatory_at"),
        ({"mandatory_at": {"local": "9999-12-31T23:59:59"}}, "mandatory_at"),
        ({"expires_at": "0001-01-01T00:00:00+14:00"}, "expires_at"),
    ],
)  # fmt: skip
def test_contradictions_are_refused_when_the_object_is_made(
    fields: dict[str, Any], named: str
) -> None:
    """Q235196, Q174933: the message names the field."""
    assert named in problem(**fields).split(": ")[0] + problem(**fields)


@pytest.mark.parametrize("name", ["a.b", "", "a b", "x" * 64, "ä", "a\n", "*", "#"])
def test_names_are_of_letters_digits_dash_and_underscore(name: str) -> None:
    for make in (group, workstation):
        with pytest.raises(ValidationError):
            make(name)
    assert group("Lab_1-A").name == "lab_1-a"


@pytest.mark.parametrize("text", ["", "everyone", "group", "group:", "all:x", "ws-1", "host:x"])
def test_targets_are_all_a_group_or_a_workstation(text: str) -> None:
    with pytest.raises(ValidationError):
        Target.parse(text)


def test_a_job_is_the_same_after_the_wire() -> None:
    sent = job(
        argv=("sh", "-c", "echo ü"),
        targets=(group("lab"), everyone, group("LAB")),
        mandatory_at=NOW,
        platforms=frozenset({"linux/amd64", "macos"}),
    )
    read = Job.read(sent.body())
    assert read == sent
    assert read.digest() == sent.digest()
    assert [str(target) for target in read.targets] == ["group:lab", "all"]
    assert read.command.platforms == {"linux/x86_64", "macos"}
    assert (read.context, read.requirement) == (Context.FOREGROUND, Requirement.MANDATORY)


def test_the_restart_codes_of_an_earlier_version_are_read_as_none() -> None:
    """1641 and 3010 are Windows' and were the default; they cannot occur here."""
    sent = job(restart_exit_codes=frozenset({77}))
    former = sent.body().replace(b'"restart_exit_codes":[77]', b'"restart_exit_codes":[1641,3010]')
    assert Job.read(former).command.restart_exit_codes == Command(argv=("x",)).restart_exit_codes
    assert not Job.read(former).command.restart_exit_codes


def test_what_a_system_just_takes_is_taken() -> None:
    """The limits are those of execve(2): it starts what we let pass."""
    longest, value = "x" * 131_071, "x" * (131_071 - len("A="))
    many = ("/bin/true", *("x",) * 180_000)
    for argv in (("/bin/true", longest), many):
        command = Command(argv=argv, environment={"A": value})
        assert subprocess.run(command.argv, env=command.environment, check=True)
    with pytest.raises(OSError, match="Argument list too long"):
        subprocess.run(("/bin/true", longest + "x"), check=True)


def test_the_same_job_has_the_same_digest_in_every_process() -> None:
    """A set's order differs between processes; the digest must not."""
    code = (
        "from schemas import Command, Job, everyone\n"
        "c = Command(argv=('true',), platforms=frozenset({'linux', 'macos', 'windows'}),"
        " success_exit_codes=frozenset({0, 200, 77}))\n"
        "print(Job(id='j', command=c, targets=(everyone,)).digest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "123"
    }
    assert len(digests) == 1


def test_a_typo_is_an_error_for_administrators_and_ignored_by_agents() -> None:
    body = job().body().replace(b'"shell"', b'"shel"')
    with pytest.raises(InvalidMessage, match="shel: no such field"):
        Job.read(body)
    assert not Job.read(body, tolerant=True).command.shell


@pytest.mark.parametrize("version", ["2.0", "0.9", "1", "one", "1.x"])
def test_only_the_major_version_one_is_read(version: str) -> None:
    body = job().body().replace(b'"1.0"', f'"{version}"'.encode())
    with pytest.raises(InvalidMessage, match="version"):
        Job.read(body, tolerant=True)
    newer = job().body().replace(b'"1.0"', b'"1.7"')
    assert Job.read(newer, tolerant=True).version == "1.7"


@given(st.binary(max_size=300))
def test_bytes_from_outside_are_a_message_or_invalid(body: bytes) -> None:
    for kind in (Job, Cancellation, Report):
        with pytest.raises(InvalidMessage):
            kind.read(body, tolerant=True)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.sampled_from(sorted(Job.model_fields | Command.model_fields)), _JSON)
def test_any_value_in_any_field_is_taken_or_invalid(field: str, value: object) -> None:
    """An exception of another kind would end an agent, again and again."""
    content: dict[str, Any] = json.loads(job().body())
    (content if field in content else content["command"])[field] = value
    try:
        read = Job.read(json.dumps(content), tolerant=True)
    except InvalidMessage:
        return
    assert Job.read(read.body()) == read


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_output_survives_whatever_bytes_it_has(head: bytes, tail: bytes) -> None:
    output = Output(head=head, dropped=1, tail=tail)
    assert Output.model_validate_json(output.model_dump_json()) == output


def test_half_a_report_is_never_a_success() -> None:
    """Q138241, Q190135."""
    fields: dict[str, Any] = {"job_id": "j", "workstation": "w", "agent": "service"}
    with pytest.raises(ValidationError, match="exit code"):
        Report(**fields, state=State.SUCCEEDED)
    ended = Result(signal=9, duration=timedelta(0), max_memory=0)
    with pytest.raises(ValidationError, match="exit code"):
        Report(**fields, state=State.SUCCEEDED, result=ended)


def test_ids_never_repeat_and_tell_their_time() -> None:
    ids = {job().id for _ in range(1000)}
    assert len(ids) == 1000
    made = id_time(ids.pop())
    assert made is not None
    assert abs(made - datetime.now(UTC)) < timedelta(minutes=1)
    assert id_time("my-own-id") is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5m", 300), ("1h30m", 5400), ("250ms", 0.25), ("2d", 172800)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "5", "5 m", "m", "-5m", "5m!", "1w"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


def test_moments() -> None:
    assert parse_moment("now", NOW) == NOW
    assert parse_moment("+10m", NOW) == NOW + timedelta(minutes=10)
    assert parse_moment("2026-11-30T13:00+01:00", NOW) == NOW
    assert parse_moment("2026-12-01T02:00 local", NOW) == WallClock(
        local=datetime(2026, 12, 1, 2)  # noqa: DTZ001 - a wall clock's time
    )
    for text in ("2026-11-30T13:00", "tomorrow", "", "+x", "2026-12-01T02:00Z local"):
        with pytest.raises(ValueError, match=r"not a time|a zone|not a duration"):
            parse_moment(text, NOW)


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process's clock on the wall hangs in Berlin."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize(
    ("local", "instant"),
    [
        ("2026-11-30T02:00", "2026-11-30T01:00Z"),
        ("2026-03-29T02:30", "2026-03-29T01:00Z"),  # skipped: the first instant after the gap
        ("2026-03-29T02:00", "2026-03-29T01:00Z"),
        ("2026-03-29T03:00", "2026-03-29T01:00Z"),
        ("2026-10-25T02:30", "2026-10-25T00:30Z"),  # shown twice: the first of the two
        ("2026-10-25T03:00", "2026-10-25T02:00Z"),
    ],
)
def test_wall_clock_times_in_a_gap_and_shown_twice(local: str, instant: str) -> None:
    """Q189305, Q169474, Q186132: ran an hour off."""
    moment = WallClock(local=datetime.fromisoformat(local))
    assert moment.instant() == datetime.fromisoformat(instant)


@given(st.integers(0, 10**8))
def test_a_duration_is_read_as_it_is_written(seconds: int) -> None:
    duration = timedelta(seconds=seconds)
    assert parse_duration(duration_text(duration)) == duration


def test_durations_are_written_short() -> None:
    texts = [
        duration_text(timedelta(seconds=seconds)) for seconds in (0, 0.5, 90, 3600, 90 * 86400)
    ]
    assert texts == ["0s", "0.5s", "1m30s", "1h", "90d"]
