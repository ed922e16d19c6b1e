"""The JSON Schema of all messages."""

from pydantic.json_schema import models_json_schema

import schemas
from schemas.message import Message


def message_schema() -> dict[str, object]:
    """Return the JSON Schema of all messages, as `pcm schema` prints it."""
    messages = [
        value
        for name in schemas.__all__
        if isinstance(value := getattr(schemas, name), type)
        and issubclass(value, Message)
        and value is not Message
    ]
    _, schema = models_json_schema(
        [(message, "validation") for message in messages],
        title="Package Command Manager: messages",
    )
    return schema
