"""All that touches RabbitMQ: the topology, the connection, and the administrator's side."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broker.connection import BrokerError, LoginRefused, Refused, Unreachable, Unroutable
    from broker.dispatching.batch import Sent
    from broker.dispatching.dispatcher import Dispatcher
    from broker.dispatching.following import UnknownJob
    from broker.dispatching.progress import Progress
    from broker.dispatching.sync import SyncDispatcher, send, send_and_wait
    from broker.files.job_file import WrongJobFile, read_jobs
    from broker.history.history import History
    from broker.history.tables import HistoryError
    from broker.sealing import CannotSeal, seal
    from broker.settings import DispatcherSettings, HistorySettings

_HOMES = {
    "broker.dispatching.batch": ("Sent",),
    "broker.connection": ("BrokerError", "LoginRefused", "Refused", "Unreachable", "Unroutable"),
    "broker.dispatching.dispatcher": ("Dispatcher",),
    "broker.dispatching.following": ("UnknownJob",),
    "broker.files.job_file": ("WrongJobFile", "read_jobs"),
    "broker.dispatching.progress": ("Progress",),
    "broker.history.history": ("History",),
    "broker.history.tables": ("HistoryError",),
    "broker.sealing": ("CannotSeal", "seal"),
    "broker.settings": ("DispatcherSettings", "HistorySettings"),
    "broker.dispatching.sync": ("SyncDispatcher", "send", "send_and_wait"),
}

__all__ = [
    "BrokerError",
    "CannotSeal",
    "Dispatcher",
    "DispatcherSettings",
    "History",
    "HistoryError",
    "HistorySettings",
    "LoginRefused",
    "Progress",
    "Refused",
    "Sent",
    "SyncDispatcher",
    "UnknownJob",
    "Unreachable",
    "Unroutable",
    "WrongJobFile",
    "read_jobs",
    "seal",
    "send",
    "send_and_wait",
]


def __getattr__(name: str) -> Any:
    # On demand: agents import this package for its topology, and do not pay for the rest.
    from importlib import import_module

    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
