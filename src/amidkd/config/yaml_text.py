"""YAML as a run file has it."""

import re
from typing import Any

import yaml

from amidkd.errors import SettingError

__all__ = ["Loader", "read_yaml"]


class Loader(yaml.SafeLoader):
    """YAML 1.2 numbers: `1e-4` is a number (PyYAML reads it as text), and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping, refusing a repeated key."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        repeated = {key for key in keys if keys.count(key) > 1}
        if repeated:
            raise yaml.constructor.ConstructorError(
                None, None, f"key given twice: {', '.join(sorted(repeated))}", node.start_mark
            )
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read_yaml(text: str, where: str) -> dict[str, Any]:
    """Read a run file's text.

    Args:
        text: The text.
        where: What messages call it.

    Raises:
        SettingError: It is not YAML, or not a mapping.
    """
    try:
        tree = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise SettingError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise SettingError(f"{where} must hold sections such as `student:` and `data:`; it holds {type(tree).__name__}")
    return tree
