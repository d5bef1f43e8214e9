"""Data sets for classification: drawn, read from files, split and normalised.

data = load(comm, options, seed, dtype)      rank 0 reads, every rank has the same samples
data.parts["train"], data.inputs, data.classes
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from ml2hpc.comm import Communicator
from ml2hpc.errors import OptionsError, UserError
from ml2hpc.options import option
from ml2hpc.problem.data.binary import cifar10, mnist
from ml2hpc.problem.data.digits import digits
from ml2hpc.problem.data.libsvm import libsvm
from ml2hpc.problem.data.plane import circles, disk, spirals
from ml2hpc.problem.data.pool import DataSet, Normalizer, Pool, normalized, split

__all__ = ["DataOptions", "DataSet", "Normalizer", "Pool", "load"]

Set = Literal["circles", "disk", "spirals", "mnist", "cifar10", "libsvm", "digits"]
DRAWN: dict[str, Callable[[int, int, DataOptions], Pool]] = {
    "circles": lambda n, seed, _: circles(n, seed),
    "disk": lambda n, seed, _: disk(n, seed),
    "spirals": lambda n, seed, o: spirals(n, seed, o.turns),
}
READ: dict[str, Callable[[Path], Pool]] = {"mnist": mnist, "cifar10": cifar10, "libsvm": libsvm}
_DRAWN_SIZES = {"train": 2000, "validation": 1000, "test": 1000}  # 2000 and 1000 as published with the circles
_SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}  # of a pool


@dataclass(frozen=True)
class DataOptions:
    """Options `-data_*`."""

    # The circles' gap lets a network reach accuracy 1, so that solvers can be compared by the work to get there.
    set: Set = option(
        "circles",
        "circles (with a gap), disk (without), spirals: drawn in the plane; mnist, cifar10, libsvm: from -data_path; "
        "digits: scikit-learn's",
    )
    turns: float = option(
        1.5, "turns of each of the spirals; more of them need deeper networks", above=0.0, below=math.inf
    )
    path: str = option("", "folder of MNIST's or CIFAR-10's binary files, or the LIBSVM file")
    train: int | None = option(
        None, "training samples (2000 drawn ones; of a file 60 %, 80 % where it has a test set)", at_least=1
    )
    validation: int | None = option(
        None, "samples that tell when to stop (1000 drawn ones, of a file 20 %)", at_least=0
    )
    test: int | None = option(
        None, "samples for the last word (1000 drawn ones, of a file 20 %, or all of its own test set)", at_least=0
    )
    normalize: Literal["default", "none", "center", "standardize"] = option(
        "default",
        "subtract the training samples' mean from each feature, and divide by their standard deviation; by default "
        "images in [0, 1] are centred, LIBSVM's features standardised, drawn samples left",
    )
    seed: int | None = option(
        None, "seed of drawn samples and of the split (-seed): other networks on the same samples", at_least=0
    )


def load(comm: Communicator, options: DataOptions, seed: int, dtype: torch.dtype) -> DataSet:
    """Return the data set that the options describe. Collective: rank 0 reads files, the others get what it read.

    Raises
    ------
    OptionsError, UserError
        On every rank, if options do not go together, files are missing or damaged, or there are too few samples.
    """
    if (options.set in READ) != bool(options.path):
        told = (
            "needs -data_path" if not options.path else f"is not read from -data_path {options.path}; leave that away"
        )
        raise OptionsError(f"-data_set {options.set} {told}")
    if options.turns != DataOptions.turns and options.set != "spirals":
        raise OptionsError(f"-data_turns {options.turns:g} is for -data_set spirals, not {options.set}; leave it away")
    seed = seed if options.seed is None else options.seed
    pool, checksum, error = None, "", None
    if comm.rank == 0:
        try:
            pool = _pool(options, seed)
            checksum = pool.checksum if options.set in READ else ""
        except UserError as caught:
            error = caught
    comm.agree(error)
    pool, checksum = comm.broadcast((pool, checksum))
    assert isinstance(pool, Pool)
    found = normalized(pool, split(pool, _sizes(options, pool), seed), options.normalize, dtype)
    return replace(found, checksum=checksum)


def _pool(options: DataOptions, seed: int) -> Pool:
    if options.set in DRAWN:
        sizes = _sizes(options, None)
        return DRAWN[options.set](sum(sizes.values()), seed, options)
    return digits() if options.set == "digits" else READ[options.set](Path(options.path))


def _sizes(options: DataOptions, pool: Pool | None) -> dict[str, int]:
    """Return how many samples each part has."""
    given = {"train": options.train, "validation": options.validation, "test": options.test}
    if options.set in DRAWN or pool is None:
        default = _DRAWN_SIZES
    else:
        default = {name: math.floor(share * len(pool.labels)) for name, share in _SHARES.items()}
        if pool.test is not None:
            default["train"] = len(pool.labels) - default["validation"]
            default["test"] = len(pool.test.labels)
            if options.train is not None:
                default["validation"] = min(default["validation"], len(pool.labels) - options.train)
    return {name: default[name] if n is None else n for name, n in given.items()}
