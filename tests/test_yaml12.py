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
