"""Evaluate a trained network at points of your own.

    python -m ml2hpc.apps.evaluate run.h5 points.csv values.csv

`points.csv` has one line per point and one column per coordinate, in the problem's order; a first line of names, such
as `x,t`, is understood and may order the columns otherwise. `values.csv` gets the coordinates, the fields and, where
the problem has a reference solution, its values and the differences.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ml2hpc.apps.pinn import build, reference_at
from ml2hpc.errors import FileError, OptionsError, UserError
from ml2hpc.io import store
from ml2hpc.options import Database
from ml2hpc.problem.pinn import FASTEST

Array = NDArray[np.float64]
USAGE = "usage: python -m ml2hpc.apps.evaluate run.h5 points.csv values.csv"


def read_points(path: Path, coordinates: str) -> Array:
    """Return the points of a CSV file, shape (n, d), columns in the order of `coordinates`.

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
    order = list(range(len(coordinates)))
    if rows and not _is_number(rows[0][1][0]):
        names = [cell.strip() for cell in rows.pop(0)[1]]
        if sorted(names) != sorted(coordinates):
            raise FileError(f"{path}: the columns are {','.join(names)}, expected {','.join(coordinates)}")
        order = [names.index(c) for c in coordinates]
    if not rows:
        raise FileError(f"{path}: holds no points")
    points = np.empty((len(rows), len(coordinates)))
    for i, (line, row) in enumerate(rows):
        if len(row) != len(coordinates) or not all(_is_number(cell) for cell in row):
            raise FileError(f"{path}, line {line}: expected {len(coordinates)} numbers, got {','.join(row)!r}")
        points[i] = [float(row[k]) for k in order]
    return points


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def evaluate(run: Path, points: Path, values: Path) -> tuple[int, float | None]:
    """Write the values and return the number of points and the relative L2 error against the reference, if any."""
    tree = store.read(run, "run")
    configuration = tree["configuration"]
    if configuration.get("app") != "pinn":
        raise FileError(f"{run}: is the output of {configuration.get('app')!r}, not of pinn")
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
    _write(values, names, np.concatenate(columns, 1))
    return len(places), error


def _write(path: Path, names: list[str], table: Array) -> None:
    """Write a CSV file with all digits, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(names)
            writer.writerows([repr(float(v)) for v in row] for row in table)
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
        count, error = evaluate(run, points, values)
    except UserError as problem:
        print(f"evaluate: {problem}", file=sys.stderr)
        return 1
    print(f"wrote {values}: {count} points" + ("" if error is None else f", relative L2 error {error:.6e}"))
    return 0


# test: python -m ml2hpc.apps.pinn -snes_max_it 1 -pinn_points 200 -net_depth 2 -npc_dm_subdomains 2 -output run.h5
# test: printf 'x,t\n0.25,0.5\n-0.5,1\n' > points.csv
# test: python -m ml2hpc.apps.evaluate run.h5 points.csv values.csv
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
