"""DVC's work on one workspace, in a process of its own that can be killed whole.

Started by `retrace.process` as `python -m retrace.child` in a session of its own, with the workspace as its working
directory. It reads one request from standard input, says what it is doing in JSON lines on the descriptor that the
request names, and ends. Standard input stays open as long as the parent lives: when it closes, everything that was
started here is killed, so a stage never outlives a task that was killed with -9.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from retrace.child.declare import declare
from retrace.child.fetch import fetch
from retrace.child.objects import look_after
from retrace.child.purge import purge
from retrace.child.report import Failure, Reporter, disk_full
from retrace.child.stage_run import StageRun
from retrace.child.store import Store
from retrace.child.tame import leave_remotes_as_they_are, note_partial_copies, read_yaml_faster, tame_s3_client


def _die_with_parent() -> None:
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)


def _run_stage(repo: Any, store: Store, request: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    return StageRun(repo, store, request, reporter).run()


def _add_partitions(repo: Any, store: Store, request: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Add new files to tracked directories of which the workspace has only those files, and push."""
    for directory, paths in sorted(request["add"].items()):
        pointer = Path(f"{directory}.dvc")
        if pointer.exists():
            with store.reached():
                store.directory(directory, repo.find_outs_by_path(directory)[0].hash_info.value)
        reporter.phase(f"add {directory}")
        repo.add(paths if pointer.exists() else [directory])
    pointers = {}
    for directory in sorted(request["add"]):
        reporter.phase(f"push {directory}")
        store.push(f"{directory}.dvc", {directory: repo.find_outs_by_path(directory)[0].hash_info.value})
        pointers[f"{directory}.dvc"] = Path(f"{directory}.dvc").read_text()
    return {"pointers": pointers}


def _bring(repo: Any, store: Store, request: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Bring tracked paths into a checkout and verify each file against the record."""
    reporter.phase("pull")
    wanted = {}
    for path in request["paths"]:
        wanted[path] = repo.find_outs_by_path(path)[0].hash_info.value
    store.verify(store.pull(wanted), request["sha256"])
    return {"paths": sorted(wanted)}


_OPERATIONS = {
    "stage": _run_stage,
    "add": _add_partitions,
    "bring": _bring,
    "fetch": fetch,
    "declare": declare,
    "objects": look_after,
    "purge": purge,
}


def _remove_partial_copies(repo: Any, names: list[str]) -> None:
    for path in Path(repo.cache.local.path).glob("*/*.tmp"):
        if path.name in names:
            path.unlink(missing_ok=True)


def main() -> None:
    from dvc.repo import Repo  # while the parent makes the workspace

    line = sys.stdin.buffer.readline()
    if not line:
        return  # the parent has ended, or has nothing to do after all
    request = json.loads(line)
    reporter = Reporter(os.fdopen(request["report_to"], "w"))
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.chdir(request["workspace"])
    os.environ["DVC_SITE_CACHE_DIR"] = request["site_cache"]
    try:
        if request["remote"]["endpoint"] is not None:
            import s3fs  # noqa: F401
        tame_s3_client()
        read_yaml_faster()
        repo = Repo(".")
        repo.scm_context.quiet = True
        partial_copies = note_partial_copies()
        leave_remotes_as_they_are()
        store = Store(repo, request, reporter)
        try:
            result = _OPERATIONS[request["operation"]](repo, store, request, reporter)
        except Exception:
            _remove_partial_copies(repo, partial_copies)
            raise
        reporter.say({"done": result})
    except Failure as failure:
        reporter.say(failure.report)
    except Exception as error:
        failed = disk_full(error)
        if failed is None:
            reporter.say({"error": "unexpected", "reason": f"{type(error).__name__}: {' '.join(str(error).split())}"})
            raise
        reporter.say(failed.report)


if __name__ == "__main__":
    main()
