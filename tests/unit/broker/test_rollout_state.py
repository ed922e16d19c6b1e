"""How a rollout stands follows from its plan, what was asked, its waves, and the time alone."""

import random
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.history.queries.rows import FAILURES
from broker.rollouts.state import RolloutState, WaveTally, rollout_state
from schemas import Command, Job, Rollout, RolloutOrder, State, WallClock, everyone

NOW = datetime.now(UTC).timestamp()
JOB = Job(command=Command(argv=("true",)), targets=(everyone,))


def plan(*sizes: int, job: Job = JOB, **fields: Any) -> Rollout:
    waves = [
        tuple(f"w{number}-{index}" for index in range(size)) for number, size in enumerate(sizes)
    ]
    return Rollout(job=job, waves=tuple(waves), **fields)


def tally(begun_at: float = NOW, *, sent: bool = True, **counts: int) -> WaveTally:
    return WaveTally(begun_at, sent=sent, counts=Counter(counts), end_seen_at=begun_at + 10)


def order(action: str, after: float = 0, **fields: Any) -> RolloutOrder:
    at = datetime.fromtimestamp(NOW + after, UTC)
    fields = {"rollout_id": "r", "action": action, "sender": "ada", "created_at": at, **fields}
    return RolloutOrder.model_validate(fields)


def test_the_first_wave_is_due_at_once() -> None:
    found = rollout_state(plan(1, 2, pause="1h"), (), {}, NOW)
    assert (found.state, found.send, found.wave) == ("due", 1, 0)


def test_a_wave_waits_for_all_reports_of_the_one_before() -> None:
    made = plan(3, 2)
    found = rollout_state(made, (), {1: tally(succeeded=1, started=1, queued=1)}, NOW + 999)
    assert (found.state, found.send, found.sent_to) == ("running", None, 3)
    found = rollout_state(made, (), {1: tally(succeeded=2, unreachable=1)}, NOW + 999)
    assert (found.state, found.send) == ("due", 2)


def test_a_pause_counts_from_the_last_final_report() -> None:
    made, tallies = plan(1, 2, pause="1m"), {1: tally(succeeded=1)}
    found = rollout_state(made, (), tallies, NOW + 69)
    assert (found.state, found.until, found.send) == ("pausing", NOW + 70, None)
    assert rollout_state(made, (), tallies, NOW + 70).send == 2


def test_a_wave_whose_sending_was_cut_off_is_due_again() -> None:
    made = plan(1, 2, pause="1h")
    half = {1: tally(succeeded=1), 2: tally(sent=False, queued=1, succeeded=1)}
    assert rollout_state(made, (), half, NOW).send == 2
    # All have it, so it was sent, although its record is missing.
    there = {1: tally(succeeded=1), 2: tally(sent=False, received=1, succeeded=1)}
    assert rollout_state(made, (), there, NOW).state == "running"


@pytest.mark.parametrize(
    ("limit", "sent", "failed", "stops"),
    [
        ("0", 100, 1, True),
        ("0", 100, 0, False),
        ("3", 100, 3, False),
        ("3", 100, 4, True),
        ("5%", 100, 5, False),
        ("5%", 100, 6, True),
        ("5%", 10, 1, True),
        ("100%", 10, 10, False),
    ],
)
def test_failures_over_the_limit_stop_it(limit: str, sent: int, failed: int, stops: bool) -> None:  # noqa: FBT001
    wave = tally(failed=failed, started=sent - failed)
    found = rollout_state(plan(sent, 5, max_failures=limit), (), {1: wave}, NOW)
    assert (found.state == "stopped", found.failures) == (stops, failed)


@pytest.mark.parametrize("state", FAILURES)
def test_every_bad_end_is_a_failure(state: State) -> None:
    wave = replace(tally(), counts=Counter({str(state): 1, "queued": 1}))
    found = rollout_state(plan(2, 5), (), {1: wave}, NOW)
    assert (found.state, found.send) == ("stopped", None)


def test_who_does_not_end_in_time_has_failed() -> None:
    made = plan(4, 4, wave_limit="1h", pause="1m", max_failures="1")
    tallies = {1: replace(tally(succeeded=3, started=1), end_seen_at=None)}
    assert rollout_state(made, (), tallies, NOW + 3599).state == "running"
    found = rollout_state(made, (), tallies, NOW + 3600)
    assert (found.state, found.failures, found.until) == ("pausing", 1, NOW + 3660)
    assert found.record_end == 1
    tallies[1] = replace(tallies[1], end_seen_at=NOW + 3600)
    assert rollout_state(made, (), tallies, NOW + 3659).record_end is None
    assert rollout_state(made, (), tallies, NOW + 3660).send == 2
    two = {1: tally(succeeded=2, started=2)}
    assert rollout_state(made, (), two, NOW + 3600).state == "stopped"


def test_resumed_with_another_limit_it_goes_on() -> None:
    made, tallies = plan(2, 2), {1: tally(failed=2)}
    assert rollout_state(made, (), tallies, NOW + 99).state == "stopped"
    orders = [order("resume", max_failures="2")]
    found = rollout_state(made, orders, tallies, NOW + 99)
    assert (found.send, found.limit) == (2, "2")
    assert rollout_state(made, [*orders, order("resume")], tallies, NOW + 99).limit == "2"


def test_paused_it_sends_nothing_until_resumed() -> None:
    made = plan(1, 2)
    orders = [order("pause", reason="lunch")]
    for tallies in ({}, {1: tally(succeeded=1)}, {1: tally(sent=False, queued=1)}):
        found = rollout_state(made, orders, tallies, NOW + 99)
        assert (found.state, found.send, found.reason) == ("paused", None, "by ada: lunch")
        assert rollout_state(made, [*orders, order("resume")], tallies, NOW + 99).send is not None


def test_a_wave_that_was_cancelled_pauses_it() -> None:
    made = plan(1, 2)
    cancelled = replace(tally(cancelled=1), cancelled_at=NOW + 20, cancelled_by="bob")
    found = rollout_state(made, (), {1: cancelled}, NOW + 99)
    assert (found.state, found.reason) == ("paused", "bob cancelled wave 1")
    assert rollout_state(made, [order("resume")], {1: cancelled}, NOW + 99).state == "paused"
    resumed = replace(cancelled, resumed=True)
    assert rollout_state(made, [order("resume")], {1: resumed}, NOW + 99).send == 2


def test_an_abort_is_for_ever_and_cancels_what_goes_on() -> None:
    made = plan(1, 2, 3)
    orders = [order("abort"), order("resume", 5, max_failures="100%")]
    tallies = {1: tally(succeeded=1), 2: tally(started=1, queued=1)}
    found = rollout_state(made, orders, tallies, NOW + 99)
    assert (found.state, found.send, found.cancel) == ("aborted", None, (2,))
    tallies[2] = replace(tallies[2], cancelled_at=NOW)
    assert not rollout_state(made, orders, tallies, NOW + 99).is_active


def test_it_is_finished_when_its_last_wave_is() -> None:
    made = plan(1, 2)
    tallies = {1: tally(succeeded=1), 2: tally(succeeded=1, started=1)}
    assert rollout_state(made, (), tallies, NOW + 99).state == "running"
    tallies[2] = tally(succeeded=2)
    assert rollout_state(made, (), tallies, NOW + 99).state == "finished"
    tallies[2] = tally(failed=2)
    found = rollout_state(made, (), tallies, NOW + 99)
    assert (found.state, found.exceeded) == ("finished", True)


def test_what_the_history_has_dropped_is_not_sent_again() -> None:
    tallies = {1: WaveTally(sent=True), 2: WaveTally(sent=True)}
    assert rollout_state(plan(1, 2), (), tallies, NOW).state == "finished"


@pytest.mark.parametrize("on_walls", [False, True])
def test_a_job_that_has_expired_is_not_sent(on_walls: bool) -> None:  # noqa: FBT001
    at = datetime.fromtimestamp(NOW, UTC) + timedelta(hours=1)
    moment = WallClock(local=at.replace(tzinfo=None)) if on_walls else at
    job = Job(command=Command(argv=("true",)), targets=(everyone,), expires_at=moment)
    made, tallies = plan(1, 2, job=job), {1: tally(succeeded=1)}
    over = NOW + (13 if on_walls else 1) * 3600
    assert rollout_state(made, (), tallies, over - 9).send == 2
    found = rollout_state(made, (), tallies, over)
    assert (found.state, found.send) == ("expired", None)


class World:
    """A fleet and drivers that may be killed at random points."""

    def __init__(self, made: Rollout, chance: random.Random) -> None:
        self.made = made
        self.chance = chance
        self.now = NOW
        self.orders: list[RolloutOrder] = []
        self.tallies: dict[int, WaveTally] = {}
        self.published: Counter[int] = Counter()

    def look(self) -> RolloutState:
        return rollout_state(self.made, self.orders, self.tallies, self.now)

    def run(self, *, killed: int | None = None) -> None:
        """Do what is to be done, or a part of it: until the driver is killed."""
        found = self.look()
        for number in found.cancel:
            wave = self.tallies[number]
            counts = Counter(wave.counts)
            counts["cancelled"] += sum(counts.pop(state, 0) for state in ("queued", "started"))
            self.tallies[number] = replace(wave, counts=counts, cancelled_at=self.now)
        if found.record_end is not None and self.chance.random() < 0.8:
            self.tallies[found.record_end] = replace(
                self.tallies[found.record_end], end_seen_at=self.now
            )
        if (number := found.send or 0) == 0:
            return
        self.judge(number)
        killed = self.chance.randrange(6) if killed is None else killed
        if killed > 0 and number not in self.tallies:
            size = len(self.made.waves[number - 1])
            self.tallies[number] = WaveTally(self.now, counts=Counter(queued=size))
        if killed > 1:
            self.published[number] += 1
        if killed > 2:
            self.tallies[number] = replace(self.tallies[number], sent=True)

    def judge(self, number: int) -> None:
        """Return whether a wave may be sent now."""
        assert not any(order.action == "abort" for order in self.orders)
        assert not self.orders or self.orders[-1].action != "pause"
        assert number not in self.tallies or not self.tallies[number].sent
        for earlier in range(1, number):
            wave = self.tallies[earlier]
            assert wave.sent or self.published[earlier]
            if number not in self.tallies:
                overdue = self.now >= (wave.begun_at or 0) + 3600
                assert overdue or not wave.counts["queued"] + wave.counts["started"]
        assert not self.look().exceeded

    def work(self) -> None:
        """Let a workstation go on, if its job has come."""
        ready = [number for number, wave in self.tallies.items() if self.published[number]]
        if not ready:
            return
        number = self.chance.choice(ready)
        counts = Counter(self.tallies[number].counts)
        if counts["queued"]:
            counts["queued"] -= 1
            counts["started"] += 1
        elif counts["started"]:
            counts["started"] -= 1
            counts[self.chance.choice(["succeeded", "succeeded", "failed"])] += 1
        self.tallies[number] = replace(self.tallies[number], counts=Counter(counts))

    def ask(self) -> None:
        action = self.chance.choice(["pause", "resume", "resume", "resume", "abort"])
        limit = self.chance.choice([None, "50%", "2"]) if action == "resume" else None
        self.orders.append(order(action, self.now - NOW, max_failures=limit))


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.sampled_from(["0", "2", "50%", "100%"]),
    st.randoms(use_true_random=False),
)
def test_no_wave_goes_out_that_may_not_and_it_comes_to_an_end(
    sizes: list[int], limit: str, chance: random.Random
) -> None:
    made = plan(*sizes, max_failures=limit, pause="1m", wave_limit="1h")
    world = World(made, chance)
    for _ in range(120):
        world.now += chance.choice([0.1, 1, 30, 600])
        kind = chance.random()
        if kind < 0.5:
            world.work()
        elif kind < 0.97:
            world.run()
        else:
            world.ask()
    if world.look().state != "aborted":
        world.orders.append(order("resume", world.now - NOW + 1, max_failures="100%"))
    for _ in range(400):
        world.now += 60
        world.work()
        world.run(killed=5)
    assert world.look().state in {"finished", "aborted"}
    if world.look().state == "finished":
        assert set(world.published) == set(range(1, len(sizes) + 1))
