"""A manifest held against the JSON Schema that lies beside it, without a library, of which a device has few.

Only what such a schema uses is known here: types, ``properties``, ``required``, ``additionalProperties``, ``items``,
``anyOf``, ``oneOf``, ``const``, ``enum``, ``pattern`` and limits. Other keywords allow everything.
"""

from __future__ import annotations

import operator
import re
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
}
# Of numbers, and of the lengths of lists and texts.
LIMITS = {
    "minimum": operator.ge,
    "maximum": operator.le,
    "exclusiveMinimum": operator.gt,
    "exclusiveMaximum": operator.lt,
}
LENGTHS = {"minItems": operator.ge, "minLength": operator.ge, "maxItems": operator.le, "maxLength": operator.le}


def first_mistake(content: Any, schema: Schema) -> str | None:
    """Return what does not fit a schema first, with its key and what is allowed; none if all fits."""
    return next(_mistakes(content, schema, schema, ""), None)


def is_a(content: Any, kind: str) -> bool:
    """Return whether JSON is of a type; true and false are no numbers."""
    return isinstance(content, TYPES[kind]) and (kind == "boolean" or not isinstance(content, bool))


def _mistakes(content: Any, schema: Schema, root: Schema, key: str) -> Iterator[str]:
    if "$ref" in schema:
        yield from _mistakes(content, root["$defs"][schema["$ref"].rpartition("/")[2]], root, key)
    for choices in (schema[word] for word in ("anyOf", "oneOf") if word in schema):
        found = [next(_mistakes(content, choice, root, key), None) for choice in choices]
        if None not in found:  # the one that fits best fails deepest inside
            yield max(filter(None, found), key=lambda mistake: mistake.partition(":")[0].count("."))
    allowed = [schema["const"]] if "const" in schema else schema.get("enum")
    if allowed is not None and not any(content == one and type(content) is type(one) for one in allowed):
        yield _line(key, content, f"one of {', '.join(map(repr, allowed))}")
    if "type" in schema and not is_a(content, schema["type"]):
        yield _line(key, content, f"of type {schema['type']}")
        return
    yield from _beyond_limits(content, schema, key)
    for name, each, inner in _parts(content, schema):
        yield from _mistakes(each, inner, root, f"{key}.{name}".strip("."))


def _beyond_limits(content: Any, schema: Schema, key: str) -> Iterator[str]:
    if is_a(content, "number"):
        yield from _limits(content, LIMITS, schema, key, content)
    if isinstance(content, list | str):
        yield from _limits(len(content), LENGTHS, schema, key, content)
    if isinstance(content, str) and not re.search(schema.get("pattern", ""), content):
        yield _line(key, content, f"a text like {schema['pattern']}")
    if isinstance(content, dict):
        if missing := [name for name in schema.get("required", ()) if name not in content]:
            yield f"{key}.{missing[0]}: is missing".removeprefix(".")
        unknown = [name for name in content if name not in schema.get("properties", {})]
        if schema.get("additionalProperties") is False and unknown:
            yield f"{key}.{unknown[0]}: is unknown, known are {', '.join(schema['properties'])}".removeprefix(".")


def _parts(content: Any, schema: Schema) -> Iterator[tuple[str, Any, Schema]]:
    """Yield name, content and schema of each part of a list or an object."""
    if isinstance(content, list):
        yield from ((str(place), each, schema.get("items", {})) for place, each in enumerate(content))
    if isinstance(content, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        for name, each in content.items():
            yield name, each, known.get(name, others if isinstance(others, dict) else {})


def _limits(number: float, limits: Mapping[str, Any], schema: Schema, key: str, content: Any) -> Iterator[str]:
    for word, holds in limits.items():
        if word in schema and not holds(number, schema[word]):
            yield _line(key, content, f"{word} {schema[word]}")


def _line(key: str, content: Any, allowed: str) -> str:
    return f"{key}: is {reprlib.repr(content)}, must be {allowed}"
