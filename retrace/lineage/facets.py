"""An OpenLineage event of what a run did, by the client's own classes; our own run facet is `retrace`.

Outputs carry facets; inputs carry none, since a consumer would take them for facets of the version that is current when
the event arrives. What was exactly read stands in our own facet, whose schema is docs/retrace-run-facet.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, TypeVar, cast

import attr
from openlineage.client import event_v2, facet_v2
from openlineage.client.serde import Serde

from retrace.lineage.event import PRODUCER, Event, Output, Parent, Project, Read

FACET = "retrace"
_LIVE_FACET = "retrace_live"
_FACET_SCHEMA = f"{PRODUCER}/blob/main/docs/retrace-run-facet.json"
_DATASET_FACET_SCHEMA = f"{PRODUCER}/blob/main/docs/retrace-dataset-facet.json"
_STORAGE_LAYER = "dvc"

T = TypeVar("T", bound=facet_v2.BaseFacet)


@attr.define
class RetraceRunFacet(facet_v2.RunFacet):
    """Our own facet; its content is added as properties."""

    @staticmethod
    def _get_schema() -> str:
        return _FACET_SCHEMA


@attr.define
class RetraceDatasetFacet(facet_v2.DatasetFacet):
    """What a dataset is that is no file: code and data of a snapshot, commit and metrics of a version."""

    @staticmethod
    def _get_schema() -> str:
        return _DATASET_FACET_SCHEMA


def _facet(made: type[T], *arguments: Any, **fields: Any) -> T:
    return made(*arguments, **fields, producer=PRODUCER)


def as_json(event: Event, project: Project) -> bytes:
    """The event as the bytes that are committed."""
    return (json.dumps(as_dict(event, project), indent=1, sort_keys=True) + "\n").encode()


def as_line(event: Event, project: Project) -> str:
    """The event as one line, as a tag's message holds it."""
    return json.dumps(as_dict(event, project), separators=(",", ":"), sort_keys=True)


def as_dict(event: Event, project: Project) -> dict[str, Any]:
    """The event as OpenLineage's JSON has it."""
    body = Serde.to_dict(_run_event(event, project))
    # Added afterwards: the client leaves out what is None, and here that says something.
    body["run"]["facets"][FACET] |= _facts(event)
    for dataset in (*body["inputs"], *body["outputs"]):
        for name in ("facets", "inputFacets", "outputFacets"):
            if not dataset.get(name):
                dataset.pop(name, None)
    return body


def _run_event(event: Event, project: Project) -> event_v2.RunEvent:
    return event_v2.RunEvent(
        eventType=event_v2.RunState(event.state),
        eventTime=_moment(event.ended),
        producer=PRODUCER,
        run=event_v2.Run(event.run_id, dict(_run_facets(event, project))),
        job=event_v2.Job(project.namespace, event.job, dict(_job_facets(event, project))),
        inputs=[_input(read, project) for read in event.inputs],
        outputs=[
            event_v2.OutputDataset(
                project.namespace,
                output.name,
                facets=dict(_dataset_facets(output, project)),
                outputFacets=dict(_output_facets(output)),
            )
            for output in event.outputs
        ],
    )


def _facts(event: Event) -> dict[str, Any]:
    reads = [{"dataset": read.name, "version": read.version, "run": read.run} for read in event.inputs]
    facts = {"source": "git", "startedAt": _moment(event.started), "reads": reads, **event.facts}
    return facts | ({"commit": event.commit} if event.commit else {})


def _moment(value: datetime) -> str:
    return value.astimezone(UTC).isoformat()


def _run_facets(event: Event, project: Project) -> Iterator[tuple[str, facet_v2.RunFacet]]:
    yield FACET, _facet(RetraceRunFacet)
    yield (
        "processing_engine",
        _facet(
            facet_v2.processing_engine_run.ProcessingEngineRunFacet,
            version=version("retrace"),
            name="Retrace",
            openlineageAdapterVersion=version("openlineage-python"),
        ),
    )
    if event.parent is not None:
        yield "parent", _parent(event.parent, project)
        if event.parent.nominal is not None:
            when = _moment(event.parent.nominal)
            yield "nominalTime", _facet(facet_v2.nominal_time_run.NominalTimeRunFacet, nominalStartTime=when)
    if event.error is not None:
        yield (
            "errorMessage",
            _facet(
                facet_v2.error_message_run.ErrorMessageRunFacet,
                message=event.error,
                programmingLanguage="PYTHON",
                stackTrace=event.trace,
            ),
        )


def _parent(parent: Parent, project: Project) -> facet_v2.parent_run.ParentRunFacet:
    return _facet(
        facet_v2.parent_run.ParentRunFacet,
        run=facet_v2.parent_run.Run(parent.run_id),
        job=facet_v2.parent_run.Job(project.namespace, parent.job),
    )


def _job_facets(event: Event, project: Project) -> Iterator[tuple[str, facet_v2.JobFacet]]:
    if event.documentation:
        yield "documentation", _facet(facet_v2.documentation_job.DocumentationJobFacet, description=event.documentation)
    if event.query:
        yield "sql", _facet(facet_v2.sql_job.SQLJobFacet, query=event.query)
    if project.owner:
        owner = facet_v2.ownership_job.Owner(project.owner)
        yield "ownership", _facet(facet_v2.ownership_job.OwnershipJobFacet, owners=[owner])
    if event.code and event.commit:
        yield (
            "sourceCodeLocation",
            _facet(
                facet_v2.source_code_location_job.SourceCodeLocationJobFacet,
                type="git",
                url=_code_url(project.repository, event.commit, event.code),
                repoUrl=project.repository,
                path=event.code,
                version=event.commit,
            ),
        )


def _code_url(repository: str | None, commit: str, path: str) -> str:
    """Where a person finds the file, by the form that GitHub and GitLab share; without an address there is no such."""
    if repository is None or not repository.startswith("https://"):
        return f"urn:git:{commit}:{path}"
    return f"{repository.removesuffix('.git')}/blob/{commit}/{path}"


def _input(read: Read, project: Project) -> event_v2.InputDataset:
    assertions = facet_v2.data_quality_assertions_dataset
    found = [
        assertions.Assertion(
            assertion=str(check["check"]),
            success=bool(check["passed"]),
            column=check["column"],
            actual=check["detail"] or None,
            params={"partitions": check["partitions"], "failed": check["failed"]},
        )
        for check in read.checks
    ]
    facets: dict[str, facet_v2.InputDatasetFacet] = {}
    if found:
        facets["dataQualityAssertions"] = _facet(assertions.DataQualityAssertionsDatasetFacet, assertions=found)
    return event_v2.InputDataset(project.namespace, read.name, inputFacets=facets)


def _dataset_facets(output: Output, project: Project) -> Iterator[tuple[str, facet_v2.DatasetFacet]]:
    yield (
        "version",
        _facet(facet_v2.dataset_version_dataset.DatasetVersionDatasetFacet, datasetVersion=output.version),
    )
    yield (
        "dataSource",
        _facet(facet_v2.datasource_dataset.DatasourceDatasetFacet, name=project.storage, uri=project.storage),
    )
    if output.format is not None:
        yield (
            "storage",
            _facet(facet_v2.storage_dataset.StorageDatasetFacet, storageLayer=_STORAGE_LAYER, fileFormat=output.format),
        )
    if output.documentation:
        yield (
            "documentation",
            _facet(facet_v2.documentation_dataset.DocumentationDatasetFacet, description=output.documentation),
        )
    if project.owner:
        owner = facet_v2.ownership_dataset.Owner(project.owner)
        yield "ownership", _facet(facet_v2.ownership_dataset.OwnershipDatasetFacet, owners=[owner])
    if output.statistics is not None:
        yield "schema", _schema(output)
        yield "dataQualityMetrics", _metrics(output)
    if output.essentials:
        essentials = _facet(RetraceDatasetFacet).with_additional_properties(**output.essentials)
        yield FACET, cast(facet_v2.DatasetFacet, essentials)
    if output.sources:
        yield "columnLineage", _column_lineage(output, project)


def _schema(output: Output) -> facet_v2.schema_dataset.SchemaDatasetFacet:
    assert output.statistics is not None
    field = facet_v2.schema_dataset.SchemaDatasetFacetFields
    fields = [
        field(name=column.name, type=column.type, ordinal_position=position)
        for position, column in enumerate(output.statistics.columns, start=1)
    ]
    return _facet(facet_v2.schema_dataset.SchemaDatasetFacet, fields=fields)


def _metrics(output: Output) -> facet_v2.data_quality_metrics_dataset.DataQualityMetricsDatasetFacet:
    assert output.statistics is not None
    metrics = facet_v2.data_quality_metrics_dataset
    columns = {
        column.name: metrics.ColumnMetrics(
            nullCount=column.nulls,
            distinctCount=column.distinct,
            min=column.low,
            max=column.high,
            quantiles=dict(column.quantiles),
        )
        for column in output.statistics.columns
    }
    found = output.statistics
    return _facet(
        metrics.DataQualityMetricsDatasetFacet,
        columnMetrics=columns,
        rowCount=found.rows,
        bytes=found.size,
        fileCount=found.files,
    )


def _column_lineage(output: Output, project: Project) -> facet_v2.column_lineage_dataset.ColumnLineageDatasetFacet:
    lineage = facet_v2.column_lineage_dataset
    fields = {
        column: lineage.Fields(
            inputFields=[lineage.InputField(project.namespace, dataset, name) for dataset, name in sources]
        )
        for column, sources in sorted(output.sources.items())
    }
    return _facet(lineage.ColumnLineageDatasetFacet, fields=fields)


def _output_facets(output: Output) -> Iterator[tuple[str, facet_v2.OutputDatasetFacet]]:
    if output.size is None and output.statistics is None:
        return
    yield (
        "outputStatistics",
        _facet(
            facet_v2.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet,
            rowCount=output.statistics.rows if output.statistics is not None else None,
            size=output.size,
            fileCount=output.files,
        ),
    )


def live(event: Mapping[str, Any]) -> tuple[list[event_v2.OutputDataset], dict[str, Any], dict[str, Any]]:
    """Of a committed event what is told while the run goes on: outputs, run facets and job facets, and no input.

    A consumer binds a reader to what is current when an event arrives; only `retrace sync` knows to choose the moment.
    """
    outputs = [
        event_v2.OutputDataset(
            item["namespace"],
            item["name"],
            facets={name: _again(facet_v2.DatasetFacet, content) for name, content in item["facets"].items()},
            outputFacets={
                name: _again(facet_v2.OutputDatasetFacet, content)
                for name, content in item.get("outputFacets", {}).items()
            },
        )
        for item in event["outputs"]
    ]
    told = {name: content for name, content in event["run"]["facets"].items() if name not in _AIRFLOWS_OWN}
    # By another name: of one name a consumer shows the facet of the later event time, and Airflow's end is the later.
    told[_LIVE_FACET] = {**told.pop(FACET), "source": "live"}
    run = {name: _again(facet_v2.RunFacet, content) for name, content in told.items()}
    job = {name: _again(facet_v2.JobFacet, content) for name, content in event["job"].get("facets", {}).items()}
    return outputs, run, job


def verdict_facet(verdicts: Sequence[Mapping[str, Any]]) -> dict[str, facet_v2.BaseFacet]:
    """The run facet of an audit: what its rebuilds said, without what they found in each file."""
    told = ("version", "verdict", "reason", "when", "sandbox", "seconds")
    facet = _facet(RetraceRunFacet)
    content = [{key: verdict[key] for key in told} for verdict in verdicts]
    return {_LIVE_FACET: facet.with_additional_properties(source="live", verdicts=content)}


# What Airflow's integration says itself of a run.
_AIRFLOWS_OWN = ("parent", "nominalTime", "processing_engine")


def _again(kind: type[T], content: Mapping[str, Any]) -> T:
    """A facet that was read from JSON as an object of the client's, under the schema that it names."""
    schema = str(content["_schemaURL"])

    class Told(kind):  # type: ignore[valid-type, misc]
        @staticmethod
        def _get_schema() -> str:
            return schema

    properties = {name: value for name, value in content.items() if not name.startswith("_")}
    told: T = _facet(attr.define(Told)).with_additional_properties(**properties)
    return told
