"""A workstation that gets another name: the jobs of its former one end as what they are."""

from pathlib import Path

import pytest

from broker import Dispatcher
from broker.amqp.topology import AgentKind, queue_name
from schemas import State, group
from tests.support.processes import with_argument
from tests.support.waiting import Gate
from tests.support.workstation import Workstation, final, follow


@pytest.mark.full
async def test_the_jobs_of_a_former_name_end_under_it(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    """One that was for the name alone is not run; others are; one that ran was interrupted."""
    lab = group(f"lab-{ws.name}")
    gate = Gate(tmp_path / "go")
    former = ws.start("service", groups=str(lab.name), concurrency="1")
    begun = await dispatcher.dispatch(ws.job("sh", "-c", gate.script, background=True))
    former.wait_for("job.started")
    touch = ws.job("touch", str(tmp_path / "for the name"), background=True)
    await dispatcher.dispatch(touch)
    both = ws.job("touch", str(tmp_path / "for the group"), background=True)
    both = await dispatcher.dispatch(both.model_copy(update={"targets": (lab,)}))
    former.wait_for("job.received", 3)
    former.end(9)
    name = f"{ws.name}-new"
    renamed = ws.start("service", workstation=name, groups=str(lab.name))
    (event,) = renamed.events("workstation.renamed")
    assert (event["former"], event["workstation"]) == (ws.name, name)
    assert event["queue"] == queue_name(AgentKind.SERVICE, ws.name)
    assert f"pcm forget {ws.name}" in event["reason"]
    for job, state in (
        (begun, State.INTERRUPTED),
        (touch, State.NOT_APPLICABLE),
        (both, State.SUCCEEDED),
    ):
        ending = final(await follow(dispatcher, job))
        assert (ending.workstation, ending.state) == (ws.name, state)
    assert not with_argument(gate.script)  # it was ended
    assert (tmp_path / "for the group").exists()
    assert not (tmp_path / "for the name").exists()
    shown = ws.run("pcm", "workstations", name).stdout
    assert f"{name}: was named {ws.name}; pcm forget {ws.name} deletes" in shown
    assert renamed.end() == 0
    again = ws.start("service", workstation=name)
    assert not again.events("workstation.renamed")
    assert ws.run("pcm", "forget", "--yes", ws.name).returncode == 0
    assert "was named" not in ws.run("pcm", "workstations", name).stdout
