"""All that touches RabbitMQ: the topology, the connection, and the administrator's side."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broker.amqp.connection import BrokerError, LoginRefused, Refused, Unreachable, Unroutable
    from broker.client.batch import Sent
    from broker.client.dispatcher import Dispatcher
    from broker.client.follow import UnknownJob
    from broker.client.progress import Progress
    from broker.client.sync import SyncDispatcher, send, send_and_wait
    from broker.history.history import History
    from broker.history.schema import HistoryError
    from broker.jobs.job_file import WrongJobFile, read_jobs
    from broker.settings import DispatcherSettings, HistorySettings
    from broker.signing.sealing import CannotSeal, seal

_HOMES = {
    "broker.client.batch": ("Sent",),
    "broker.amqp.connection": (
        "BrokerError",
        "LoginRefused",
        "Refused",
        "Unreachable",
        "Unroutable",
    ),
    "broker.client.dispatcher": ("Dispatcher",),
    "broker.client.follow": ("UnknownJob",),
    "broker.jobs.job_file": ("WrongJobFile", "read_jobs"),
    "broker.client.progress": ("Progress",),
    "broker.history.history": ("History",),
    "broker.history.schema": ("HistoryError",),
    "broker.signing.sealing": ("CannotSeal", "seal"),
    "broker.settings": ("DispatcherSettings", "HistorySettings"),
    "broker.client.sync": ("SyncDispatcher", "send", "send_and_wait"),
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
