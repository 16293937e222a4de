"""Fit on all months but the newest: python -m pipeline.train MODEL"""

import sys
from pathlib import Path

import pandas as pd
import sklearn.linear_model
import skops.io
import yaml
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

model = sys.argv[1]
settings = yaml.safe_load(Path("params.yaml").read_text())["models"][model]["train"]
months = sorted(Path("data/raw/biopsies").glob("*.parquet"))[:-1]
rows = pd.concat([pd.read_parquet(month) for month in months])
estimator = make_pipeline(StandardScaler(), sklearn.linear_model.LogisticRegression(C=settings["C"]))
estimator.fit(rows[settings["columns"]], rows["malignant"])
Path("models").mkdir(exist_ok=True)
Path(f"models/{model}.skops").write_bytes(skops.io.dumps(estimator))
print(f"{len(months)} months, {len(rows)} biopsies")
