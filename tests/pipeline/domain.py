"""A folder like a checkout, to run the domain's stages in as the engine does: as programs, in their own environment."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

ROOT = Path(__file__).parents[2]
PINNED = {
    **dict.fromkeys(["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"], "1"),
    "PYTHONHASHSEED": "0",
    "TZ": "UTC",
    "LC_ALL": "C.UTF-8",
}
STAGES = ("validate", "features", "train", "evaluate")
Params = dict[str, Any]


def environment(**more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, **PINNED, **more}


def resolve(text: str, model: str, settings: Params) -> str:
    """What DVC makes of ${key} and ${item.a.b} in a stage of a foreach."""

    def value(match: re.Match[str]) -> str:
        found: Any = settings
        for name in match[1].split(".")[1:]:
            found = found[name]
        return model if match[1] == "key" else str(found)

    return re.sub(r"\$\{([\w.]+)\}", value, text)


class Project:
    """A folder like a checkout, made unless it is there: pipeline/, params.yaml, dvc.yaml and data."""

    def __init__(self, folder: Path, python: Path, raw: Path | None = None) -> None:
        self.folder, self.python = folder, python
        if not folder.exists():
            self._make(raw)
        self.params: Params = yaml.safe_load((folder / "params.yaml").read_text())

    def _make(self, raw: Path | None) -> None:
        self.folder.mkdir(parents=True)
        shutil.copytree(ROOT / "pipeline", self.folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("params.yaml", "dvc.yaml"):
            shutil.copy(ROOT / name, self.folder / name)
        if raw is not None:
            (self.folder / "data").mkdir()
            (self.folder / "data/raw").symlink_to(raw)

    def edit(self, change: Callable[[Params], None]) -> Project:
        change(self.params)
        (self.folder / "params.yaml").write_text(yaml.safe_dump(self.params, sort_keys=False))
        return self

    def run(self, stage: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the pipeline in the project's folder, as a developer without DVC would."""
        command = [str(self.python), "-m", f"pipeline.{stage}", *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment(**env), capture_output=True, text=True)

    def succeed(self, stage: str, *arguments: str, **env: str) -> str:
        done = self.run(stage, *arguments, **env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def script(self, code: str) -> Any:
        """What a piece of code, run in the stages' environment, prints last, as JSON."""
        done = subprocess.run(
            [str(self.python), "-c", code], cwd=self.folder, env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def declared(self, stage: str, model: str) -> dict[str, Any]:
        """The stage of one model, as dvc.yaml declares it."""
        body = yaml.safe_load((self.folder / "dvc.yaml").read_text())["stages"][stage]["do"]
        settings = self.params["models"][model]

        def paths(key: str) -> list[str]:
            items = [next(iter(item)) if isinstance(item, dict) else item for item in body.get(key, [])]
            return [resolve(item, model, settings) for item in items]

        outputs = [*paths("outs"), *paths("metrics"), *paths("plots")]
        lists = {"deps": paths("deps"), "params": paths("params"), "outs": outputs}
        return {"cmd": resolve(body["cmd"], model, settings), **lists}

    def run_alone(self, stage: str, model: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run a stage in a folder that holds only what dvc.yaml declares for it, then take its outputs over."""
        declared = self.declared(stage, model)
        for path in declared["deps"]:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to((self.folder / path).resolve())
        (folder / "params.yaml").write_text(yaml.safe_dump(self.cut(declared["params"])))
        inputs = set(folder.rglob("*"))
        command = declared["cmd"].replace("python", str(self.python), 1).split()
        done = subprocess.run(
            command, cwd=folder, env=environment(PYTHONDONTWRITEBYTECODE="1"), capture_output=True, text=True
        )
        written = {str(path.relative_to(folder)) for path in set(folder.rglob("*")) - inputs if path.is_file()}
        for path in declared["outs"]:
            if (folder / path).exists():
                (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copytree(folder / path, self.folder / path) if (folder / path).is_dir() else shutil.copy(
                    folder / path, self.folder / path
                )
                written -= {name for name in written if name == path or name.startswith(f"{path}/")}
            elif done.returncode == 0:
                done.returncode, done.stderr = 1, f"{stage} did not write {path}"
        assert not written, f"{stage} wrote what dvc.yaml does not declare: {written}"
        return done

    def cut(self, keys: list[str]) -> Params:
        """params.yaml with the declared keys and no more."""
        result: Params = {}
        for key in keys:
            source, target = self.params, result
            *parents, last = key.split(".")
            for name in parents:
                source, target = source[name], target.setdefault(name, {})
            target[last] = copy.deepcopy(source[last])
        return result


def choose(raw: Path, folder: Path, months: list[str], share: int = 1) -> Path:
    """Some months of the raw data; of the flights, every `share`-th aircraft."""
    for dataset in ("flights", "weather"):
        (folder / dataset).mkdir(parents=True)
        for month in months:
            rows = pd.read_parquet(raw / dataset / f"{month}.parquet")
            if dataset == "flights":
                number = rows["tail_number"].str.extract(r"^N(\d{1,3})", expand=False).astype(float)
                rows = rows[(number % share == 0) | (share == 1)]
            rows.to_parquet(folder / dataset / f"{month}.parquet", index=False)
    return folder


def cheap(params: Params) -> None:
    """As few trials and trees as show what is to be shown."""
    for model in params["models"].values():
        model["train"] |= {"trials": 4, "batch": 2, "random_trials": 2, "tuning_rows": 5000}
        model["train"]["fixed"]["max_iter"] = 20
