"""What a stage ran on: processor, system, libc and Python, as a record keeps them."""

from __future__ import annotations

import platform
import re
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")


def _processor() -> str:
    if _CPU_INFO.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", _CPU_INFO.read_text(errors="replace"), re.MULTILINE)
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


def describe(environment: Path) -> dict[str, str]:
    """The machine and the Python of a stages' environment. No host name, user or path: records are shared."""
    config = (environment / "pyvenv.cfg").read_text()
    version = re.search(r"^version(?:_info)?\s*=\s*(\S+)", config, re.MULTILINE)
    libc = " ".join(part for part in platform.libc_ver() if part)
    return {
        "processor": _processor(),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "libc": libc,
        "python": version.group(1) if version else "",
    }
