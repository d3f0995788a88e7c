"""Read YAML as DVC does: scalars by the core schema of YAML 1.2, where ``1e-4`` is a number and ``no`` a word.

PyYAML follows YAML 1.1, in which it is the other way round, and takes the last of two equal keys without a word.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

# The scalars of YAML 1.2.2, section 10.3.2, each with the characters that they can begin with; and, as in DVC, whole
# numbers with underscores or in base 2.
SCALARS = {
    "null": (r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+(?:_[0-9]+)*|0b[01]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}

BASES = {"0b": 2, "0o": 8, "0x": 16}


class CoreLoader(yaml.SafeLoader):
    """A safe loader of the core schema, which refuses a key that stands twice in a dictionary."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  PyYAML's own way

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        """Return a dictionary.

        Raises:
            yaml.constructor.ConstructorError: a key stands in it twice.
        """
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                mark = node.value[place][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", mark)
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Return a whole number; a leading zero means nothing."""
        text = self.construct_scalar(node)
        base = BASES.get(text[:2])
        return int(text) if base is None else int(text[2:], base)


for name, (pattern, first) in SCALARS.items():
    CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(rf"(?:{pattern})\Z"), first)
CoreLoader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"<<\Z"), ["<"])
CoreLoader.add_constructor("tag:yaml.org,2002:int", CoreLoader.construct_yaml_int)


def read_yaml(text: str) -> Any:
    """Return the content of a YAML document.

    Raises:
        yaml.YAMLError: it is no YAML, or a key stands twice in a dictionary.
    """
    return yaml.load(text, CoreLoader)
