"""Calls for scripts, where they do more than the commands that use them."""

import time
from pathlib import Path

import pytest
from sqlalchemy import update

from broker import (
    Dispatcher,
    DoctorSettings,
    HistoryError,
    HistorySettings,
    RolloutError,
    RolloutState,
    UnknownRollout,
    Unroutable,
    abort_rollout,
    apply_topology,
    bound_workstations,
    diagnose,
    history_status,
    pause_rollout,
    plan_rollout,
    rebuild_history,
    resume_rollout,
    start_rollout,
)
from broker.history.engine import open_history
from broker.history.position import transact
from broker.history.schema import reading
from broker.history.source import Source, record_source
from tests.support.programs import NOWHERE
from tests.support.workstation import Workstation


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the environment name another broker than the dispatcher's, and the history."""
    monkeypatch.setenv("PCM_AMQP_URL", NOWHERE)
    monkeypatch.setenv("PCM_HISTORY_URL", f"sqlite:///{tmp_path}/history.db")


async def test_a_rollout_is_driven_at_the_dispatchers_own_broker(
    dispatcher: Dispatcher, ws: Workstation
) -> None:
    ws.start("service")
    plan = plan_rollout(ws.job("false", background=True), [ws.name], "100%")
    seen: list[RolloutState] = []
    state = await start_rollout(dispatcher, plan, seen.append)
    assert (state.state, state.failures, seen[-1]) == ("finished", 1, state)
    assert await resume_rollout(dispatcher, plan.id) == state
    with pytest.raises(RolloutError, match="finished already"):
        await pause_rollout(dispatcher, plan.id)


async def test_a_rollout_is_paused_resumed_and_aborted_by_its_id(
    dispatcher: Dispatcher, ws: Workstation
) -> None:
    ws.start("service")
    job = ws.job("true", background=True)
    plan = plan_rollout(job, [ws.name, "another"], "1,100%", max_failures="100%")
    await dispatcher.record(plan)
    await pause_rollout(dispatcher, plan.id, "lunch")
    with pytest.raises(UnknownRollout):
        await pause_rollout(dispatcher, "no-such-rollout")
    state = await abort_rollout(dispatcher, plan.id[:-1], "not today")
    assert (state.state, state.wave) == ("aborted", 0)
    with pytest.raises(RolloutError, match="nothing to resume"):
        await resume_rollout(dispatcher, plan.id)


async def test_settings_that_are_given_count(
    dispatcher: Dispatcher, ws: Workstation, tmp_path: Path
) -> None:
    other = HistorySettings(history_url=f"sqlite:///{tmp_path}/other.db")
    settings = other.model_copy(update={"amqp_url": dispatcher.settings.amqp_url})
    ws.start("service")
    plan = plan_rollout(ws.job("true", background=True), [ws.name], "1")
    state = await start_rollout(dispatcher, plan, settings=settings)
    assert state.counts == {"succeeded": 1}
    assert (tmp_path / "other.db").exists()
    assert not (tmp_path / "history.db").exists()


async def test_a_rollout_is_refused_with_the_history_of_another_broker(
    dispatcher: Dispatcher, ws: Workstation, tmp_path: Path
) -> None:
    """Also with a collector; nothing is recorded at this broker."""
    engine = open_history(f"sqlite:///{tmp_path}/history.db")
    transact(engine, record_source, Source("rabbit@there", "/"))
    with engine.begin() as connection:
        connection.execute(update(reading).values(collector="there", collected_at=time.time()))
    engine.dispose()
    plan = plan_rollout(ws.job("true", background=True), [ws.name], "1")
    for refused in (start_rollout(dispatcher, plan), abort_rollout(dispatcher, plan.id)):
        with pytest.raises(HistoryError, match="was read from virtual host / of rabbit@there"):
            await refused
    own = HistorySettings(
        history_url=f"sqlite:///{tmp_path}/own.db", amqp_url=dispatcher.settings.amqp_url
    )
    with pytest.raises(UnknownRollout):  # nothing was recorded
        await pause_rollout(dispatcher, plan.id, settings=own)


async def test_workstations_without_a_queue_are_distinguished(
    dispatcher: Dispatcher, ws: Workstation
) -> None:
    ws.start("service")
    job = ws.job("true", background=True)
    found = await bound_workstations(dispatcher, job, ["nowhere", ws.name])
    assert found == ([ws.name], ["nowhere"])
    with pytest.raises(Unroutable, match="no workstation is bound to workstation:nowhere"):
        await bound_workstations(dispatcher, job, ["nowhere"])


async def test_findings_and_topology_are_available_in_a_running_loop(
    dispatcher: Dispatcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PCM_AMQP_URL", dispatcher.settings.amqp_url[0])
    await apply_topology()
    await apply_topology(dispatcher.settings)
    findings = diagnose(DoctorSettings(state_dir=tmp_path))
    assert all(finding.text and finding.remedy for finding in findings)
    status = await rebuild_history()
    assert (status.gaps, history_status()) == ([], status)
