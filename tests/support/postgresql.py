"""A PostgreSQL for the tests of the history, if there is one: each gets a schema of its own."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

_LOCAL = "postgresql://postgres@127.0.0.1:5432/test"


def server() -> str:
    """Return the URL of the server that a variable names, or of one on this machine."""
    if given := os.environ.get("PCM_TEST_POSTGRESQL_URL"):
        return given
    try:
        with psycopg.connect(_LOCAL, connect_timeout=3):
            return _LOCAL
    except psycopg.OperationalError:
        pytest.skip("no PostgreSQL: PCM_TEST_POSTGRESQL_URL names none, and none is here")


@contextmanager
def schema() -> Iterator[str]:
    """Yield the URL of a new schema, and drop it afterwards."""
    url, name = server(), f"pcm_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
        try:
            yield f"{url}?options=-csearch_path%3D{name}"
        finally:
            connection.execute(f"DROP SCHEMA {name} CASCADE")
