"""Files of the LIBSVM format: a line is a label and index:value pairs, indices from 1 on and rising."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from ml2hpc.errors import FileError
from ml2hpc.problem.data.binary import content
from ml2hpc.problem.data.pool import Pool


def libsvm(path: Path) -> Pool:
    """Return the samples of a file; features that a line leaves out are zero, classes are its labels in order.

    Not collective.

    Raises
    ------
    FileError
        If the file is missing or a line is no such line; says which. Or if all have one class.
    """
    if path.is_dir():
        raise FileError(f"-data_path {path}: is a folder; name the LIBSVM file")
    try:
        text = content(path).decode("ascii")
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is no LIBSVM file: byte {error.start} is no text") from error
    labels, rows = [], []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            labels.append(_class(words[0]))
            rows.append(_pairs(words[1:]))
        except ValueError as error:
            raise FileError(f"{path}:{number}: expected 'label index:value ...', {error}") from error
    if not rows:
        raise FileError(f"{path} holds no samples")
    last = max((index for row in rows for index in row), default=0)
    try:
        x = np.zeros((len(rows), last))
    except (MemoryError, ValueError) as error:
        raise FileError(f"{path} has a feature {last}: {len(rows)} samples of so many do not fit memory") from error
    for k, row in enumerate(rows):
        for index, value in row.items():
            x[k, index - 1] = value
    if not x.shape[1]:
        raise FileError(f"{path} holds labels and no features")
    names, numbers = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise FileError(f"{path} holds one class, {names[0]:g}: there is nothing to tell apart")
    classes = tuple(f"{name:g}" for name in names)
    return Pool(x, numbers.astype(np.int64), classes, normalization="standardize")


def _number(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        raise ValueError(f"{word} is no finite number")
    return value


def _class(word: str) -> float:
    value = _number(word)
    if not value.is_integer():
        raise ValueError(f"{word} is no class, which is a whole number")
    return value


def _pairs(words: list[str]) -> dict[int, float]:
    found: dict[int, float] = {}
    last = 0
    for word in words:
        index, colon, value = word.partition(":")
        if not colon or not index.isdigit() or int(index) <= last:
            raise ValueError(f"'{word}' is no pair with an index above {last}")
        last = int(index)
        found[last] = _number(value)
    return found
