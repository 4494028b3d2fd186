"""One picture out of several workers': numbers are added up, everything else is shown once where all agree."""

from collections.abc import Mapping, Sequence
from typing import Any

NAMING = ("address", "name")
"""Keys by which the members of lists are told apart."""


def merge(views: Mapping[int, Any]) -> Any:
    """Return one view of those of the workers, by their numbers: values ready for JSON, alike in shape.

    Numbers are added up. Objects are merged key by key, lists of objects by the key that names them; other lists are joined. Where
    anything else differs it is `{"by_worker": {"1": ..., "2": ...}}`.
    """
    values = list(views.values())
    first = values[0]
    if len(values) == 1:
        return first
    if all(isinstance(value, Mapping) for value in values):
        keys = dict.fromkeys(key for value in values for key in value)
        return {key: merge({number: view[key] for number, view in views.items() if key in view}) for key in keys}
    if all(isinstance(value, list) for value in values) and (name := _naming(values)):
        ids = dict.fromkeys(item[name] for value in values for item in value)
        return [
            merge({number: item for number, view in views.items() for item in view if item[name] == wanted})
            for wanted in ids
        ]
    if all(isinstance(value, list) for value in values):
        return [item for value in values for item in value]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return sum(values)
    if all(value == first for value in values):
        return first
    return {"by_worker": {str(number): value for number, value in views.items()}}


def _naming(lists: Sequence[list[Any]]) -> str:
    items = [item for found in lists for item in found]
    for name in NAMING:
        if items and all(isinstance(item, Mapping) and name in item for item in items):
            return name
    return ""
