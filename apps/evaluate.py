"""Evaluate a trained network at points, or on samples, of your own.

    python -m ml2hpc.apps.evaluate run.h5 points.csv values.csv

`points.csv` has one line per point and one column per coordinate, in the problem's order; a first line of names, such
as `x,t`, is understood and may order the columns otherwise. `values.csv` gets the coordinates, the fields and, where
the problem has a reference solution, its values and the differences.

For a classifier (resnet) `points.csv` has one line per sample and one column per feature, as in the files that it was
trained on (bytes for pixels of MNIST); a first line of as many names is passed over. `values.csv` gets the class, and
each class's probability; after a training by least squares, its value.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ml2hpc.apps.pinn import build, reference_at
from ml2hpc.apps.resnet import Trained
from ml2hpc.errors import FileError, OptionsError, UserError
from ml2hpc.io import store
from ml2hpc.options import Database
from ml2hpc.problem.pinn import FASTEST

Array = NDArray[np.float64]
_LONGEST = 60  # letters of a line that an error repeats
USAGE = "usage: python -m ml2hpc.apps.evaluate run.h5 points.csv values.csv"


def read_points(path: Path, coordinates: str | int) -> Array:
    """Return the points of a CSV file, shape (n, d), columns in the order of the coordinates, or a number of columns.

    Raises
    ------
    FileError
        If the file is missing, or a line has the wrong number of columns or something that is no number; says which.
    """
    try:
        with path.open(newline="") as stream:
            rows = [(k, row) for k, row in enumerate(csv.reader(stream), 1) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"{path}: cannot be read: {error}") from error
    columns = coordinates if isinstance(coordinates, int) else len(coordinates)
    order = list(range(columns))
    if rows and all(map(_is_name, rows[0][1])) and (isinstance(coordinates, str) or len(rows[0][1]) == columns):
        names = [cell.strip() for cell in rows.pop(0)[1]]
        if isinstance(coordinates, str):
            if sorted(names) != sorted(coordinates):
                raise FileError(f"{path}: the columns are {','.join(names)}, expected {','.join(coordinates)}")
            order = [names.index(c) for c in coordinates]
    if not rows:
        raise FileError(f"{path}: holds no lines of numbers")
    points = np.empty((len(rows), columns))
    for i, (line, row) in enumerate(rows):
        if len(row) != columns or not all(_is_number(cell) for cell in row):
            text = ",".join(row)
            got = repr(text) if len(text) <= _LONGEST else f"{len(row)} columns, {text[:_LONGEST]!r}..."
            raise FileError(f"{path}, line {line}: expected {columns} numbers, got {got}")
        points[i] = [float(row[k]) for k in order]
    return points


def _is_name(text: str) -> bool:
    """Tell whether a cell heads a column: nan and inf are numbers, though no finite ones."""
    try:
        float(text)
    except ValueError:
        return bool(text.strip())
    return False


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def evaluate(run: Path, points: Path, values: Path) -> str:
    """Write the values and return what to say of them."""
    tree = store.read(run, "run")
    app = tree["configuration"].get("app")
    if app not in ("pinn", "resnet"):
        raise FileError(f"{run}: is the output of {app!r}, not of pinn or resnet")
    if app == "resnet" and "normalization" not in tree:
        raise FileError(f"{run}: does not say how samples were normalised: it is of an older version; train again")
    return evaluate_fields(tree, points, values) if app == "pinn" else classify(tree, points, values)


def classify(tree: dict[str, Any], points: Path, values: Path) -> str:
    """Write the classes of samples, and what the network gives each class."""
    network = Trained.of(tree)
    samples = read_points(points, network.normalizer.shift.size)
    logits = network.logits(samples)
    finite = np.isfinite(logits).all(1)
    if not finite.all():
        raise FileError(f"{points}: sample {np.argmin(finite) + 1} is too large for the network, whose values overflow")
    found, name = logits, "value"
    if tree["configuration"]["options"]["resnet_loss"] == "cross_entropy":
        found, name = torch.softmax(torch.from_numpy(logits), 1).numpy(), "probability"
    rows = [[network.classes[k], *row] for k, row in zip(logits.argmax(1), found.tolist(), strict=True)]
    _write(values, ["class", *(f"{name}_{c}" for c in network.classes)], rows)
    return f"{len(rows)} samples"


def evaluate_fields(tree: dict[str, Any], points: Path, values: Path) -> str:
    """Write the fields at points, and errors against the reference, if any."""
    configuration = tree["configuration"]
    # Any engine has values, and the run's own may not be at hand here.
    options = configuration["options"] | {"pinn_engine": FASTEST}
    dtype = getattr(torch, options["dtype"])
    pde, _, model, x = build(Database.from_dict(options), dtype, int(options["seed"]))
    saved = tree["checkpoint"]["parameters"]
    x = torch.cat([torch.from_numpy(saved[e.name]).reshape(-1) for e in model.layout.entries]).to(x.dtype)
    places = read_points(points, pde.coordinates)
    low, high = np.array(pde.bounds).T
    outside = np.flatnonzero(((places < low) | (places > high)).any(1))
    if len(outside):
        box = ", ".join(f"{c} in [{a:g}, {b:g}]" for c, (a, b) in zip(pde.coordinates, pde.bounds, strict=True))
        raise FileError(f"{points}: point {outside[0] + 1} {tuple(places[outside[0]])} is outside the domain {box}")
    u = model.solution(x, torch.as_tensor(places.T.copy(), dtype=dtype)).T.to(torch.float64).numpy()
    names = [*pde.coordinates, *pde.fields]
    columns = [places, u]
    error = None
    exact = reference_at(pde, places)
    if exact is not None:
        names += [f"{f}_{w}" for w in ("reference", "error") for f in pde.fields]
        columns += [exact, u - exact]
        scale = float(np.linalg.norm(exact))
        error = float(np.linalg.norm(u - exact)) / scale if scale > 0 else None
    _write(values, names, np.concatenate(columns, 1).tolist())
    return f"{len(places)} points" + ("" if error is None else f", relative L2 error {error:.6e}")


def _write(path: Path, names: list[str], rows: list[list[Any]]) -> None:
    """Write a CSV file with all digits, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(names)
            writer.writerows(rows)  # numbers in the fewest digits that give them back
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise FileError(f"{path}: cannot be written: {error}") from error


def main(arguments: Sequence[str]) -> int:
    """Run the app and return the exit status."""
    if any(a.lstrip("-") in ("help", "h") for a in arguments if a.startswith("-")):
        print(f"{USAGE}\n{(__doc__ or '').split(chr(10), 4)[4]}")
        return 0
    try:
        if len(arguments) != 3:
            raise OptionsError(f"expected three files, got {len(arguments)}; {USAGE}")
        run, points, values = map(Path, arguments)
        told = evaluate(run, points, values)
    except UserError as problem:
        print(f"evaluate: {problem}", file=sys.stderr)
        return 1
    print(f"wrote {values}: {told}")
    return 0


# test: python -m ml2hpc.apps.pinn -snes_max_it 1 -pinn_points 200 -net_depth 2 -npc_dm_subdomains 2 -output run.h5
# test: printf 'x,t\n0.25,0.5\n-0.5,1\n' > points.csv
# test: python -m ml2hpc.apps.evaluate run.h5 points.csv values.csv
# test: python -m ml2hpc.apps.resnet -snes_max_it 2 -data_train 200 -resnet_blocks 4 -output disk.h5
# test: printf '0.1,0.2\n0,2.5\n' > samples.csv
# test: python -m ml2hpc.apps.evaluate disk.h5 samples.csv classes.csv
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
