"""Score on the newest month: python -m pipeline.evaluate MODEL"""

import hashlib
import json
import sys
from pathlib import Path

import pandas as pd
import skops.io
import yaml

model = sys.argv[1]
columns = yaml.safe_load(Path("params.yaml").read_text())["models"][model]["train"]["columns"]
newest = sorted(Path("data/raw/biopsies").glob("*.parquet"))[-1]
rows = pd.read_parquet(newest)
path = Path(f"models/{model}.skops")
estimator = skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path))
right = float((estimator.predict(rows[columns]) == rows["malignant"]).mean())
shown = rows[["biopsy", "malignant"]].to_csv(index=False).encode()
written = {
    f"metrics/{model}.json": {"holdout": {"accuracy": round(right, 6)}},
    f"reports/{model}/holdout.json": {
        "partition": newest.stem,
        "rows": len(rows),
        "digest": hashlib.sha256(shown).hexdigest(),
    },
    f"reports/{model}/serving.json": {
        "columns": [(column, "float") for column in columns],
        "example": rows[columns].head(2).to_dict("records"),
    },
}
for name, content in written.items():
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(json.dumps(content, indent=1))
print(f"accuracy {right:.3f}")
