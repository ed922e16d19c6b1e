"""A rollout's plan, and the waves that follow from it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from broker.rollouts.waves import divide, read_waves, shuffled
from schemas import Command, Job, Rollout, RolloutOrder, WaveSent, everyone, explain, group
from schemas.orders.job import new_job_id

JOB = Job(command=Command(argv=("true",)), targets=(everyone,), excluded=(group("lab"),))


def plan(*waves: tuple[str, ...], **fields: Any) -> Rollout:
    return Rollout(job=JOB, waves=waves or (("a",), ("b", "c")), **fields)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"waves": ()}, "waves"),
        ({"waves": (("a",), ())}, "empty"),
        ({"waves": (("a",), ("b", "A"))}, "more than one place"),
        ({"max_failures": "5 %"}, "max_failures"),
        ({"max_failures": "101%"}, "max_failures"),
        ({"max_failures": "-1"}, "max_failures"),
        ({"max_failures": "9" * 5000}, "max_failures"),
        ({"max_failures": ""}, "max_failures"),
        ({"pause": -1}, "pause"),
        ({"wave_limit": 0}, "wave_limit"),
        ({"id": "x" * 51}, "id"),
    ],
)
def test_bad_plans_are_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Rollout.model_validate({"job": JOB, "waves": (("a",),), **fields})
    assert named in explain(caught.value)


def test_messages_survive_the_wire() -> None:
    made = plan(max_failures="5%", pause="10m", wave_limit="2h")
    assert Rollout.read(made.body()) == made
    order = RolloutOrder(rollout_id=made.id, action="resume", max_failures="3", reason="so")
    assert RolloutOrder.read(order.body()) == order
    sent = WaveSent(rollout_id=made.id, number=2)
    assert WaveSent.read(sent.body()) == sent


def test_a_wave_is_the_same_job_by_whomever_it_is_sent() -> None:
    made = plan()
    read = Rollout.read(made.body())
    ours, theirs = made.wave(2), read.wave(2)
    assert (ours.id, ours.digest()) == (theirs.id, theirs.digest())
    assert ours.id == f"{made.id}-w2"
    assert ours.rollout == made.id
    assert [str(target) for target in ours.targets] == ["workstation:b", "workstation:c"]
    assert ours.excluded == ()
    assert made.wave(1).id != ours.id


def test_a_wave_keeps_the_times_of_the_job() -> None:
    now = datetime.now(UTC)
    times = {"mandatory_at": now + timedelta(hours=1), "expires_at": now + timedelta(hours=2)}
    made = Rollout(job=JOB.model_copy(update=times), waves=(("a",),))
    assert made.wave(1).mandatory_at == times["mandatory_at"]
    assert made.wave(1).expires_at == times["expires_at"]


def test_ten_thousand_workstations_fit_into_a_plan() -> None:
    names = tuple(f"{'x' * 55}-{number:05}" for number in range(10_000))
    made = plan(names[:1], names[1:])
    assert max(len(made.body()), len(made.wave(2).body())) < 1024 * 1024


@pytest.mark.parametrize(
    "text",
    ["", "x", "0", "0%", "101%", "1,,2", "5,5", "10%,5%", "5,3,100%", "50%,100%,200", "-1", "1.5%"],
)
def test_bad_waves_are_refused(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"write counts or percentages|must be larger|no workstation is left"
    ):
        read_waves(text)


@pytest.mark.parametrize(
    ("text", "total", "sizes"),
    [
        ("1,10%,50%,100%", 1000, [1, 99, 400, 500]),
        ("1,10%,50%,100%", 11, [1, 1, 4, 5]),
        ("1,10%,50%,100%", 3, [1, 1, 1]),
        ("1,10%,50%,100%", 1, [1]),
        ("5,10%,100%", 20, [5, 15]),
        ("10,200", 20, [10, 10]),
        ("100%", 7, [7]),
        (" 1 , 100%", 2, [1, 1]),
    ],
)
def test_waves_are_cumulative(text: str, total: int, sizes: list[int]) -> None:
    names = [f"w{number}" for number in range(total)]
    assert list(map(len, divide(names, read_waves(text)))) == sizes


def test_a_last_wave_that_leaves_some_out_is_an_error() -> None:
    with pytest.raises(ValueError, match="50%: only 5 of 9 workstations: end with 100%"):
        divide([f"w{number}" for number in range(9)], read_waves("1,50%"))


@given(st.sets(st.integers(1, 100), min_size=1), st.integers(1, 500))
def test_each_workstation_is_in_one_wave(parts: set[int], total: int) -> None:
    text = ",".join(f"{part}%" for part in sorted(parts | {100}))
    names = [f"w{number}" for number in range(total)]
    waves = divide(names, read_waves(text))
    assert [name for wave in waves for name in wave] == names
    assert all(waves)


def test_the_order_is_fair_and_is_repeatable() -> None:
    names = [f"w{number}" for number in range(50)]
    one = shuffled(names, "rollout-1")
    assert shuffled(reversed(names), "rollout-1") == one
    assert sorted(one) == sorted(names)
    first = {shuffled(names, new_job_id())[0] for _ in range(100)}
    assert len(first) > 25  # it is not always the same one that goes first
