"""Fill the table biopsies: python -m pipeline.source SQLALCHEMY_URL"""

import sys

import pandas as pd
import sqlalchemy
from sklearn.datasets import load_breast_cancer

bunch = load_breast_cancer(as_frame=True)
rows = bunch.data.iloc[:, :4].set_axis(["radius", "texture", "perimeter", "area"], axis="columns")
rows["malignant"] = 1 - bunch.target
rows["biopsy"] = range(len(rows))
rows["taken"] = (pd.Timestamp("2020-01-01") + pd.to_timedelta(rows["biopsy"] * 6, unit="h")).dt.strftime(
    "%Y-%m-%d %H:%M:%S"
)
rows.to_sql("biopsies", sqlalchemy.create_engine(sys.argv[1]), index=False)
