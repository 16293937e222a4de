"""The OpenLineage consumer (Marquez or any other) as a client sees it: posting an event, asking back."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any
from urllib.parse import quote

import requests
from requests.auth import AuthBase

from retrace.errors import RetraceError, TransientError
from retrace.lineage.settings import ConsumerMisconfigured, ConsumerSettings

__all__ = [
    "Consumer",
    "ConsumerMisconfigured",
    "ConsumerRefuses",
    "ConsumerSettings",
    "ConsumerUnavailable",
    "EventRejected",
]

_CONNECT_SECONDS = 2.0
_BUSY = {408, 429, 502, 503, 504}
_NO_ACCESS = {401, 403}
_WRONG_ADDRESS = {404, 405, 410, *range(300, 400)}
# What matters in the long messages of requests and urllib3, which also hold the address and objects' numbers.
_ESSENCE = re.compile(
    r"Connection refused|Connection reset by peer|Remote end closed connection|No route to host"
    r"|Network is unreachable|Name or service not known|Temporary failure in name resolution"
    r"|CERTIFICATE_VERIFY_FAILED|timed out"
)


class ConsumerUnavailable(TransientError):
    """The consumer cannot be reached, does not answer in time, or says that it cannot work now."""


class ConsumerRefuses(RetraceError):
    """The consumer answers, but takes no event from us: no access, an untrusted certificate or a wrong address."""


class EventRejected(RetraceError):
    """The consumer takes events, but not this one."""


class _Bearer(AuthBase):
    """The key as a bearer token; as an `auth` object, since requests lets ~/.netrc replace a mere header."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class Consumer:
    """A consumer over HTTP. No request takes longer than `patience` seconds, or the timeout that the user set."""

    def __init__(self, settings: ConsumerSettings, patience: float) -> None:
        self.settings = settings
        self._patience = settings.timeout or patience
        self._session = requests.Session()
        if settings.api_key is not None:
            self._session.auth = _Bearer(settings.api_key)

    def close(self) -> None:
        """Give the connections back."""
        self._session.close()

    def post(self, event: Mapping[str, Any]) -> None:
        """Deliver one event. Raises `ConsumerUnavailable`, `ConsumerRefuses` or `EventRejected`."""
        response = self._request("POST", self.settings.endpoint, json.dumps(event).encode())
        if response.status_code in _WRONG_ADDRESS:
            raise ConsumerRefuses(
                f"{self.settings.shown} takes no events at {self.settings.endpoint} (status {response.status_code});"
                " correct OPENLINEAGE_URL or OPENLINEAGE_ENDPOINT"
            )
        if not 200 <= response.status_code < 300:
            raise EventRejected(
                f"the OpenLineage consumer at {self.settings.shown} rejected the event"
                f" (status {response.status_code}: {self._said(response)})"
            )

    def run(self, run_id: str) -> dict[str, Any] | None:
        """What the consumer holds of a run, None when it does not know it. Raises as `post` does."""
        return self._get(f"jobs/runs/{_quoted(run_id)}")

    def upstream(self, run_id: str, depth: int) -> dict[str, Any]:
        """The runs that a run was made from, so many steps back; `runs` is empty for an unknown run."""
        return self._get(f"runlineage/upstream?runId={_quoted(run_id)}&depth={depth}") or {"runs": []}

    def dataset(self, namespace: str, name: str) -> dict[str, Any] | None:
        """A dataset as it is now, None when the consumer does not know it."""
        return self._get(f"namespaces/{_quoted(namespace)}/datasets/{_quoted(name)}")

    def versions(self, namespace: str, name: str, limit: int = 100, offset: int = 0) -> dict[str, Any] | None:
        """One page of a dataset's versions, the newest first, None when the consumer does not know the dataset."""
        page = f"versions?limit={limit}&offset={offset}"
        return self._get(f"namespaces/{_quoted(namespace)}/datasets/{_quoted(name)}/{page}")

    def job(self, namespace: str, name: str) -> dict[str, Any] | None:
        """A job as it is now, None when the consumer does not know it."""
        return self._get(f"namespaces/{_quoted(namespace)}/jobs/{_quoted(name)}")

    def _get(self, path: str) -> dict[str, Any] | None:
        response = self._request("GET", f"api/v1/{path}", None)
        if response.status_code == 404:
            return None
        if response.status_code >= 500:
            raise self._unavailable(f"status {response.status_code}")
        try:
            answer = response.json() if response.status_code == 200 else None
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ConsumerRefuses(
                f"{self.settings.shown} does not answer as Marquez does (status {response.status_code} for"
                f" {response.request.method} {path.partition('?')[0]}); correct OPENLINEAGE_URL"
            )
        return answer

    def _request(self, method: str, path: str, body: bytes | None) -> requests.Response:
        try:
            response = self._within_patience(method, f"{self.settings.url}/{path}", body)
        except (requests.RequestException, OSError) as error:
            raise self._explained(error) from None  # the cause may show what is not to be shown
        if response.status_code in _NO_ACCESS:
            raise ConsumerRefuses(
                f"the OpenLineage consumer at {self.settings.shown} does not accept the credentials"
                f" (status {response.status_code}); correct OPENLINEAGE_API_KEY"
            )
        if response.status_code in _BUSY:
            raise self._unavailable(f"status {response.status_code}")
        return response

    def _within_patience(self, method: str, url: str, body: bytes | None) -> requests.Response:
        """One request, in a thread: the timeouts of a socket bound neither a slow drip nor the look-up of a name."""
        answer: Future[requests.Response] = Future()

        def ask() -> None:
            try:
                response = self._session.request(
                    method,
                    url,
                    data=body,
                    headers={"Content-Type": "application/json", "Accept": "application/json"},
                    timeout=(min(_CONNECT_SECONDS, self._patience), self._patience),
                    verify=self.settings.verify,
                    allow_redirects=False,  # a POST would become a GET, and the key go elsewhere
                )
            except BaseException as error:  # noqa: BLE001 - it is raised again where the answer is awaited
                answer.set_exception(error)
            else:
                answer.set_result(response)

        threading.Thread(target=ask, name="openlineage-consumer", daemon=True).start()
        return answer.result(self._patience)

    def _explained(self, error: Exception) -> RetraceError:
        essence = _ESSENCE.search(str(error))
        if essence and essence[0] == "CERTIFICATE_VERIFY_FAILED":
            return ConsumerRefuses(
                f"the certificate of the OpenLineage consumer at {self.settings.shown} is not trusted;"
                " set REQUESTS_CA_BUNDLE to the file of its authority"
            )
        if "CA certificate bundle" in str(error):
            return ConsumerRefuses(
                f"the file of certificate authorities for {self.settings.shown} is not there; correct"
                " REQUESTS_CA_BUNDLE or SSL_CERT_FILE"
            )
        if isinstance(error, TimeoutError):
            return self._unavailable("timed out")
        return self._unavailable(essence[0] if essence else type(error).__name__)

    def _unavailable(self, reason: str) -> ConsumerUnavailable:
        return ConsumerUnavailable(
            f"the OpenLineage consumer at {self.settings.shown} is not available ({reason}); try again when it is"
        )

    def _said(self, response: requests.Response) -> str:
        """The beginning of what the consumer answered, without our key, should it repeat it."""
        text = " ".join(response.text.split())
        if self.settings.api_key is not None:
            text = text.replace(self.settings.api_key, "***")
        return text if len(text) <= 200 else f"{text[:200]}…"


def _quoted(name: str) -> str:
    return quote(name, safe="")
