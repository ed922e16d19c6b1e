"""Turn errors of pydantic into texts for people who write files."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from broker.files.problems import Place
from schemas.message import cause

_TAGS = {"instant", "wall clock", "[key]"}  # added by pydantic to the location of an error
_LONGEST_VALUE = 80
_PLAIN = {
    "string_type": "is not a string: put it in quotes",
    "too_short": "is empty",
    "string_unicode": "is not UTF-8",
    "tuple_type": "is not a list: write it in [ ]",
    "frozen_set_type": "is not a list: write it in [ ]",
    "dict_type": "is not a mapping: write { NAME: VALUE }",
    "model_type": "is not a mapping: write { FIELD: VALUE }",
    "model_attributes_type": "is not a mapping: write { FIELD: VALUE }",
    "bool_type": "is neither true nor false",
    "bool_parsing": "is neither true nor false",
}


@dataclass(frozen=True)
class ModelError:
    """An error of a model: the place of the wrong value in the given ones, and what is wrong."""

    place: Place
    value: Any
    text: str
    missing: str = ""
    is_about_a_field: bool = False  # then the text may begin with the field's name


def explain_error(
    given: Any, found: Any, no_such_field: Callable[[Place], str]
) -> ModelError | None:
    """Return an error of pydantic; None if its cause is reported as well.

    Args:
        given: the values from which the model was made.
        found: the error, as `ValidationError.errors` has it.
        no_such_field: returns the text for an unknown field at a place.
    """
    inside, value, missing = _find(given, [part for part in found["loc"] if part not in _TAGS])
    match found["type"]:
        case "missing":
            return ModelError(inside, value, "is missing", missing)
        case "extra_forbidden":
            return ModelError(inside, value, no_such_field(found["loc"]))
        case "too_short" if value:
            return None  # its items are wrong, and reported
        case kind if kind in _PLAIN:
            shown = "" if isinstance(value, dict | list) else f"{repr(value)[:_LONGEST_VALUE]} "
            return ModelError(inside, value, shown + _PLAIN[kind])
    return ModelError(inside, value, cause(found), is_about_a_field=True)


def field_of_text(place: Place, value: Any, text: str) -> tuple[Place, str]:
    """Return the place and the rest of a text that may begin with the field that it is about."""
    name, colon, rest = text.partition(": ")
    if colon and isinstance(value, dict) and name in value:
        return (*place, name), rest
    return place, text


def _find(value: Any, place: list[Any]) -> tuple[Place, Any, str]:
    """Return the longest part of a place that exists, its value, and the name that is not in it."""
    for count, part in enumerate(place):
        try:
            value = value[part]
        except (LookupError, TypeError):
            return tuple(place[:count]), value, str(part)
    return tuple(place), value, ""
