"""What users do in the window, and what happens to it meanwhile; the agent is a stand-in."""

from pathlib import Path

from agents.window.dialogs import OfferDialog
from tests.support import scenes
from tests.support.looking import Clock, looking
from tests.support.standin import NOW, StandIn, ended, offer, running, snapshot


def _of(*offers: dict[str, object]) -> StandIn:
    agent = StandIn()
    agent.snapshot = snapshot(offers=list(offers))
    return agent


async def test_an_open_dialog_says_that_its_job_runs_and_closes(tmp_path: Path) -> None:
    agent = _of(offer("a", "Update", deadline=NOW + 300))
    async with agent.serving(tmp_path), looking(tmp_path, clock=Clock()) as window:
        await window.until("Update")
        await window.press("p")
        await window.until("Postpone it for")
        agent.show(offers=[], running=[running("a", "Update")])
        await window.until("The job is running now.")
        await window.until(lambda: not isinstance(window.app.screen, OfferDialog))
        assert agent.asked == []


async def test_an_open_dialog_says_how_its_job_ended_and_any_key_closes_it(tmp_path: Path) -> None:
    agent = _of(offer("a", "Survey"))
    async with agent.serving(tmp_path), looking(tmp_path, clock=Clock()) as window:
        await window.until("Survey")
        await window.press("x")
        await window.until("Why do you decline it?")
        agent.show(offers=[], history=[ended("a", "Survey", state="expired", duration=None)])
        await window.until("The job has ended: \N{EN DASH} expired, not run")
        await window.press("space")
        assert not isinstance(window.app.screen, OfferDialog)


async def test_an_open_dialog_of_a_withdrawn_job_closes(tmp_path: Path) -> None:
    agent = _of(offer("a", "Survey"))
    async with agent.serving(tmp_path), looking(tmp_path, clock=Clock()) as window:
        await window.until("Survey")
        await window.press("d")
        await window.until("(no comment)")
        agent.show(offers=[])
        await window.until("The job is no longer offered")


async def test_the_choices_shrink_as_the_time_comes(tmp_path: Path) -> None:
    clock = Clock()
    agent = _of(offer("a", "Update", deadline=NOW + 4000))
    async with agent.serving(tmp_path), looking(tmp_path, clock=clock) as window:
        await window.until("Update")
        await window.press("p")
        assert "1 hour, until" in await window.until("30 minutes, until")
        clock.now = NOW + 3000
        shown = await window.until(lambda: "30 minutes" not in window.text)
        assert "15 minutes, until" in shown
        assert "1 hour" not in shown
        assert "as long as possible" in shown


async def test_a_postponement_is_chosen_or_written(tmp_path: Path) -> None:
    agent = _of(offer("a", "Update", deadline=NOW + 4000))
    async with agent.serving(tmp_path), looking(tmp_path, clock=Clock()) as window:
        await window.until("Update")
        await window.press("p")
        await window.press("down", "enter")
        await window.until(lambda: agent.asked)
        await window.press("p")
        await window.press("tab", *"2h", "enter")
        await window.until("It must not be after")
        await window.press("backspace", "backspace", *"45m", "enter")
        await window.until(lambda: len(agent.asked) == 2)
    assert [asked["do"] for asked in agent.asked] == ["postpone", "postpone"]
    assert agent.asked[1] == {"do": "postpone", "job": "a", "until": "2026-11-18T11:51:40+00:00"}


async def test_what_the_agent_does_not_do_is_said_quietly(tmp_path: Path) -> None:
    agent = _of(offer("a", "Update"))
    agent.reply = {"error": "Update: runs already\x1b[2J"}
    async with agent.serving(tmp_path), looking(tmp_path, clock=Clock()) as window:
        await window.until("Update")
        await window.press("r")
        await window.until("Update: runs already\u241b[2J")


async def test_a_countdown_under_a_minute_rings_once_and_is_first(tmp_path: Path) -> None:
    clock = Clock()
    soon = offer("a", "Soon", deadline=NOW + 90, state="postponed", until=NOW + 80)
    agent = _of(offer("b", "Later", deadline=NOW + 3600), soon)
    async with agent.serving(tmp_path), looking(tmp_path, clock=clock) as window:
        shown = await window.until("1 min 30 s")
        assert shown.index("Later") < shown.index("Soon")
        assert window.app.rings == 0
        clock.now += 31
        shown = await window.until("▶ Soon")
        assert shown.index("Soon") < shown.index("Later")
        clock.now += 1
        await window.until("58 s")
        assert window.app.rings == 1


async def test_an_offer_that_is_shown_again_rings(tmp_path: Path) -> None:
    agent = _of(offer("a", "Survey"))
    async with agent.serving(tmp_path), looking(tmp_path, clock=Clock()) as window:
        await window.until("Survey")
        await window.press("m")
        await window.press("enter")
        await window.until("You will be reminded at")
        assert agent.asked == [{"do": "remind", "job": "a", "after": 1800.0}]
        agent.show(offers=[offer("a", "Survey", shown_at=NOW)])
        await window.until(lambda: window.app.rings == 1)
        assert "You will be reminded" not in window.text


async def test_names_comments_and_output_are_nothing_but_text(tmp_path: Path) -> None:
    agent = _of(
        offer(
            "a",
            "[bold]Evil[/] \x1b[31m\u202eeman",
            comment="[link=http://x]y[/link]\x07\nnext",
            sender="[red]who",
            command="sh -c 'printf \"\\e[2J\"' [/]",
        )
    )
    agent.snapshot["running"] = [running("b", "[blink]x[/]")]
    agent.output = {"b": [{"stream": "stdout", "text": "[red]not red[/] \x1b]0;title\x07end\n"}]}
    async with agent.serving(tmp_path), looking(tmp_path, (140, 40), Clock()) as window:
        shown = await window.until("[bold]Evil[/] \u241b[31m\ufffdeman")
        assert "[link=http://x]y[/link]\u2407\u240anext" in shown
        assert "[red]who" in shown
        await window.press("d")
        assert "[/]" in await window.until("sh -c")
        await window.press("escape", "2")
        assert "[blink]x[/]" in await window.until("[red]not red[/] end")
        assert "\x1b" not in window.text


async def test_quiet_states_are_said_in_a_line_below(tmp_path: Path) -> None:
    agent = StandIn()
    async with looking(tmp_path, (140, 40), Clock()) as window:
        await window.until("The agent is not running.")
        async with agent.serving(tmp_path):
            await window.until("No offers.")
            assert "agent is not running" not in window.text
            pause = {"by": "eve@admin", "reason": "exam", "since": NOW}
            agent.show(broker="unreachable", service="absent", paused=pause)
            shown = await window.until("No connection to the server since")
            assert "Paused by eve@admin since" in shown
            assert "exam" in shown
            assert "The service agent of this computer is not running." in shown
        await window.until("The agent is not running.")


async def test_the_search_finds_what_was_run(tmp_path: Path) -> None:
    agent = StandIn()
    agent.snapshot = scenes.busy()
    async with agent.serving(tmp_path), looking(tmp_path, clock=Clock()) as window:
        await window.until("Office update")
        await window.press("3", "slash", *"mallory 2")
        await window.until(lambda: "Kernel modules" not in window.text)
        assert "Scanner driver" in window.text
        await window.press(*" nothing")
        await window.until("No job matches.")


async def test_closing_asks_before_it_ends_what_runs(tmp_path: Path) -> None:
    agent = StandIn()
    agent.snapshot = scenes.busy()
    async with agent.serving(tmp_path), looking(tmp_path, clock=Clock(), owner=True) as window:
        await window.until("Office update")
        await window.press("q")
        await window.until("Running commands are stopped when you close this window.")
        await window.press("escape")
        assert window.app.is_running
        await window.press("q", "enter")
        await window.until(lambda: not window.app.is_running)


async def test_stop_asks_first(tmp_path: Path) -> None:
    agent = StandIn()
    agent.snapshot = scenes.busy()
    async with agent.serving(tmp_path), looking(tmp_path, clock=Clock()) as window:
        await window.until("Office update")
        await window.press("2")
        await window.click("#do-stop")
        await window.until("Stop it?")
        assert agent.asked == []
        await window.click("#yes")
        await window.until(lambda: agent.asked)
    assert agent.asked == [{"do": "stop", "job": scenes.RUNNING[0]["job"]}]


async def test_help_names_the_keys(tmp_path: Path) -> None:
    async with StandIn().serving(tmp_path), looking(tmp_path, clock=Clock()) as window:
        await window.press("question_mark")
        await window.until("decline an optional job, with a reason")
        await window.press("escape")
        await window.until("No offers.")


async def test_the_tab_of_a_started_job_stays_when_the_focus_leaves_a_button(
    tmp_path: Path,
) -> None:
    """Textual focuses the button beside one that disappears, on a busy machine late."""
    agent = _of(offer("a", "Update"))
    async with agent.serving(tmp_path), looking(tmp_path, clock=Clock()) as window:
        await window.until("Update")
        await window.click("#do-run_now")
        await window.until(lambda: agent.asked)
        agent.show(offers=[], running=[running("a", "Update")])
        await window.until("No output yet.")
        window.app.screen.set_focus(window.app.offers.query_one("#do-details"))
        await window.pilot.pause()
        assert "No output yet." in await window.steady()
