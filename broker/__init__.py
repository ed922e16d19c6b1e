"""All that touches RabbitMQ: the topology, the connection, and the administrator's side."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broker.connection import BrokerError, LoginRefused, Refused, Unreachable, Unroutable
    from broker.dispatcher import Dispatcher, UnknownJob, send, send_and_wait
    from broker.progress import Progress
    from broker.settings import DispatcherSettings

_HOMES = {
    "broker.connection": ("BrokerError", "LoginRefused", "Refused", "Unreachable", "Unroutable"),
    "broker.dispatcher": ("Dispatcher", "UnknownJob", "send", "send_and_wait"),
    "broker.progress": ("Progress",),
    "broker.settings": ("DispatcherSettings",),
}

__all__ = [
    "BrokerError",
    "Dispatcher",
    "DispatcherSettings",
    "LoginRefused",
    "Progress",
    "Refused",
    "UnknownJob",
    "Unreachable",
    "Unroutable",
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
