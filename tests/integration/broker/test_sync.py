"""The dispatcher for scripts that are not async: the same, and it leaves nothing behind."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from broker import (
    DispatcherSettings,
    LoginRefused,
    Progress,
    SyncDispatcher,
    UnknownJob,
    Unreachable,
    Unroutable,
)
from schemas import Command, Job, State, workstation
from tests.support.proxy import Proxy
from tests.support.rabbitmq import Broker
from tests.support.waiting import LIMIT
from tests.support.workstation import Workstation


@pytest.fixture
def dispatcher(settings: DispatcherSettings) -> Iterator[SyncDispatcher]:
    """A dispatcher that is open."""
    with SyncDispatcher(settings) as opened:
        yield opened
    assert not threads()


def threads() -> list[threading.Thread]:
    """Return the threads of dispatchers."""
    return [thread for thread in threading.enumerate() if thread.name == "pcm dispatcher"]


def nowhere() -> Job:
    return Job(command=Command(argv=("true",)), targets=(workstation("nowhere"),))


def test_all_that_the_async_one_does(dispatcher: SyncDispatcher, ws: Workstation) -> None:
    ws.start("service")
    job = dispatcher.dispatch(ws.job("echo", "hello", background=True))
    progress = Progress(job.id)
    states = [report.state for report in dispatcher.follow(job.id, progress)]
    assert states == [State.RECEIVED, State.STARTED, State.SUCCEEDED]
    assert progress.succeeded
    waited = dispatcher.wait(job.id)
    assert str(waited.workstations[ws.name].result.stdout) == "hello\n"  # type: ignore[union-attr]
    long = dispatcher.dispatch(ws.job("sleep", "600", background=True))
    assert not dispatcher.wait(long.id, limit=0.5).ended
    dispatcher.cancel(long.id, "enough")
    assert dispatcher.wait(long.id).workstations[ws.name].state is State.CANCELLED
    jobs = [ws.job("true", background=True) for _ in range(20)]
    assert list(dispatcher.dispatch_all(iter(jobs), in_flight=5)) == [(job, None) for job in jobs]
    assert all(dispatcher.wait(job.id).succeeded for job in jobs[-2:])


def test_errors_are_the_same(dispatcher: SyncDispatcher, ws: Workstation) -> None:
    ws.start("service")
    with pytest.raises(Unroutable, match="workstation:nowhere"):
        dispatcher.dispatch(nowhere())
    with pytest.raises(UnknownJob):
        dispatcher.cancel("no-such-job")
    with pytest.raises(UnknownJob):
        next(dispatcher.follow("no-such-job"))
    with pytest.raises(UnknownJob):
        dispatcher.wait("no-such-job")
    with pytest.raises(ValueError, match="in_flight"):
        next(dispatcher.dispatch_all([], in_flight=0))
    good = ws.job("true", background=True)
    (first, none), (_, error) = dispatcher.dispatch_all([good, nowhere()])
    assert (first, none) == (good, None)
    assert isinstance(error, Unroutable)


def test_a_broker_that_is_not_there_is_reported_and_leaves_no_thread(node: Broker) -> None:
    away = DispatcherSettings(amqp_url=("amqp://127.0.0.1:1/",), patience=timedelta(seconds=0.5))
    notices: list[str] = []
    with pytest.raises(Unreachable), SyncDispatcher(away, notices.append):
        pass
    assert len(notices) == 1
    wrong = DispatcherSettings(amqp_url=(node.url.replace("guest:guest", "guest:wrong"),))
    with pytest.raises(LoginRefused), SyncDispatcher(wrong):
        pass
    assert not threads()


def test_each_of_many_is_reported_before_the_next_is_there(
    dispatcher: SyncDispatcher, ws: Workstation
) -> None:
    service = ws.start("service")
    notices = threading.Event()

    def slow() -> Iterator[Job]:
        yield ws.job("true", background=True)
        service.wait_for("job.ended")  # so it is stored
        yield ws.job("true", background=True)
        assert notices.is_set()

    for _, error in dispatcher.dispatch_all(slow()):
        assert error is None
        notices.set()


def test_many_that_end_in_an_error_or_early_leave_nothing_behind(
    dispatcher: SyncDispatcher, ws: Workstation
) -> None:
    ws.start("service")

    def broken() -> Iterator[Job]:
        yield ws.job("true", background=True)
        raise OSError("no more of the list can be read")

    with pytest.raises(OSError, match="no more of the list"):
        list(dispatcher.dispatch_all(broken()))
    endless = (ws.job("true", background=True) for _ in itertools.count())
    for number, (_, error) in enumerate(dispatcher.dispatch_all(endless, in_flight=7)):
        assert error is None
        if number == 100:
            break
    job = dispatcher.dispatch(ws.job("true", background=True))
    assert dispatcher.wait(job.id, LIMIT).succeeded


def test_who_sends_many_is_reported_that_the_broker_is_lost_or_that_it_is_closed(
    settings: DispatcherSettings, node: Broker
) -> None:
    endless = (nowhere() for _ in itertools.count())
    with Proxy(node.port) as proxy:
        away = {"amqp_url": (proxy.by(node.url),), "patience": timedelta(seconds=0.5)}
        with SyncDispatcher(settings.model_copy(update=away)) as dispatcher:
            sent = dispatcher.dispatch_all(endless)
            assert isinstance(next(sent).error, Unroutable)
            proxy.close()
            with pytest.raises(Unreachable):
                _ = list(sent)
    with SyncDispatcher(settings) as dispatcher:
        sent = dispatcher.dispatch_all(endless)
        assert isinstance(next(sent).error, Unroutable)
    with pytest.raises(RuntimeError, match=r"closed during the call|not open"):
        _ = list(sent)
    assert not threads()


def test_it_is_of_use_only_inside_with(settings: DispatcherSettings) -> None:
    dispatcher = SyncDispatcher(settings)
    for when in ("before", "after"):
        for use in (
            lambda: dispatcher.dispatch(nowhere()),
            lambda: list(dispatcher.dispatch_all([nowhere()])),
            lambda: list(dispatcher.follow("x")),
            lambda: dispatcher.wait("x"),
            lambda: dispatcher.cancel("x"),
        ):
            with pytest.raises(RuntimeError, match="not open: use it inside"):
                use()
        if when == "before":
            with dispatcher:
                pass
    with pytest.raises(RuntimeError, match="only once"), dispatcher:
        pass
    assert not threads()


def test_several_threads_use_one(dispatcher: SyncDispatcher, ws: Workstation) -> None:
    ws.start("service")
    jobs = [ws.job("true", background=True) for _ in range(40)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(dispatcher.dispatch, jobs)) == jobs
        ended = pool.map(dispatcher.wait, [job.id for job in jobs[:8]])
    assert all(progress.succeeded for progress in ended)


async def test_it_works_where_a_loop_runs_already(settings: DispatcherSettings) -> None:
    assert asyncio.get_running_loop()
    with SyncDispatcher(settings) as dispatcher, pytest.raises(UnknownJob):
        dispatcher.wait("no-such-job")


def test_who_still_waits_when_it_is_closed_is_reported(
    settings: DispatcherSettings, ws: Workstation
) -> None:
    ws.start("service")
    with ThreadPoolExecutor(2) as pool:
        with SyncDispatcher(settings) as dispatcher:
            job = dispatcher.dispatch(ws.job("sleep", "600", background=True))
            reports = dispatcher.follow(job.id)
            assert next(reports).state is State.RECEIVED
            waiting = pool.submit(dispatcher.wait, job.id)
            assert next(reports).state is State.STARTED
        with pytest.raises(RuntimeError, match="closed during the call"):
            waiting.result(LIMIT)
        with pytest.raises(RuntimeError, match="not open"):
            next(reports)
    assert not threads()


def test_a_forgotten_iterator_keeps_nothing(dispatcher: SyncDispatcher, ws: Workstation) -> None:
    ws.start("service")
    job = dispatcher.dispatch(ws.job("sleep", "600", background=True))
    for report in dispatcher.follow(job.id):
        assert report.state is State.RECEIVED
        break
    dispatcher.cancel(job.id)
    assert dispatcher.wait(job.id).ended


def test_it_survives_a_lost_connection(
    settings: DispatcherSettings, node: Broker, ws: Workstation
) -> None:
    ws.start("service")
    with Proxy(node.port) as proxy:
        by_proxy = settings.model_copy(update={"amqp_url": (proxy.by(node.url),)})
        with SyncDispatcher(by_proxy) as dispatcher:
            jobs = [ws.job("true", background=True) for _ in range(50)]
            proxy.cut_after(10_000)
            assert [job for job, _ in dispatcher.dispatch_all(jobs)] == jobs
            assert proxy.cuts == 1
            assert dispatcher.wait(jobs[-1].id).succeeded


SCRIPT = """
import sys
from broker import SyncDispatcher
from schemas import Command
from schemas import Job
from schemas import workstation

job = Job(
    command=Command(argv=("sleep", "600"), background=True), targets=(workstation(sys.argv[1]),)
)
with SyncDispatcher() as dispatcher:
    dispatcher.dispatch(job)
    for report in dispatcher.follow(job.id):
        print(report.state, flush=True)
        if report.state == "started" and sys.argv[2] == "exit":
            sys.exit(5)
"""


@pytest.mark.full
@pytest.mark.parametrize(("how", "status"), [("exit", 5), ("ctrl-c", -signal.SIGINT)])
def test_ctrl_c_and_exit_leave_nothing(
    ws: Workstation, node: Broker, how: str, status: int
) -> None:
    ws.start("service")
    user = f"script-{how}-{os.getpid()}"
    node.add_user(user, "secret")
    url = node.url.replace("guest:guest", f"{user}:secret")
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, ws.name, how],
        env={**os.environ, "PCM_AMQP_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as script:
        assert script.stdout is not None
        assert [script.stdout.readline() for _ in range(2)] == ["received\n", "started\n"]
        if how == "ctrl-c":
            script.send_signal(signal.SIGINT)
        _, errors = script.communicate(timeout=LIMIT)
    assert script.returncode == status
    assert errors.count("Traceback") == (how == "ctrl-c")
    deadline = time.monotonic() + LIMIT
    while user in node.ctl("list_connections", "user"):
        assert time.monotonic() < deadline
