"""Events checked against the client's own classes and against the schemas of our own facets."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import attr
from jsonschema import Draft202012Validator
from openlineage.client import event_v2, facet_v2
from projects import Project

from retrace import versions
from retrace.lineage import facets
from retrace.runs import INGEST_EVENT, chain

ROOT = Path(__file__).resolve().parents[1]


def _standard_facets() -> dict[str, type]:
    """Schema address -> class of every facet of the client."""
    modules = [item for item in vars(facet_v2).values() if isinstance(item, types.ModuleType)]
    classes = {item for module in modules for item in vars(module).values() if isinstance(item, type)}
    kinds = [item for item in classes if issubclass(item, facet_v2.BaseFacet)]
    return {kind._get_schema(): kind for kind in kinds}


def _own_facets() -> dict[str, Draft202012Validator]:
    schemas = [json.loads(file.read_text()) for file in sorted((ROOT / "docs").glob("retrace-*-facet.json"))]
    for schema in schemas:
        Draft202012Validator.check_schema(schema)
    return {schema["$id"]: Draft202012Validator(schema, format_checker=None) for schema in schemas}


def structured(kind: Any, value: Any) -> Any:
    """The value as an object of the client's class, all the way down; anything that does not fit raises."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (typing.Union, types.UnionType):
        wanted = [argument for argument in arguments if argument is not type(None)]
        return None if value is None else structured(wanted[0], value)
    if origin is list:
        assert isinstance(value, list)
        return [structured(arguments[0], item) for item in value]
    if origin is dict:
        assert isinstance(value, dict)
        return {key: structured(arguments[1], item) for key, item in value.items()}
    if isinstance(kind, type) and attr.has(kind):
        hints = typing.get_type_hints(kind)
        fields = {field.name: field for field in attr.fields(kind) if field.init}
        assert value.keys() - {"_schemaURL"} <= fields.keys(), f"{kind.__name__} has no {value.keys() - fields.keys()}"
        return kind(
            **{
                name.lstrip("_"): structured(hints.get(name, Any), item)
                for name, item in value.items()
                if name != "_schemaURL"
            }
        )
    if kind is float:
        assert isinstance(value, int | float)
    elif isinstance(kind, type) and kind in (str, int, bool):
        assert isinstance(value, kind), f"{value!r} is not {kind.__name__}"
    return value


def check(event: Mapping[str, Any]) -> None:
    """Raise unless the event is one of OpenLineage's, every facet of it after its schema, and says what it read."""
    check_live(event)
    for item in event["inputs"]:
        assert "facets" not in item, "a consumer would take them for facets of whatever version is current"
    reads = event["run"]["facets"][facets.FACET]["reads"]
    assert [read["dataset"] for read in reads] == [item["name"] for item in event["inputs"]]


def check_live(event: Mapping[str, Any]) -> None:
    """Raise unless the event is one of OpenLineage's; Airflow's own facets have no schema to check them against."""
    standard, own = _standard_facets(), _own_facets()
    dataset_facets = [item.get(key, {}) for item in (*event["inputs"], *event["outputs"]) for key in _FACETS]
    for group in (event["run"]["facets"], event["job"].get("facets", {}), *dataset_facets):
        for name, content in group.items():
            schema = content["_schemaURL"]
            if schema in own:
                own[schema].validate(content)
            elif name not in _AIRFLOWS_OWN:
                structured(standard[schema], content)
            assert content["_producer"].startswith("https://"), name
    event_v2.RunEvent(
        eventTime=event["eventTime"],
        eventType=event_v2.RunState(event["eventType"]),
        run=event_v2.Run(event["run"]["runId"]),
        job=event_v2.Job(event["job"]["namespace"], event["job"]["name"]),
        inputs=[event_v2.InputDataset(item["namespace"], item["name"]) for item in event["inputs"]],
        outputs=[event_v2.OutputDataset(item["namespace"], item["name"]) for item in event["outputs"]],
    )


_FACETS = ("facets", "inputFacets", "outputFacets")
_AIRFLOWS_OWN = ("airflow", "airflowDagRun", "airflowState", "unknownSourceAttribute")


def committed(project: Project) -> Iterator[dict[str, Any]]:
    """Every event that stands in the project's git, read in the plainest way."""
    git = project.mirror
    git.fetch("+refs/runs/*:refs/runs/*")
    git.fetch_record()
    for commit in git.out("rev-list", "--reverse", "refs/heads/data").splitlines():
        yield json.loads(git.read(commit, INGEST_EVENT) or b"")
    for ref in git.out("for-each-ref", "--format=%(refname)", "refs/runs").splitlines():
        for link in chain(git, git.resolve(ref) or ""):
            model, job = ref.split("/")[2], link.stage.partition("@")[0]
            yield json.loads(git.read(link.commit, f"lineage/{model}/{job}.json") or b"")
    for tag in git.out("for-each-ref", "--format=%(refname)", "refs/tags").splitlines():
        told = versions.event_of(git, tag)
        if told is not None:
            yield told
