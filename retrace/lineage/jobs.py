"""What each job does, in a sentence: the same in Airflow, in what it tells live, and in the committed event."""

from __future__ import annotations

_DONE = {
    "snapshot": "Code and data of a retrain of {model} meet in a commit.",
    "register": "Tags the end of a retrain as the next version of {model}.",
    "gate": "Judges a new version of {model} by the rules of params.yaml.",
    "publish": "Brings MLflow up to what git says of {model}.",
    "cleanup": "Removes what no process holds any more, and lets the next retrain of {model} begin.",
    "promote": "A person's decision: which version of {model} is champion.",
    "rollback": "A person's decision: the version of {model} that was champion before is it again.",
    "audit": "Rebuilds the champion of {model} and the version that went longest without a verdict.",
    "doctor": "Looks for what can no longer be rebuilt and why, and removes what crashed runs left behind.",
    "ingest": "Brings new partitions of the raw data from the source into DVC.",
    "sync": "Brings MLflow and the lineage consumer up to what git says.",
}


def documentation(model: str, job: str) -> str:
    """What a job of ours does."""
    return _DONE[job].format(model=model)


def stage_documentation(address: str, command: str) -> str:
    """What the task of a DVC stage does."""
    return f"DVC stage {address}: {command}"
