"""What is logged within a test."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from broker import log


@contextmanager
def capture_logs() -> Iterator[list[dict[str, Any]]]:
    """Yield the events that are logged meanwhile, which go nowhere else."""
    told: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            log,
            "tell",
            lambda level, event, facts: told.append({"log_level": level, "event": event, **facts}),
        )
        yield told
