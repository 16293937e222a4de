"""How MLflow is reached: without telemetry, without long silences, with errors that a user can act on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from retrace.errors import RetraceError, TransientError
from retrace.git import locked

_SQLITE = "sqlite:///"
_SCHEMES = re.compile(r"(https?|sqlite|postgresql|mysql|mssql)(\+\w+)?://")
_NO_TELEMETRY = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
_QUIET = {
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_PASSING = {"TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED", "ABORTED"}
_CREDENTIALS = {"UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"}
# What matters in the long messages of urllib3, libpq and SQLAlchemy.
_ESSENCE = re.compile(
    r"Connection refused|Connection reset by peer|Remote end closed connection|timed out|timeout expired"
    r"|too many \d+ error responses|error code \d+|Name or service not known"
    r"|(?:password )?authentication failed for user \S+|No space left on device|Permission denied"
    r"|An error occurred \(\w+\) when calling the \w+ operation"
)
_NO_ACCESS = re.compile(r"authentication failed|SignatureDoesNotMatch|InvalidAccessKeyId|AccessDenied")


class RegistryUnavailable(TransientError):
    """MLflow, its database or its artifact store does not answer, or does not accept the credentials."""


class RegistryRefused(RetraceError):
    """MLflow answers, and says no."""


def address(uri: str) -> str:
    """Where MLflow is, for messages: the URI without user, password and options."""
    return re.sub(r"^([^:/]+://).*@", r"\1", uri).partition("?")[0].partition("#")[0]


def be_quiet() -> None:
    """Keep MLflow quiet for as long as this process lives; what the user set himself stays."""
    os.environ.update(_NO_TELEMETRY)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


@contextmanager
def contact(uri: str, patience: float) -> Iterator[None]:
    """Talk to MLflow; no single answer may take longer than `patience` seconds.

    One try each, because a request whose answer was lost may have been carried out, and a second one would register a
    second version: the caller tries the whole, idempotent operation again. A user's own settings win.
    Raises `RegistryUnavailable` or `RegistryRefused`.
    """
    limits = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, round(patience))),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "PGCONNECT_TIMEOUT": str(max(2, round(patience))),
        "AWS_MAX_ATTEMPTS": "1",
    }
    os.environ.update(_NO_TELEMETRY)
    with _environment(limits | _QUIET):
        try:
            yield
        except RetraceError:
            raise
        # Evaluated only when something was raised: these classes cost imports. The cause is cut off since it may
        # hold the address with its password.
        except _failures() as error:
            raise explain(error, uri) from None


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """MLflow, libpq and boto3 take these settings from the environment alone."""
    added = {key: value for key, value in values.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


def _failures() -> tuple[type[Exception], ...]:
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, BotoCoreError, ClientError, Boto3Error, OSError


def explain(error: Exception, uri: str) -> RetraceError:
    """The error of Retrace for an error of MLflow or of what it stands on."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

    reason = _reason(error, uri)
    code = error.error_code if isinstance(error, MlflowException) else ""
    if code in _CREDENTIALS or _NO_ACCESS.search(reason):
        return RegistryUnavailable(f"MLflow at {address(uri)} does not accept the credentials ({reason}); correct them")
    passing = isinstance(error, (OperationalError, InterfaceError)) or (
        isinstance(error, DBAPIError) and error.connection_invalidated
    )
    if code in _PASSING or passing or not isinstance(error, (MlflowException, SQLAlchemyError)):
        return RegistryUnavailable(
            f"MLflow at {address(uri)} is not available ({reason}); nothing is lost: `retrace sync` writes it later"
        )
    return RegistryRefused(f"MLflow at {address(uri)} refused: {reason}")


def _reason(error: Exception, uri: str) -> str:
    """One short line of an error, without the secrets of the URI."""
    text = " ".join(str(error).split()).partition(" (Background on this error")[0]
    if essence := _ESSENCE.search(text):
        text = essence[0]
    for secret in _secrets(uri):
        text = text.replace(secret, "***")
    return text if len(text) <= 300 else f"{text[:300]}…"


def _secrets(uri: str) -> list[str]:
    userinfo = re.match(r"^[^:/]+://(.*)@", uri)
    found = [userinfo[1], userinfo[1].partition(":")[2]] if userinfo else []
    found.append(uri.partition("?")[2])
    found += [unquote(secret) for secret in found]
    return sorted((secret for secret in found if secret), key=len, reverse=True)


def check_address(uri: str) -> None:
    """Raise `RegistryRefused` for what Retrace cannot keep a registry in."""
    if not _SCHEMES.match(uri):
        raise RegistryRefused(
            f"{address(uri)!r} is no MLflow address; use http://..., postgresql://... or sqlite:////path/mlflow.db"
        )


def prepare(tracking_uri: str, patience: float = 8) -> None:
    """Make the tables of a new store, once, at set-up; nothing when they are there.

    A SQLite file appears whole or not at all, whoever else asks and whenever this process ends.
    Raises `RegistryUnavailable` or `RegistryRefused`.
    """
    check_address(tracking_uri)
    file = sqlite_file(tracking_uri)
    with contact(tracking_uri, patience):
        if file is None:
            probe(tracking_uri)
            _open(tracking_uri)
        elif not file.exists():
            with locked(file.with_name(f"{file.name}.lock")):
                if not file.exists():
                    _make_sqlite(file)


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store, None for a server."""
    return Path(uri.removeprefix(_SQLITE).partition("?")[0]) if uri.startswith(_SQLITE) else None


def probe(uri: str) -> None:
    """One connection to a database: MLflow itself would go on trying for two minutes."""
    import sqlalchemy

    if uri.startswith("http"):
        return
    try:
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)
    except ImportError as error:
        raise RegistryRefused(
            f"the database driver of {address(uri)} is missing ({error}); install it, or name another one in the"
            " address, as in postgresql+psycopg2://..."
        ) from None
    sqlalchemy.inspect(engine).get_table_names()
    engine.dispose()


def probe_artifacts(location: str, patience: float) -> None:
    """One short question to an S3 artifact store: MLflow's own client waits a minute for each answer."""
    parts = urlsplit(location)
    if parts.scheme != "s3":
        return
    import boto3
    from botocore.client import Config
    from botocore.exceptions import ClientError

    config = Config(connect_timeout=patience, read_timeout=patience, retries={"total_max_attempts": 1})
    client = boto3.client("s3", endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL"), config=config)
    # A refusal is an answer too: whoever may write need not be allowed to look.
    with suppress(ClientError):
        client.head_bucket(Bucket=parts.netloc)


def _make_sqlite(file: Path) -> None:
    new = file.with_name(f"{file.name}.new")
    new.unlink(missing_ok=True)
    _open(f"{_SQLITE}{new}")
    new.rename(file)


def _open(uri: str) -> None:
    """MLflow makes missing tables at its first answer."""
    from mlflow import MlflowClient

    MlflowClient(uri).search_experiments(max_results=1)
