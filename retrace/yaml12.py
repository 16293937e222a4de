"""YAML by the rules that DVC reads it with: version 1.2, and no key twice.

DVC's own reader is written in Python and takes 60 ms for a dvc.lock; this is libyaml with the plain values of 1.2
(`no` is a text, `1e-3` a number, `010` ten).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
# https://yaml.org/spec/1.2.2/#1032-tag-resolution, with the `_` between digits that DVC's reader takes, too.
_PLAIN = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)", "-+0123456789"),
    "float": (
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
}

_READ_AS = {"bool": "true or false", "int": "a whole number", "float": "a number", "timestamp": "a date"}
_ValueReader = Callable[[Any, yaml.Node], object]


class _Loader(_BASE):  # type: ignore[misc]
    """A safe loader whose plain values are those of YAML 1.2."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag.removeprefix(_TAG) not in _PLAIN]
        for first, known in _BASE.yaml_implicit_resolvers.items()
    }

    def construct_integer(self, node: Any) -> int:
        text = self.construct_scalar(node).replace("_", "")
        return int(text, 0) if re.match(r"[-+]?0[box]", text) else int(text)


class _Dumper(yaml.SafeDumper):
    """Quotes a text that YAML 1.1 or 1.2 would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind, (_pattern, _first) in _PLAIN.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(f"^({_pattern})$"), list(_first))
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_integer)


def _refusing(read: _ValueReader, kind: str) -> _ValueReader:
    """Read a value, or say which one cannot be read: PyYAML lets what Python says of it through, without the line."""

    def read_or_refuse(loader: Any, node: yaml.Node) -> object:
        try:
            return read(loader, node)
        except (ValueError, TypeError, AttributeError, LookupError, OverflowError):
            problem = f"{loader.construct_scalar(node):.40} cannot be read as {kind}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None

    return read_or_refuse


for _kind, _words in _READ_AS.items():
    _tag = f"{_TAG}{_kind}"
    _Loader.add_constructor(_tag, _refusing(_Loader.yaml_constructors[_tag], _words))


def load(text: str) -> Any:
    """What a YAML text says, in Python's own types; None for an empty one. Raises `yaml.YAMLError`."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, [])
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.MarkedYAMLError(problem="lists and mappings are nested too deeply") from None
    finally:
        loader.dispose()


def _check(node: yaml.Node, around: list[yaml.Node]) -> None:
    """Refuse a key that is there twice or is no plain value, and an alias to what is around it, which has no end."""
    if isinstance(node, yaml.ScalarNode):
        return
    if node in around:
        raise yaml.MarkedYAMLError(problem="an alias stands inside what it names", problem_mark=node.start_mark)
    around.append(node)
    for inner in _values(node) if isinstance(node, yaml.MappingNode) else node.value:
        _check(inner, around)
    around.pop()


def _values(mapping: yaml.MappingNode) -> Iterator[yaml.Node]:
    """The values of a mapping, its keys being checked."""
    seen = set()
    for key, value in mapping.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key is a list or a mapping", problem_mark=key.start_mark)
        if key.value in seen:
            raise yaml.MarkedYAMLError(problem=f"the key {key.value} is there twice", problem_mark=key.start_mark)
        seen.add(key.value)
        yield value


def dump(tree: Any) -> str:
    """A tree as YAML, keys in the order that they have."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
