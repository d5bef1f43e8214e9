"""What data sets are made of: a pool of samples with classes, its split and its normalisation."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ml2hpc.errors import OptionsError
from ml2hpc.problem.resnet import Samples

Array = NDArray[Any]
Normalization = Literal["none", "center", "standardize"]


@dataclass(frozen=True)
class Pool:
    """Samples as they were drawn or read.

    Attributes
    ----------
    x
        Shape (n, *inputs): numbers, or bytes of images.
    labels
        Shape (n,), int64, in 0..classes-1.
    classes
        Names of the classes.
    scale
        x / scale is what networks see: 255 for images of bytes.
    normalization
        What is done to it unless an option says otherwise.
    test
        A test set of its own, where the set comes with one.
    """

    x: Array
    labels: Array
    classes: tuple[str, ...]
    scale: float = 1.0
    normalization: Normalization = "none"
    test: Pool | None = None

    @property
    def checksum(self) -> str:
        """Eight hexadecimal digits of all samples and labels."""
        found = 0
        for pool in (self, *([self.test] if self.test is not None else [])):
            for array in (pool.x, pool.labels):
                found = zlib.crc32(np.ascontiguousarray(array).tobytes(), found)
        return f"{found:08x}"


@dataclass(frozen=True)
class Normalizer:
    """x -> (x / unit - shift) / deviation, what networks see of samples as they were drawn or read."""

    unit: float
    shift: Array  # (*inputs)
    deviation: Array  # (*inputs)

    def __call__(self, x: Array) -> Array:
        """Return normalised samples, shape (n, *inputs). Not collective."""
        found: Array = (x / self.unit - self.shift) / self.deviation
        return found


@dataclass(frozen=True)
class DataSet:
    """Training, validation and test samples, normalised by what the training samples have.

    Attributes
    ----------
    parts
        By name: train, and validation and test if they have samples.
    normalizer
        What was done to all of them.
    checksum
        Of what was read from files; none where samples were drawn, whose last bits may be the machine's.
    """

    parts: dict[str, Samples]
    classes: tuple[str, ...]
    normalizer: Normalizer
    checksum: str = ""

    @property
    def inputs(self) -> tuple[int, ...]:
        """Shape of a sample."""
        return tuple(self.parts["train"].x.shape[1:])


def split(pool: Pool, sizes: dict[str, int], seed: int) -> dict[str, tuple[Array, Array]]:
    """Return x and labels of train, validation and test, drawn without replacement. Not collective.

    Parameters
    ----------
    sizes
        By name. The test samples come from the pool's own test set, where it has one.
    seed
        Of the order in which samples are drawn; the same on every rank.

    Raises
    ------
    OptionsError
        If there are too few samples.
    """
    sources = {name: pool.test if name == "test" and pool.test is not None else pool for name in sizes}
    found = {}
    for source in {id(s): s for s in sources.values()}.values():
        names = [name for name in sizes if sources[name] is source]
        wanted, n = sum(sizes[name] for name in names), len(source.labels)
        if wanted > n:
            asked = " + ".join(f"{sizes[name]} {name}" for name in names)
            options = " ".join(f"-data_{name}" for name in names)
            raise OptionsError(f"{options}: {asked} samples are more than the {n} that there are; ask for fewer")
        order, start = np.random.default_rng(seed).permutation(n), 0
        for name in names:
            rows = order[start : start + sizes[name]]
            start += sizes[name]
            found[name] = source.x[rows], source.labels[rows]
    return found


def normalized(pool: Pool, parts: dict[str, tuple[Array, Array]], how: str, dtype: torch.dtype) -> DataSet:
    """Return the parts as networks see them. Not collective.

    center        x <- x / scale - mean        per feature (pixel), over the training samples
    standardize   then divided by the standard deviation, where that is not zero
    """
    how = pool.normalization if how == "default" else how
    train = parts["train"][0] / pool.scale
    shift = train.mean(0) if how != "none" else np.zeros(train.shape[1:])
    deviation = train.std(0) if how == "standardize" else np.ones(train.shape[1:])
    deviation[deviation == 0] = 1.0
    normalizer = Normalizer(pool.scale, shift, deviation)
    return DataSet(
        {
            name: Samples(torch.from_numpy(normalizer(x)).to(dtype), torch.from_numpy(labels.astype(np.int64)))
            for name, (x, labels) in parts.items()
            if len(labels)
        },
        pool.classes,
        normalizer,
    )
