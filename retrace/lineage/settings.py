"""Where the OpenLineage consumer is: the environment variables that any user of OpenLineage or of its provider sets.

They stand apart from the client: they are looked at in many places, and importing requests costs a tenth of a second.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from retrace.errors import RetraceError

SPOOL_TRANSPORT = "retrace.lineage.spool.SpoolTransport"
DEFAULT_ENDPOINT = "api/v1/lineage"
_AIRFLOW_TRANSPORT = "AIRFLOW__OPENLINEAGE__TRANSPORT"
_CA_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
_KEY_NAMES = ("apiKey", "apikey", "api_key")


class ConsumerMisconfigured(RetraceError):
    """The settings of the OpenLineage consumer make no sense."""


@dataclass(frozen=True)
class ConsumerSettings:
    """Where a consumer is and how to talk to it; `timeout` is the user's own, `verify` what requests calls so."""

    url: str
    endpoint: str = DEFAULT_ENDPOINT
    api_key: str | None = field(default=None, repr=False)
    timeout: float | None = None
    verify: bool | str = True

    @staticmethod
    def of(environ: Mapping[str, str]) -> ConsumerSettings | None:
        """The consumer that the environment names, None without one: `OPENLINEAGE_URL`, else Airflow's transport.

        Raises `ConsumerMisconfigured`.
        """
        given = _airflow_transport(environ)
        if environ.get("OPENLINEAGE_URL") not in (None, "", given.get("url")):
            given = {"url": environ["OPENLINEAGE_URL"]}  # another consumer: nothing else of the transport is for it
        if not given.get("url"):
            return None
        return ConsumerSettings(
            url=_checked_url(str(given["url"])),
            endpoint=str(environ.get("OPENLINEAGE_ENDPOINT") or given.get("endpoint") or DEFAULT_ENDPOINT).strip("/"),
            api_key=_checked_key(environ.get("OPENLINEAGE_API_KEY") or _key_of(given.get("auth"))),
            timeout=_checked_timeout(given.get("timeout")),
            verify=_verification(given.get("verify", True), environ),
        )

    @property
    def shown(self) -> str:
        """The address for messages and links: it holds no credentials."""
        return self.url


def _airflow_transport(environ: Mapping[str, str]) -> Mapping[str, Any]:
    text = environ.get(_AIRFLOW_TRANSPORT)
    if not text:
        return {}
    try:
        transport = json.loads(text)
    except ValueError:
        raise ConsumerMisconfigured(f"{_AIRFLOW_TRANSPORT} is not JSON; correct it or set OPENLINEAGE_URL") from None
    if not isinstance(transport, dict) or transport.get("type") not in ("http", SPOOL_TRANSPORT):
        return {}
    return transport


def _checked_url(text: str) -> str:
    url = text.strip().rstrip("/")
    advice = "set OPENLINEAGE_URL to an address such as http://marquez:5000"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ConsumerMisconfigured(f"the OpenLineage consumer's address cannot be read; {advice}") from None
    if "@" in parts.netloc:
        raise ConsumerMisconfigured(
            "the OpenLineage consumer's address holds credentials; take them out and set OPENLINEAGE_API_KEY"
        )
    if parts.query or parts.fragment:
        raise ConsumerMisconfigured(
            "the OpenLineage consumer's address has a query or a fragment; take it out, and set a key as"
            " OPENLINEAGE_API_KEY"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise ConsumerMisconfigured(f"the OpenLineage consumer's address {url!r} is not http or https; {advice}")
    return url


def _key_of(auth: object) -> str | None:
    if not isinstance(auth, dict):
        return None
    return next((str(auth[name]) for name in _KEY_NAMES if auth.get(name)), None)


def _checked_key(key: str | None) -> str | None:
    stripped = (key or "").strip()
    # requests would refuse it with a message that shows it
    if not (stripped.isascii() and stripped.isprintable()):
        raise ConsumerMisconfigured("OPENLINEAGE_API_KEY holds characters that no header can carry; correct it")
    return stripped or None


def _checked_timeout(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ConsumerMisconfigured(f"the timeout in {_AIRFLOW_TRANSPORT} must be a number of seconds above 0")
    return float(value)


def _verification(given: object, environ: Mapping[str, str]) -> bool | str:
    """`verify` for requests, settled here so that it follows the same environment as all the rest."""
    if given is False or (isinstance(given, str) and given.lower() not in ("", "true")):
        return False if str(given).lower() == "false" else str(given)
    return next((environ[name] for name in _CA_BUNDLES if environ.get(name)), True)
