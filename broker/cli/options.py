"""Replace field names by option names in error messages."""

import re

# Options whose names differ from their fields'.
_OPTIONS = {
    "argv": "COMMAND",
    "environment": "--env",
    "success_exit_codes": "--success-exit",
    "restart_exit_codes": "--restart-exit",
    "platforms": "--platform",
    "targets": "--to",
    "excluded": "--not-to",
    "secrets": "--secret",
}
_TIMES = re.compile(r"\b(offer_at|mandatory_at|expires_at|mandatory_after|expires_after)\b")


def as_option(text: str) -> str:
    """Return a message with each field name replaced by its option."""
    text = _TIMES.sub(lambda match: f"--{match[0].replace('_', '-')}", text)
    field, colon, rest = text.partition(":")
    name = field.split(".")[0]
    if not colon or not name.isidentifier():
        return text
    return _OPTIONS.get(name, f"--{name.replace('_', '-')}") + colon + rest
