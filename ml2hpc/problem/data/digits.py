"""The 1797 digits of 8 x 8 pixels that scikit-learn brings along."""

from __future__ import annotations

import importlib

import numpy as np

from ml2hpc.errors import UserError
from ml2hpc.problem.data.pool import Pool


def digits() -> Pool:
    """Return the digits. Not collective.

    Raises
    ------
    UserError
        If scikit-learn is not installed.
    """
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise UserError("-data_set digits needs scikit-learn: python -m pip install 'ml2hpc[digits]'") from error
    found = datasets.load_digits()
    x = np.asarray(found.images, dtype=np.float64)[:, None]
    labels = np.asarray(found.target, dtype=np.int64)
    return Pool(x, labels, tuple("0123456789"), scale=16.0, normalization="center")
