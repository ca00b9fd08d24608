"""YAML in which a key that is given twice is an error: PyYAML takes the last value and drops the first silently."""

from typing import Any

import yaml


class _Once(yaml.constructor.BaseConstructor):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping as PyYAML makes it; raises its ConstructorError at the second key of a name."""
        names = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in names:
                    said = f"'{key.value:.60}' is given twice"
                    raise yaml.constructor.ConstructorError(None, None, said, key.start_mark)
                names.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


class TypedLoader(_Once, yaml.SafeLoader):
    """Numbers, truth values and dates as YAML means them."""


class TextLoader(_Once, yaml.BaseLoader):
    """All of it as the text written: a class may be called yes or 2024."""
