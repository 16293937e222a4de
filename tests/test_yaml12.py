"""YAML as DVC reads it: the same values as DVC's own reader's, and back."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from ruamel.yaml import YAML

from retrace import yaml12
from retrace.config import ConfigError, parse_params

_VALUES = (
    "true True TRUE false yes No on off y n null ~ Null nULL 0 -7 +3 010 -010 0o17 0x1F 0b101 1_000 1e3 1e-3 1E+2 -1.5 "
    "1. .5 -.5 1.5e3 .inf -.INF .nan 1:30 1.2.3 1e .e3 - -- +x 0x 08 1__2 2013-01-02 a#b"
)
PLAIN = _VALUES.split(" ")


def as_dvc_reads(text: str) -> Any:
    return YAML(typ="safe").load(text)


@pytest.mark.parametrize("plain", PLAIN)
def test_a_plain_value_is_what_dvc_takes_it_for(plain: str) -> None:
    text = f"key: [{plain}, {plain}]"
    ours, theirs = yaml12.load(text)["key"][0], as_dvc_reads(text)["key"][0]
    assert type(ours) is type(theirs)
    assert ours == theirs or (math.isnan(ours) and math.isnan(theirs))


@pytest.mark.parametrize("value", [*PLAIN, "", "x: y", "1e3", "é", "a\nb", 1e-05, 1e300, 3, -0.5, None, True])
def test_what_is_written_is_read_again_by_both(value: Any) -> None:
    text = yaml12.dump({"key": value, "list": [value]})
    assert yaml12.load(text) == as_dvc_reads(text) == {"key": value, "list": [value]}


def test_merged_keys_may_override() -> None:
    text = "a: &a {x: 1}\nb: &b {<<: *a, x: 2, y: 3}\nc: {<<: *b, y: 4}"
    assert yaml12.load(text) == {"a": {"x": 1}, "b": {"x": 2, "y": 3}, "c": {"x": 2, "y": 4}}


def test_a_key_that_is_there_twice_is_refused() -> None:
    with pytest.raises(yaml.YAMLError, match="the key x is there twice"):
        yaml12.load("a: [{x: 1, x: 2}]")
    with pytest.raises(ConfigError, match=r"params.yaml is not YAML: the key models is there twice .*line 2"):
        parse_params("models: {}\nmodels: {}")


def test_no_object_is_made() -> None:
    with pytest.raises(yaml.YAMLError):
        yaml12.load("!!python/object/apply:os.system ['true']")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 2013-02-30", "2013-02-30 cannot be read as a date"),
        ("a: 2013-13-01", "2013-13-01 cannot be read as a date"),
        ("a: 2013-01-01T25:00:00Z", "2013-01-01T25:00:00Z cannot be read as a date"),
        ("a: 2013-01-01T00:00:00+99:00", "2013-01-01T00:00:00+99:00 cannot be read as a date"),
        ("a: !!timestamp x", "x cannot be read as a date"),
        ("!!timestamp {=: x}: 1", "a key is a list or a mapping"),
        ("a: !!timestamp {=: x}", "x cannot be read as a date"),
        ("a: 0x_", "0x_ cannot be read as a whole number"),
        ("a: !!int x", "x cannot be read as a whole number"),
        ("!!int x: a", "x cannot be read as a whole number"),
        (f"a: {'9' * 5000}", f"{'9' * 40} cannot be read as a whole number"),
        ("a: !!float abc", "abc cannot be read as a number"),
        ("a: !!float ''", " cannot be read as a number"),
        (f"a: !!float 1{':1' * 200}", f"1{':1' * 19}: cannot be read as a number"),
        ("a: !!bool perhaps", "perhaps cannot be read as true or false"),
        ("{[a]: 1}", "a key is a list or a mapping"),
        ("? {a: 1}", "a key is a list or a mapping"),
        ("a: !!set {[a]}", "a key is a list or a mapping"),
        ("a: &a [*a]", "an alias stands inside what it names"),
        ("a: &a {b: [*a]}", "an alias stands inside what it names"),
        ("a: &a {<<: *a}", "an alias stands inside what it names"),
    ],
)
def test_what_python_cannot_take_is_told_with_its_line(text: str, problem: str) -> None:
    with pytest.raises(yaml.MarkedYAMLError) as raised:
        yaml12.load(f"# one\n{text}")
    assert raised.value.problem == problem
    assert raised.value.problem_mark is not None and raised.value.problem_mark.line == 1


def test_what_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(yaml.YAMLError, match="lists and mappings are nested too deeply"):
        yaml12.load("[" * 2000 + "]" * 2000)


def test_an_alias_beside_what_it_names_is_read() -> None:
    assert yaml12.load("a: &a {x: [1]}\nb: [*a, *a]\nc: *a") == {
        "a": {"x": [1]},
        "b": [{"x": [1]}] * 2,
        "c": {"x": [1]},
    }
