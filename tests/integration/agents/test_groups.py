"""A job is run only by workstations that its targets include, by their current settings."""

import shutil

import pytest

from broker import Dispatcher
from broker.amqp.connection import Unroutable
from schemas import State, group
from tests.support.workstation import Workstation, final, follow


@pytest.mark.parametrize("ledger", ["new", "kept"])
async def test_nothing_runs_for_a_group_that_was_left(
    ws: Workstation, dispatcher: Dispatcher, ledger: str
) -> None:
    """Also with a new ledger, which has no record of the former bindings."""
    lab = group(f"lab-{ws.name}")
    former = ws.start("service", groups=str(lab.name))
    late = ws.job("touch", str(ws.folder / "ran"), background=True)
    if ledger == "new":
        assert former.end() == 0
        shutil.rmtree(ws.state_dir)
    else:  # it received the job before it left
        former.end(9)
    late = late.model_copy(update={"targets": (lab,)})
    await dispatcher.dispatch(late)
    service = ws.start("service", groups="")
    ending = final(await follow(dispatcher, late))
    assert ending.state is State.NOT_APPLICABLE
    assert ending.reason == f"is for {lab}, and not for this workstation"
    if ledger == "new":
        service.wait_for("bindings.removed")
    with pytest.raises(Unroutable):
        await dispatcher.dispatch(late.model_copy(update={"id": f"{late.id}-2"}))
    assert not (ws.folder / "ran").exists()
