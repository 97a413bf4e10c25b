"""YAML as Kubernetes reads it: 1e-4 is a number, and a key that stands twice in a mapping is a mistake.

PyYAML takes the first for text and of the second keeps what comes last, without a word.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_FLOAT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")


class StrictLoader(yaml.SafeLoader):
    """For `yaml.load`. Raises yaml.YAMLError as its parent does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = getattr(key, "value", None)
            if isinstance(name, str) and name != "<<" and name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {name!r} stands here twice", key.start_mark
                )
            seen.add(name if isinstance(name, str) else None)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


StrictLoader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
