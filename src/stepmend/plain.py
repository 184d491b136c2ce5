"""YAML for recipes: version 1.2's core schema, without aliases and merge keys."""

import re
from typing import Any

import yaml


class Plain(yaml.SafeLoader):
    """YAML 1.2's core schema: ``no`` and ``12:30`` are text, ``1e-3`` is a number, ``0o10`` is 8. No key is there twice.

    Neither aliases, of which ten lines can stand for gigabytes, nor merged keys are read, and no recipe needs any. A number that starts
    with 0 is refused: YAML 1.1 reads ``010`` as 8, and YAML 1.2 as 10.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not read", problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def flatten_mapping(self, node: Any) -> None:
        """Without merging; called for every mapping before its keys are read."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value[:40]!r} is there twice", problem_mark=key.start_mark)
            seen.add(str(key.value))

    def integer(self, node: yaml.ScalarNode) -> int:
        """A decimal number, or one with ``0o`` or ``0x`` in front."""
        text = str(node.value).lower()
        if DOUBTFUL.fullmatch(text):
            said = f"{text[:40]}: a number that begins with 0 may be meant as octal; write it without, or as 0o…, or text in quotes"
            raise yaml.MarkedYAMLError(problem=said, problem_mark=node.start_mark)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))

    def real(self, node: yaml.ScalarNode) -> float:
        """A number with a point or an exponent, ``.inf`` and ``.nan``."""
        text = str(node.value).lower()
        return float(text.replace(".", "") if text.endswith(("inf", "nan")) else text)


Plain.yaml_implicit_resolvers = {}
DOUBTFUL = re.compile(r"[-+]?0[0-9]+")
for _tag, _pattern, _begin in (
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+.0123456789"),
):
    Plain.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})\\Z"), list(_begin))
Plain.add_constructor("tag:yaml.org,2002:int", Plain.integer)
Plain.add_constructor("tag:yaml.org,2002:float", Plain.real)
