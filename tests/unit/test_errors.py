"""All our errors have one base class."""

import importlib
import pkgutil

import agents
import broker
import schemas
from schemas import PcmError


def test_each_error_of_ours_is_a_pcm_error() -> None:
    found = set()
    for package in (schemas, broker, agents):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and issubclass(value, BaseException):
                    found.add(value)
    ours = {
        error for error in found if error.__module__.startswith(("schemas", "broker", "agents"))
    }
    assert {"InvalidMessage", "BrokerError", "StateError"} <= {error.__name__ for error in ours}
    assert {error for error in ours if not issubclass(error, PcmError)} == set()
