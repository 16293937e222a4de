"""Biopsies: is a tumour malignant? scikit-learn's Wisconsin data, a few a month."""
