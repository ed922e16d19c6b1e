"""Importing our packages leaves the importing program as it was."""

import subprocess
import sys

_SCRIPT = """
import asyncio, gc, importlib, logging, pkgutil, sys
import aiormq, aiormq.connection, aio_pika, pamqp.commands, pamqp.decode, pamqp.frame, structlog

def attributes(*owners):
    return {(owner, name): id(value) for owner in owners for name, value in vars(owner).items()
            if not name.startswith("__") and not name.startswith("_abc")}

def state():
    root = logging.getLogger()
    structlog_config = structlog.get_config()
    return {
        "libraries": attributes(
            aiormq, aiormq.Connection, aiormq.connection, aiormq.connection.FrameReceiver,
            aio_pika, aio_pika.Connection, pamqp.commands.Basic.Deliver,
            pamqp.commands.Basic.Properties, pamqp.frame, asyncio.Timeout, asyncio.TaskGroup,
        ),
        "decoders": dict(pamqp.decode.METHODS) | dict(pamqp.decode.TABLE_MAPPING),
        "logging": (root.level, list(root.handlers), {
            name: (logger.level, list(logger.handlers), logger.disabled)
            for name, logger in logging.Logger.manager.loggerDict.items()
            if isinstance(logger, logging.Logger) and name.partition(".")[0] in LOGGERS
        }),
        "structlog": (structlog.is_configured(), {**structlog_config}),
        "gc": (gc.get_threshold(), gc.isenabled(), gc.get_freeze_count()),
        "missing": sorted(name for name, module in sys.modules.items() if module is None),
        "hooks": (sys.excepthook, sys.unraisablehook, asyncio.get_event_loop_policy.__module__),
    }

LOGGERS = {"aiormq", "aio_pika", "asyncio", "pamqp"}
before = state()
import broker, schemas, agents
for package in (broker, schemas):
    for name in package.__all__:
        getattr(package, name)
for package in (schemas, broker, agents):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
after = state()
for what, was in before.items():
    assert after[what] == was, what
"""


def test_no_import_changes_the_importing_process() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _SCRIPT], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
