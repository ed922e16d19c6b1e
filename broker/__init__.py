"""All that touches RabbitMQ: the topology, the connection, and the administrator's side."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.amqp.connection import (
        Blocked,
        BrokerError,
        LoginRefused,
        Refused,
        Unreachable,
        Unroutable,
    )
    from broker.client.batch import Sent
    from broker.client.dispatcher import Dispatcher
    from broker.client.follow import UnknownJob
    from broker.client.progress import Progress
    from broker.client.sync import SyncDispatcher, send, send_and_wait
    from broker.history.history import History
    from broker.history.schema import HistoryError
    from broker.jobs.job_file import WrongJobFile, read_jobs
    from broker.settings import (
        BrokerSettings,
        DispatcherSettings,
        HistorySettings,
        ManagementSettings,
        WrongSetting,
    )
    from broker.signing.sealing import CannotSeal, seal
    from schemas.errors import PcmError

_HOMES = {
    "broker.amqp.connection": (
        "Blocked",
        "BrokerError",
        "LoginRefused",
        "Refused",
        "Unreachable",
        "Unroutable",
    ),
    "broker.client.batch": ("Sent",),
    "broker.client.dispatcher": ("Dispatcher",),
    "broker.client.follow": ("UnknownJob",),
    "broker.client.progress": ("Progress",),
    "broker.client.sync": ("SyncDispatcher", "send", "send_and_wait"),
    "broker.history.history": ("History",),
    "broker.history.schema": ("HistoryError",),
    "broker.jobs.job_file": ("WrongJobFile", "read_jobs"),
    "broker.settings": (
        "BrokerSettings",
        "DispatcherSettings",
        "HistorySettings",
        "ManagementSettings",
        "WrongSetting",
    ),
    "broker.signing.sealing": ("CannotSeal", "seal"),
    "schemas.errors": ("PcmError",),
}

__all__ = [
    "Blocked",
    "BrokerError",
    "BrokerSettings",
    "CannotSeal",
    "Dispatcher",
    "DispatcherSettings",
    "History",
    "HistoryError",
    "HistorySettings",
    "LoginRefused",
    "ManagementSettings",
    "PcmError",
    "Progress",
    "Refused",
    "Sent",
    "SyncDispatcher",
    "UnknownJob",
    "Unreachable",
    "Unroutable",
    "WrongJobFile",
    "WrongSetting",
    "read_jobs",
    "seal",
    "send",
    "send_and_wait",
]


if not TYPE_CHECKING:  # else a name that is not there would be one of any type

    def __getattr__(name: str) -> object:
        # On demand: agents import this package for its topology, and do not pay for the rest.
        from importlib import import_module

        for home, names in _HOMES.items():
            if name in names:
                found = globals()[name] = getattr(import_module(home), name)
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
