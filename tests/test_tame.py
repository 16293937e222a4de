"""What a child changes of DVC: it reads YAML faster, and as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dvc.utils import serialize, strictyaml
from dvc.utils.serialize import YAMLFileCorruptedError, _yaml
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError

from retrace import yaml12
from retrace.child.tame import read_yaml_faster

MODULES: tuple[Any, ...] = (_yaml, serialize, strictyaml)


@pytest.fixture(autouse=True)
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in MODULES:
        monkeypatch.setattr(module, "parse_yaml", module.parse_yaml)  # put back when the test ends
    read_yaml_faster()


@pytest.mark.parametrize("module", MODULES)
def test_files_are_read_by_our_reader_to_the_same_values(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Path(__file__).with_name("toy").joinpath("dvc.yaml").read_text() + "rate: [1e-3, no, 010, 1:30]\n"
    read: list[str] = []
    load = yaml12.load
    monkeypatch.setattr(yaml12, "load", lambda text: read.append(text) or load(text))
    assert module.parse_yaml(text, "dvc.yaml") == YAML(typ="safe").load(text)
    assert read == [text]
    assert module.parse_yaml("", "dvc.yaml") == {}


def test_what_keeps_comments_is_read_as_before() -> None:
    assert strictyaml.parse_yaml("a: 1  # why\n", "dvc.yaml", typ="rt").ca.items["a"][2].value == "# why\n"


def test_what_is_no_yaml_is_refused_in_dvcs_words() -> None:
    with pytest.raises(YAMLFileCorruptedError) as raised:
        strictyaml.parse_yaml("a: 1\na: 2\n", "dvc.yaml")
    assert isinstance(raised.value.__cause__, DuplicateKeyError)
