"""The command `retrace`. Each command imports what it needs when it runs: `retrace log` must not wait for Airflow."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

from retrace.config import Settings, find_root
from retrace.errors import RetraceError


class VarUnusable(RetraceError):
    """The folder of this machine's state cannot be made, or cannot be written."""


class _Stoppable(TyperGroup):
    """Commands that say so when they are stopped. Typer would take every signal for Ctrl-C and say nothing."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            print("stopped", file=sys.stderr)
            raise typer.Exit(getattr(interrupt, "exit_code", 130)) from None


app = typer.Typer(
    cls=_Stoppable,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Retrain on a schedule, know what every model version was made of, and make it again.",
)
data_app = typer.Typer(no_args_is_help=True, help="The raw data in this checkout.", rich_markup_mode=None)
app.add_typer(data_app, name="data")

VersionName = Annotated[str, typer.Argument(help="such as late_arrival@v3; @champion and @latest work too")]
Because = Annotated[str, typer.Option("--because", help="the reason, kept in the assignment's tag")]
AsJson = Annotated[bool, typer.Option("--json", help="as JSON, for programs")]


def settings_here() -> Settings:
    """The settings of the project that the command is called in."""
    return Settings.load(find_root(Path.cwd()))


def _date(value: str | None, option: str) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise typer.BadParameter(f"{value!r} is not a date such as 2013-07-01", param_hint=option) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def end(work: Callable[[], int]) -> NoReturn:
    """Run to the end and leave with its exit code."""
    raise typer.Exit(work())


@app.command()
def ingest(
    until: Annotated[str | None, typer.Option(help="fetch what ended by this date (default: now)")] = None,
    since: Annotated[str | None, typer.Option(help="fetch again from this date (default: where the data ends)")] = None,
) -> None:
    """Fetch new partitions of the raw data and commit them on the branch data."""
    from retrace.console import run_ingest

    first, last = _date(since, "--since"), _date(until, "--until")
    end(lambda: run_ingest(settings_here(), last, first))


@app.command()
def retrain(
    model: Annotated[list[str], typer.Argument(help="the model or models to retrain")],
    as_of: Annotated[str | None, typer.Option(help="train on what was known on this date (never promotes)")] = None,
) -> None:
    """Retrain a model by its Airflow DAG, in this process."""
    from retrace.console import run_retrain

    moment = _date(as_of, "--as-of")
    end(lambda: run_retrain(settings_here(), model, moment))


@app.command()
def log(model: Annotated[str | None, typer.Argument()] = None, as_json: AsJson = False) -> None:
    """List versions: when, data through, metrics, alias."""
    from retrace.show import log_lines

    for line in log_lines(settings_here(), model, as_json):
        print(line)


@app.command()
def show(
    version: VersionName,
    as_json: AsJson = False,
    form: Annotated[
        Literal["text", "json", "slsa"], typer.Option("--format", help="slsa: an in-toto statement")
    ] = "text",
) -> None:
    """The whole record of a version, from git alone."""
    if form == "slsa":
        from retrace.attest import statement_of

        print(statement_of(settings_here(), version))
        return
    from retrace.show import show_lines

    for line in show_lines(settings_here(), version, as_json or form == "json"):
        print(line)


@app.command()
def lineage(
    version: VersionName,
    up: Annotated[bool, typer.Option("--up", help="only what it was made of")] = False,
    down: Annotated[bool, typer.Option("--down", help="only what it led to")] = False,
    columns: Annotated[bool, typer.Option("--columns", help="also the source columns of each feature")] = False,
    form: Annotated[Literal["text", "json", "mermaid"], typer.Option("--format")] = "text",
) -> None:
    """What a version was made of, back to the partitions, and what it led to, from git alone."""
    from retrace.trace_text import lineage_lines

    wanted = {"up": up or columns or not down, "down": down or not up}
    for line in lineage_lines(settings_here(), version, **wanted, columns=columns, form=form):
        print(line)


@app.command()
def card(version: VersionName) -> None:
    """The model card of a version in Markdown, from git alone."""
    from retrace.card import card_of

    print(card_of(settings_here(), version), end="")


@app.command()
def checkout(
    version: VersionName,
    directory: Annotated[
        Path | None, typer.Argument(help="a new folder (default: one beside the project, named after the version)")
    ] = None,
) -> None:
    """Check a version out, with its data, features and model, into a new directory."""
    from retrace.checkout import checkout_version

    print(checkout_version(settings_here(), version, directory))


@app.command()
def promote(version: VersionName, because: Because) -> None:
    """Make a version the champion."""
    from retrace.promote import promote_version

    for line in promote_version(settings_here(), version, because):
        print(line)


@app.command()
def rollback(model: str, because: Because) -> None:
    """Give the alias champion back to the version that held it before."""
    from retrace.promote import roll_back

    for line in roll_back(settings_here(), model, because):
        print(line)


@app.command()
def sync(
    model: Annotated[str | None, typer.Argument(help="only this model, and only MLflow")] = None,
) -> None:
    """Bring MLflow and the lineage consumer up to what git says: what an outage left out, put in."""
    from retrace.progress import overwritten
    from retrace.sync import sync as brought_up

    with overwritten(sys.stderr) as follow:
        for line in brought_up(settings_here(), model, follow):
            follow("")
            print(line, flush=True)


@data_app.command("pull")
def data_pull() -> None:
    """Bring the newest raw data into this checkout, so that `dvc repro` works here."""
    from retrace.pull import pull_data

    for path in pull_data(settings_here()):
        print(f"{path} is here")


@app.command()
def environment() -> None:
    """Make the stages' environment of this checkout if need be, and print the folder of its commands."""
    from retrace.environment import EnvironmentLock, ensure

    settings = settings_here()
    print(ensure(EnvironmentLock.of_folder(settings.root), settings.environments) / "bin")


@app.command()
def demo() -> None:
    """Play the demo of params.yaml: fill the source, ingest, retrain, and again."""
    from retrace.console import run_demo

    end(lambda: run_demo(settings_here()))


@app.command("demo-reset", hidden=True)
def demo_reset(yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False) -> None:
    """Remove all that runs, versions and ingestion left in this checkout and in var/; on a terminal, ask first."""
    from retrace.console import run_reset

    ask = _answer if sys.stdin.isatty() and not yes else None
    end(lambda: run_reset(settings_here(), ask))


def _answer(question: str) -> str:
    try:
        return input(question)
    except EOFError:
        print()
        return ""


@app.command()
def up() -> None:
    """Start Airflow (scheduler and UI) and the MLflow UI; Ctrl-C or `retrace down` ends all of it."""
    from retrace.console import run_up

    end(lambda: run_up(settings_here()))


@app.command()
def down() -> None:
    """End what `retrace up` started, from another terminal."""
    from retrace.console import run_down

    raise typer.Exit(run_down(settings_here()))


def main() -> None:
    """Run the command; a failure is one line on standard error and an exit code that is not 0."""
    import retrace.cli_past  # noqa: F401 - adds its commands

    try:
        _run()
    except RetraceError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


def _run() -> None:
    """Run the command; that `var` cannot be used is told as such, whatever file was the first to be refused."""
    try:
        app()
    except OSError as error:
        if isinstance(error.filename, str):
            _check_var(Path(error.filename))
        raise


def _check_var(refused: Path) -> None:
    """Raise `VarUnusable` if a file was refused because `var`, where it was to be, takes none."""
    var = settings_here().var
    if not refused.is_relative_to(var) and not var.is_relative_to(refused):
        return
    try:
        var.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=var):
            pass
    except OSError as error:
        raise VarUnusable(
            f"{var} takes none of Retrace's files ({error.strerror}); set RETRACE_VAR to a folder that you can write"
        ) from None


if __name__ == "__main__":
    from retrace.cli import main as run  # under the name that `retrace.cli_past` knows this module by

    run()
