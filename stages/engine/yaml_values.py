"""Values that YAML reads differently from what was meant: words as booleans, and booleans as numbers."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

_YAML_WORDS = {False: ("no", "off", "false", "n"), True: ("yes", "on", "true", "y")}
"""Words that YAML reads as booleans."""


def words_of_choices(model: type[BaseModel], data: Any) -> Any:
    """`data` with booleans replaced by the word that was meant, in fields with a choice of words. YAML reads `no`, for
    example, as false."""
    if not isinstance(data, dict):
        return data
    meant = dict(data)
    for name, value in data.items():
        if isinstance(value, bool) and name in model.model_fields:
            annotation = model.model_fields[name].annotation
            choices = {choice for part in (annotation, *get_args(annotation)) for choice in get_args(part)}
            word = next((word for word in _YAML_WORDS[value] if word in choices), None)
            if word is not None and bool not in (annotation, *get_args(annotation)):
                meant[name] = word
    return meant


def takes_numbers(annotation: Any) -> bool:
    """Whether a field of this type takes numbers, alone or in a list, and no truth values."""
    kinds, pending = set(), [annotation]
    while pending:
        kind = pending.pop()
        kinds.add(kind)
        pending += get_args(kind) if get_origin(kind) is not Literal else ()
    return bool(kinds & {int, float}) and not kinds & {bool, Any}
