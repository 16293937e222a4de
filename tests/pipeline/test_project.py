"""params.yaml as the pipeline reads it: the values that DVC and the engine read, and what is wrong by its key."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from domain import ROOT
from test_yaml12 import PLAIN

from pipeline.project import Problem, Strict, setting
from retrace import yaml12


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that params.yaml is read from."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(folder: Path, text: str) -> Any:
    (folder / "params.yaml").write_text(text)
    return setting("a", "b", object)


@pytest.mark.parametrize("plain", PLAIN)
def test_a_plain_value_is_what_the_engine_takes_it_for(plain: str, folder: Path) -> None:
    text = f"models: {{a: {{b: [{plain}, {plain}]}}}}"
    ours, engine = read(folder, text)[0], yaml12.load(text)["models"]["a"]["b"][0]
    assert type(ours) is type(engine)
    assert ours == engine or (math.isnan(ours) and math.isnan(engine))


def test_the_values_that_yaml_1_1_takes_for_others(folder: Path) -> None:
    assert read(folder, "models: {a: {b: [1e-3, 010, no, 1:30, 1_0, 0o17]}}") == [0.001, 10, "no", "1:30", 10, 15]


def test_the_demo_reads_what_it_always_read() -> None:
    text = (ROOT / "params.yaml").read_text()
    Path("params.yaml").write_text(text)
    for name, model in yaml.safe_load(text)["models"].items():
        for key, value in model.items():
            assert setting(name, key, object) == value


class Range(Strict):
    low: int | float
    high: int | float


class Choices(Strict):
    choices: list[str]


class Settings(Strict):
    search: dict[str, Range | Choices]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("{search: {depth: {low: one, high: 2}}}", "models.a.b.search.depth.low: Input should be a valid integer"),
        ("{search: {depth: {low: 1}}}", "models.a.b.search.depth.high: Field required"),
        ("{search: {depth: {low: 1, high: 2, lag: 3}}}", "models.a.b.search.depth.lag: Extra inputs are not permitted"),
        ("{search: {int: {low: one, high: 2}}}", "models.a.b.search.int.low: Input should be a valid integer"),
        ("{search: [1]}", "models.a.b.search: Input should be a valid dictionary"),
        ("{}", "models.a.b.search: Field required"),
    ],
)
def test_what_is_wrong_is_told_by_its_key(settings: str, told: str, folder: Path) -> None:
    (folder / "params.yaml").write_text(f"models: {{a: {{b: {settings}}}}}")
    with pytest.raises(Problem) as raised:
        setting("a", "b", Settings)
    assert str(raised.value) == f"params.yaml: {told}"


@pytest.mark.parametrize("text", ["a: [", "a: 2013-02-30", "a: 0x_"])
def test_what_cannot_be_read_is_told(text: str, folder: Path) -> None:
    with pytest.raises(Problem, match="params.yaml cannot be read: "):
        read(folder, text)
