"""compose.yaml: Marquez, its web UI and its database, on this machine only. The images cannot be run here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

FILE = Path(__file__).resolve().parents[1] / "compose.yaml"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return dict(yaml.safe_load(FILE.read_text())["services"])


def test_marquez_its_web_ui_and_its_database_find_each_other(services: dict[str, Any]) -> None:
    assert set(services) == {"marquez", "marquez-web", "marquez-database"}
    marquez, web, database = (services[name] for name in ("marquez", "marquez-web", "marquez-database"))
    assert marquez["environment"]["POSTGRES_HOST"] == "marquez-database"
    for name in ("POSTGRES_DB", "POSTGRES_USER", "POSTGRES_PASSWORD"):
        assert marquez["environment"][name] == database["environment"][name]
    assert web["environment"]["MARQUEZ_HOST"] == "marquez"
    assert web["environment"]["MARQUEZ_PORT"] == marquez["environment"]["MARQUEZ_PORT"]


def test_versions_are_pinned_and_ports_open_on_loopback_only(services: dict[str, Any]) -> None:
    for service in services.values():
        assert not service["image"].endswith(("latest", ":")) and ":" in service["image"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert services["marquez"]["image"].startswith("marquezproject/marquez:0.51")


def test_what_the_file_s_head_tells_to_set_are_its_own_ports(services: dict[str, Any]) -> None:
    head = FILE.read_text().partition("services:")[0]
    assert "OPENLINEAGE_URL=http://127.0.0.1:5050" in head and ":-5050}:5000" in services["marquez"]["ports"][0]
    assert "RETRACE_MARQUEZ=http://127.0.0.1:3000" in head and ":-3000}:3000" in services["marquez-web"]["ports"][0]


def test_compose_itself_takes_the_file() -> None:
    """Where a machine has Compose, as a plugin of docker or by itself."""
    plugin = shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True)
    command = ["docker", "compose"] if plugin and plugin.returncode == 0 else ["docker-compose"]
    if shutil.which(command[0]) is None:
        return
    done = subprocess.run([*command, "-f", str(FILE), "config", "--quiet"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
