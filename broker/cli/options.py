"""Names the options by which fields are given, in what is told of them."""

import re

# Where an option's field has another name.
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
    """Name the options where a message names the fields."""
    text = _TIMES.sub(lambda found: f"--{found[0].replace('_', '-')}", text)
    field, colon, rest = text.partition(":")
    name = field.split(".")[0]
    if not colon or not name.isidentifier():
        return text
    return _OPTIONS.get(name, f"--{name.replace('_', '-')}") + colon + rest
