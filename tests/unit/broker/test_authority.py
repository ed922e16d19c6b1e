"""Before something is signed again, the key's permissions are checked as an agent does."""

from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from broker.jobs.rerun_jobs import new_job
from broker.settings import DispatcherSettings
from broker.signing.resign_policy import Recorded, ResignPolicy, SigningRefused, check_resignable
from broker.signing.signer import Signer
from schemas import (
    Command,
    Context,
    Job,
    Rollout,
    Schedule,
    ScheduleRemoval,
    everyone,
    group,
    workstation,
)
from schemas.orders.signature import write_signatures
from tests.support.keys import Keys

NOW = datetime(2026, 12, 10, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    made = Keys(tmp_path)
    made.trust("wide")
    return made


def _settings(keys: Keys, **fields: Any) -> DispatcherSettings:
    return DispatcherSettings(signing_key=keys.private["wide"], trusted_keys=keys.folder, **fields)


def _recorded(message: Job | Schedule | ScheduleRemoval | Rollout, *signers: Signer) -> Recorded:
    header = write_signatures(signer.sign(message) for signer in signers)
    return Recorded(message, message.body(), header)


def _job(*names: str, **fields: Any) -> Job:
    targets = tuple(workstation(name) for name in names) or (everyone,)
    return Job.model_validate(
        {"command": Command(argv=("df",), background=True), "targets": targets, **fields}
    )


LIMITS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, ""),
    "its workstation": ({"targets": (workstation("a"),)}, ""),
    "its group": ({"targets": (group("lab"),)}, ""),
    "another's": ({"targets": (workstation("b"),)}, "may order only workstation:b"),
    "another group's": ({"targets": (group("office"),)}, "may order only group:office"),
    "expired": ({"not_after": NOW - DAY}, "is not valid after"),
    "to come": ({"not_before": NOW + DAY}, "is not valid before"),
    "context": ({"contexts": (Context.FOREGROUND,)}, "may order only foreground jobs"),
    "program": ({"commands": ("ls",)}, "may not order 'df'"),
}


@pytest.mark.parametrize(("limits", "reason"), LIMITS.values(), ids=LIMITS)
def test_a_job_runs_again_only_where_its_signer_may_order_it_now(
    keys: Keys, limits: dict[str, Any], reason: str
) -> None:
    narrow = keys.trust("narrow", **limits)
    job = _job("a")
    new = new_job(job, ["a"], NOW)
    said = (
        pytest.raises(SigningRefused, match=rf"\(workstation:a: the key of narrow {reason}")
        if reason
        else nullcontext()
    )
    with said:
        check_resignable(_recorded(job, narrow), new, _settings(keys), NOW, {"a": ["lab"]})


def test_one_of_its_signers_is_enough_and_each_workstation_is_asked(keys: Keys) -> None:
    a, b = (keys.trust(name, targets=(workstation(name),)) for name in ("a", "b"))
    job = _job("a", "b", "c")
    policy = ResignPolicy.from_settings(_settings(keys))
    both = _recorded(job, a, b)
    for names, refused in (("a", ""), ("ab", ""), ("abc", "workstation:c: ")):
        new = new_job(job, names, NOW)
        assert policy.refusal_reason(both, new, new.targets, NOW).startswith(refused)
        assert bool(policy.refusal_reason(both, new, new.targets, NOW)) == bool(refused)


def test_what_our_own_key_signed_reaches_no_further_by_it(keys: Keys) -> None:
    lab = keys.trust("lab", targets=(group("lab"),))
    settings = _settings(keys).model_copy(update={"signing_key": keys.private["lab"]})
    job = _job("a")
    new = new_job(job, ["a"], NOW)
    check_resignable(_recorded(job, lab), new, settings, NOW)  # the agent knows its groups
    keys.trust("lab", not_after=NOW - DAY)
    settings = _settings(keys).model_copy(update={"signing_key": keys.private["lab"]})
    mine = Signer.load(keys.private["lab"])
    assert mine is not None
    with pytest.raises(SigningRefused, match="the key of lab is not valid after"):
        check_resignable(_recorded(job, mine), new, settings, NOW)


def test_where_jobs_are_approved_nothing_is_signed_by_one_alone(keys: Keys) -> None:
    job = _job("a")
    wide = Signer.load(keys.private["wide"])
    assert wide is not None
    new = new_job(job, ["a"], NOW)
    with pytest.raises(SigningRefused, match="needs 2 signatures"):
        check_resignable(_recorded(job, wide), new, _settings(keys, approvals=1), NOW)
    check_resignable(_recorded(job, wide), new, _settings(keys), NOW)


def test_who_signs_nothing_is_asked_nothing() -> None:
    job = _job("a")
    new = new_job(job, ["a"], NOW)
    check_resignable(_recorded(job), new, DispatcherSettings(approvals=1), NOW)


def test_a_schedule_and_its_removal(keys: Keys) -> None:
    """The groups in a check-in are not trusted for signing."""
    lab = keys.trust("lab", targets=(group("lab"),))
    policy = ResignPolicy.from_settings(_settings(keys))

    def reason(job: Job) -> str:
        schedule = Schedule(name="s", repeat="0 2 * * *", job=job)
        return policy.refusal_reason(_recorded(schedule, lab), job, job.targets, NOW)

    assert reason(_job(targets=(group("lab"),))) == ""
    assert reason(_job()) == "all: the key of lab may order only group:lab"
    assert reason(_job("a")) == "workstation:a: the key of lab may order only group:lab"
    removal = ScheduleRemoval(name="s")
    for targets, allowed in (((), True), ((group("lab"),), True), ((everyone,), False)):
        refused = policy.refusal_reason(_recorded(removal, lab), removal, targets, NOW)
        assert (refused == "") == allowed


def test_a_wave_of_a_rollout(keys: Keys) -> None:
    a = keys.trust("a", targets=(workstation("a"),))
    plan = Rollout(job=_job(), waves=(("a",), ("b",)))
    recorded = _recorded(plan, a)
    check_resignable(recorded, plan.wave(1), _settings(keys), NOW)
    with pytest.raises(SigningRefused, match=f"^{plan.id}: refusing.*may order only workstation:a"):
        check_resignable(recorded, plan.wave(2), _settings(keys), NOW)
