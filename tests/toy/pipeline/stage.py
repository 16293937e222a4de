"""The stages, and what a test can make them do wrong: `action` under a stage in params.yaml."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

RAW = Path("data/raw/events")


def settings(model: str, stage: str) -> dict:
    """The model's section; JSON is YAML too, so the toy needs no YAML library."""
    return json.loads(Path("params.yaml").read_text())["models"][model][stage]


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def digest(folder: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.iterdir()))).hexdigest()


def act(action: str | None, model: str) -> None:
    if action == "exit":
        sys.exit("bad luck in the stage")
    if action == "raise":
        raise RuntimeError("bad luck in the stage")
    if action == "edit-input":
        path = sorted(RAW.iterdir())[0]
        path.chmod(0o644)
        path.write_bytes(path.read_bytes() + b"x")
    if action == "link-input":
        os.link(sorted(RAW.iterdir())[0], os.environ["RETRACE_SCRATCH"] + ".link")
    if action == "write-elsewhere":
        write("notes.txt", "surprise")
    if action == "sleep":
        Path(os.environ["RETRACE_SCRATCH"]).mkdir(parents=True, exist_ok=True)
        (Path(os.environ["RETRACE_SCRATCH"]) / f"{model}.pid").write_text(str(os.getpid()))
        subprocess.run(["sleep", "600"], check=False)
    if action == "wait":  # until the test lets it go on, by a file `<model>.go`
        scratch = Path(os.environ["RETRACE_SCRATCH"])
        scratch.mkdir(parents=True, exist_ok=True)
        (scratch / f"{model}.pid").write_text(str(os.getpid()))
        while not (scratch / f"{model}.go").exists():
            time.sleep(0.05)
    if action == "fill-disk":
        Path(f"models/{model}.skops").write_bytes(os.urandom(64 << 20))
    if action == "no-output":
        Path(f"reports/{model}/validation.json").unlink()
    if action == "environment":
        print(json.dumps(dict(os.environ)))


def validate(model: str) -> None:
    names = [path.name for path in sorted(RAW.iterdir())]
    failed = settings(model, "validate").get("action") == "exit"
    report = settings(model, "validate").get("report", {"passed": not failed, "partitions": names})
    write(f"reports/{model}/validation.json", json.dumps(report))


def features(model: str) -> None:
    for path in sorted(RAW.iterdir()):
        write(f"data/features/{model}/{path.stem}.txt", hashlib.sha256(path.read_bytes()).hexdigest())


def train(model: str) -> None:
    seed = settings(model, "train").get("seed", 0)
    write(f"models/{model}.skops", f"{seed} {digest(Path('data/features') / model)}\n")


def evaluate(model: str) -> None:
    known = sorted((Path("data/features") / model).iterdir())
    quality = settings(model, "train").get("quality", 0.8)
    Path(f"models/{model}.skops").read_text()
    holdout = {"partition": known[-1].stem, "rows": 1, "digest": known[-1].read_text()}
    write(f"reports/{model}/holdout.json", json.dumps(holdout))
    write(f"reports/{model}/serving.json", json.dumps({"columns": [["size", "float"]], "example": [{"size": 1.0}]}))
    write(f"data/predictions/{model}.txt", digest(known[-1].parent))
    write(f"metrics/{model}.json", json.dumps({"holdout": {"accuracy": quality, "cost": 1 - quality}}))
    print(f"evaluated {model}: accuracy {quality}")


def main() -> None:
    stage, model = sys.argv[1:]
    {"validate": validate, "features": features, "train": train, "evaluate": evaluate}[stage](model)
    act(settings(model, stage).get("action"), model)


if __name__ == "__main__":
    main()
