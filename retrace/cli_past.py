"""The commands that rebuild, compare, trace and prove past versions; `retrace.cli` adds them to its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from retrace.cli import AsJson, VersionName, app, end, settings_here

Form = Literal["text", "json", "markdown"]


@app.command()
def reproduce(
    version: VersionName,
    vary: Annotated[bool, typer.Option("--vary", help="change what must not matter: folder, host, ...")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="leave the rebuilt files, and say where")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a version again from raw data and compare every byte; the verdict is kept.

    Ends with 0 for identical, 3 for equivalent, 4 for different, 5 for impossible.
    """
    from retrace.reproduce import run_reproduce

    end(lambda: run_reproduce(settings_here(), version, vary=vary, keep=keep, as_json=as_json))


@app.command()
def diff(
    a: Annotated[str, typer.Argument(help="a version, a branch or a commit")],
    b: Annotated[str, typer.Argument(help="the same; . is the working copy")],
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="as Markdown, for a pull request")] = False,
    patch: Annotated[bool, typer.Option("--patch", help="also the code's changes, line by line")] = False,
    psi: Annotated[bool, typer.Option("--psi", help="PSI of raw columns, from the partitions themselves")] = False,
) -> None:
    """What differs between two versions: data, code, parameters, environment, metrics, and why each stage ran."""
    from retrace.diff import diff_lines

    form: Form = "json" if as_json else "markdown" if markdown else "text"
    for line in diff_lines(settings_here(), a, b, form=form, patch=patch, exact=psi):
        print(line)


@app.command()
def impact(
    thing: Annotated[str | None, typer.Argument(help="a path, an md5 or sha256, a commit, or PATH@COMMIT")] = None,
    package: Annotated[str | None, typer.Option("--package", help='such as "scikit-learn==1.9.1"')] = None,
    where: Annotated[str | None, typer.Option("--where", help="records, by a condition; - reads it from input")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="the raw dataset that --where is about")] = None,
    as_json: AsJson = False,
) -> None:
    """Which versions something went into, and who holds an alias."""
    from retrace.impact import impact_lines

    condition = _condition(where)
    for line in impact_lines(
        settings_here(), thing, package=package, where=condition, dataset=dataset, as_json=as_json
    ):
        print(line)


@app.command()
def forget(
    dataset: Annotated[str, typer.Option("--dataset", help="the raw dataset that holds the records")],
    ticket: Annotated[str, typer.Option("--ticket", help="the request's id: the reason that stays on record")],
    where: Annotated[str, typer.Option("--where", help="the records, by a condition; - reads it from input")] = "-",
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Remove records from all data, with all that was derived from them; says first what would be lost."""
    from retrace.forget import run_forget

    condition = _condition(where)
    ask = None if yes else _confirmed
    end(lambda: run_forget(settings_here(), dataset, condition or "", ticket, ask))


def _condition(given: str | None) -> str | None:
    """A condition may be personal data: read from input, it stays out of the shell's history."""
    if given != "-":
        return given
    if sys.stdin.isatty():
        print("condition: ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip()
    return sys.stdin.read().strip()


def _confirmed(question: str) -> str:
    """The answer, from the terminal itself: standard input may have brought the condition."""
    try:
        with open("/dev/tty") as terminal:
            print(question, end="", flush=True)
            return terminal.readline().strip()
    except OSError:
        return ""


@app.command()
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="remove what crashed runs left behind")] = False,
    stages: Annotated[bool, typer.Option("--stages", help="run today's pipeline in views: undeclared inputs")] = False,
    rehash: Annotated[bool, typer.Option("--rehash", help="read every object again and compare its hash")] = False,
    as_json: AsJson = False,
) -> None:
    """What can no longer be rebuilt, what is corrupt, orphaned, unreachable, or differs from git. 1 if anything is."""
    from retrace.doctor import run_doctor

    end(lambda: run_doctor(settings_here(), fix=fix, stages=stages, rehash=rehash, as_json=as_json))


@app.command()
def verify(version: VersionName, as_json: AsJson = False) -> None:
    """Whether a version's signature, hashes and registry entry hold. Ends with 1 if one does not."""
    from retrace.verify import run_verify

    end(lambda: run_verify(settings_here(), version, as_json=as_json))


@app.command()
def attest(
    version: VersionName,
    output: Annotated[Path | None, typer.Argument(help="the file to write (default: print it)")] = None,
) -> None:
    """The version's SLSA provenance in a DSSE envelope, signed with the configured key."""
    from retrace.attest import attest_version, fingerprint

    envelope = attest_version(settings_here(), version)
    if output is None:
        print(envelope)
    else:
        output.write_text(envelope + "\n")
        print(f"{output}: the provenance of {version}, signed by key {fingerprint(settings_here())}")


@app.command()
def score(
    version: VersionName,
    data: Annotated[str, typer.Option("--data", help="a commit of the branch data, or latest")] = "latest",
    as_json: AsJson = False,
) -> None:
    """How a version would do on other data, by its own code and environment."""
    from retrace.score import score_lines

    for line in score_lines(settings_here(), version, data, as_json):
        print(line, flush=True)
