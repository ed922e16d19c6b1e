"""The signed bytes, and the permissions of keys."""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import (
    Cancellation,
    Command,
    InvalidMessage,
    Job,
    Pause,
    Signature,
    Target,
    TrustedKey,
    everyone,
    group,
    workstation,
)
from schemas.orders.signature import read_signatures, signed_bytes, write_signatures

KEY = base64.b64encode(bytes(32)).decode()
HERE = {everyone, group("lab"), workstation("ws-1")}
NOW = datetime.now(UTC)
_PARTS = st.tuples(st.text(max_size=5), st.lists(st.text(max_size=5)), st.binary(max_size=20))


@given(_PARTS, _PARTS)
def test_no_two_orders_make_the_same_bytes(
    one: tuple[str, list[str], bytes], other: tuple[str, list[str], bytes]
) -> None:
    assert (signed_bytes(*one) == signed_bytes(*other)) == (one == other)


def test_what_is_signed_stays_the_same() -> None:
    """Agents check what other versions signed."""
    assert signed_bytes("job", ["a.b.all"], b"{}") == (
        b"package-command-manager order 1\0"
        b"\0\0\0\0\0\0\0\3job"
        b"\0\0\0\0\0\0\0\17\0\0\0\0\0\0\0\7a.b.all"
        b"\0\0\0\0\0\0\0\2{}"
    )


@given(st.one_of(st.text(), st.binary(), st.none(), st.integers(), st.lists(st.text())))
def test_any_header_is_read_or_refused(header: object) -> None:
    if header in (None, ""):
        assert read_signatures(header) == ()
        return
    with pytest.raises(InvalidMessage, match="signatures: "):
        read_signatures(header)


def test_signatures_are_read_as_they_were_written() -> None:
    one = Signature(name="ada", key="0" * 16, signature=base64.b64encode(bytes(64)).decode())
    assert read_signatures(write_signatures([one, one])) == (one, one)
    with pytest.raises(InvalidMessage):
        read_signatures(write_signatures([one] * 9))


def _job(*argv: str, targets: tuple[Target, ...] = (everyone,), **fields: Any) -> Job:
    return Job(command=Command(argv=argv or ("df",), **fields), targets=targets)


@pytest.mark.parametrize(
    ("scope", "order", "objection"),
    [
        ({}, _job("anything", shell=True), ""),
        ({"targets": ["group:lab"]}, _job(), ""),
        ({"targets": ["workstation:ws-1"]}, _job(targets=(group("lab"),)), ""),
        ({"targets": ["group:office"]}, _job(), "may order only group:office"),
        ({"targets": ["group:office"]}, Pause(workstation="ws-1", paused=True), "group:office"),
        ({"targets": ["group:office"]}, Cancellation(job_id="job-1"), "group:office"),
        ({"targets": ["group:lab"]}, Cancellation(job_id="job-1"), ""),
        ({"contexts": ["background"]}, _job(background=True), ""),
        ({"contexts": ["background"]}, _job(), "may order only background jobs"),
        ({"shell": False}, _job("df -h", shell=True), "no scripts"),
        ({"shell": False}, _job("df", "-h"), ""),
        ({"commands": ["df"]}, _job("df", "-h"), ""),
        ({"commands": ["df"]}, _job("/tmp/df"), "may not order '/tmp/df'"),
        ({"commands": ["/opt/*"]}, _job("/opt/tools/a"), ""),
        ({"commands": ["/opt/*"]}, _job("/opt/../bin/sh"), "may not order"),
        ({"commands": ["df *"]}, _job("df -h; rm -r /", shell=True), "may not order"),
        ({"commands": ["df -h"]}, _job("df -h", shell=True), ""),
        ({"commands": ["df"]}, _job(environment={"PATH": "/tmp"}), "environment variable PATH"),
        ({"commands": ["df"], "variables": ["LANG"]}, _job(environment={"LANG": "C"}), ""),
        ({"not_after": NOW - timedelta(seconds=1)}, _job(), "is not valid after"),
        ({"not_before": NOW + timedelta(seconds=1)}, _job(), "is not valid before"),
        ({"not_before": NOW, "not_after": NOW + timedelta(1)}, _job(), ""),
    ],
)
def test_a_key_orders_what_it_may(
    scope: dict[str, Any], order: Job | Pause | Cancellation, objection: str
) -> None:
    key = TrustedKey.model_validate({"name": "ada", "key": KEY, **scope})
    found = key.objection(order, HERE, NOW)
    assert objection in found
    assert bool(found) == bool(objection)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"key": "short"}, "key: is not 32 bytes in base64"),
        ({"key": KEY, "target": ["all"]}, "target: no such field"),
        ({"key": KEY, "targets": ["lab"]}, "is not a target"),
        ({"key": KEY, "variables": ["A"]}, "variables"),
        ({"key": KEY, "not_before": NOW, "not_after": NOW}, "not_after: must be after"),
    ],
)
def test_what_is_wrong_in_a_key_is_named(fields: dict[str, Any], said: str) -> None:
    """A scope that is misspelt must not be none."""
    with pytest.raises(InvalidMessage, match=said):
        TrustedKey.read(json.dumps({"name": "ada", **fields}, default=str))
