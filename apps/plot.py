"""Draw runs: the solution with its error, and the convergence of one or several solvers.

Problem. A run leaves u on a grid (if a reference is known, also u - u_ref) and, for every outer iteration k, the
objective L(theta_k) and now and then the relative error ||u_k - u_ref|| / ||u_ref||. Iterations of different solvers do
not cost the same: the columns of the second figure therefore measure work four times, by iterations, by gradient
evaluations on the critical path (those that run side by side count once), by all gradient evaluations together, and by
seconds. Of a classifier it shows the accuracies on its parts of the data too, and how far the parts of the network have
moved.

Run line:

    python -m ml2hpc.apps.plot run.h5

writes run_solution.png and run_convergence.png beside run.h5. Of three and four coordinates it shows slices through
the middle of the domain, or the first, middle and last instant if one of them is t.

Things to try:

    python -m ml2hpc.apps.plot aspqn.h5 lbfgs.h5 adam.h5     # one curve each, in convergence.png
    python -m ml2hpc.apps.plot a/run.h5 b/run.h5 -output figures/depth    # figures/depth_*.png
"""

from __future__ import annotations

import io
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml2hpc.errors import FileError, OptionsError, UserError
from ml2hpc.io import store
from ml2hpc.options import Database, option
from ml2hpc.options.grammar import is_name

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator, ScalarFormatter
except ImportError as error:
    raise SystemExit("plot needs matplotlib: python -m pip install 'ml2hpc[plot]'") from error

Array = NDArray[np.float64]

STYLE: dict[Any, Any] = {
    "font.family": ["STIXGeneral", "DejaVu Sans"],  # the second has the glyphs that the first lacks
    "font.size": 10,
    "mathtext.fontset": "stix",
    "axes.titlesize": 10,
    "figure.titlesize": 12,
    "axes.linewidth": 0.7,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "savefig.dpi": 200,
}
# Distinguishable by the colour-blind (Okabe and Ito), and in grey by the dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":")
WORK = {
    "iteration": "iterations",
    "gradients_path": "gradient evaluations, critical path",
    "gradients_total": "gradient evaluations, total",
    "gradients_work": "gradient evaluations, by work",
    "seconds": "seconds",
}
MERIT = {  # rows of the figure: what they show, and the columns of the history in them
    "objective": ("objective",),
    "relative $L_2$ error": ("error",),
    "accuracy": ("accuracy_train", "accuracy_validation", "accuracy_test"),
    "relative movement": ("movement_opening", "movement_blocks", "movement_classification"),
}
MARK = "resampling"  # column that counts resamplings: a thin vertical line where it changes
FEW = 30  # points of a curve that still get markers


USAGE = "usage: python -m ml2hpc.apps.plot run.h5 [more.h5 ...] [-output PREFIX] [-help]"


@dataclass(frozen=True)
class Options:
    """Options of the plots."""

    output: str = option("", "what the names of the figures begin with; if empty, they lie beside their files")


@dataclass(frozen=True)
class Field:
    """One output of the network on the grid, with what is known about it; every array has shape (n_0, n_1, ...)."""

    name: str
    values: Array
    reference: Array | None
    error: Array | None


@dataclass(frozen=True)
class Run:
    """What the figures need from one file."""

    path: Path
    name: str  # differs from that of every other run
    title: str
    solver: str
    axes: dict[str, Array]
    fields: list[Field]
    history: dict[str, Array]


@dataclass(frozen=True)
class Panel:
    """A picture over two coordinates."""

    title: str
    horizontal: str
    vertical: str
    values: Array  # (n_vertical, n_horizontal)
    limits: tuple[float, float]
    is_error: bool


def load(paths: Sequence[Path]) -> list[Run]:
    """Read the files and check that they hold what the figures need."""
    return [_load(path, name) for path, name in zip(paths, _names(paths))]


def _names(paths: Sequence[Path]) -> list[str]:
    """Name each file by its stem; if two would agree, by its folder and stem."""
    names = [path.stem for path in paths]
    count = Counter(names)
    names = [f"{p.resolve().parent.name}_{n}" if count[n] > 1 else n for p, n in zip(paths, names)]
    for path, name in zip(paths, names):
        if names.count(name) > 1:
            raise FileError(f"{path} is given twice, or has the same name and folder name as another file")
    return names


def _load(path: Path, name: str) -> Run:
    tree = store.read(path, "run")
    try:
        configuration = tree["configuration"]
        columns = tree.get("history", {}).get("outer", {})
        wanted = (*WORK, *(name for names in MERIT.values() for name in names), MARK)
        history = {key: np.asarray(columns[key], dtype=np.float64) for key in wanted if key in columns}
        solution = tree.get("solution", {})
        axes = {key: solution[key] for key in configuration["coordinates"].split()} if solution else {}
        names = configuration["fields"].split() if solution else []
        fields = [_field(solution, key, str(k) if len(names) > 1 else "") for k, key in enumerate(names)]
        run = Run(path, name, configuration["title"], configuration["solver"], axes, fields, history)
    except KeyError as error:
        raise FileError(f"{path} is a run without {error.args[0]!r}: it cannot be drawn") from error
    _check(run)
    return run


def _field(solution: Mapping[str, Any], name: str, number: str) -> Field:
    reference, error = solution.get(f"reference{number}"), solution.get(f"error{number}")
    if error is None and reference is not None:
        error = solution[name] - reference
    return Field(name, solution[name], reference, error)


def _check(run: Run) -> None:
    shape = tuple(len(axis) for axis in run.axes.values())
    if len(shape) > 4:
        raise FileError(f"{run.path}: a solution over {len(shape)} coordinates cannot be drawn, only over 1 to 4")
    for field in run.fields:
        for values in (field.values, field.reference, field.error):
            if values is not None and (values.shape != shape or not values.size):
                raise FileError(f"{run.path}: {field.name} has shape {values.shape}, its coordinates have {shape}")
    if missing := [key for key in (*WORK, "objective") if key not in run.history]:
        raise FileError(f"{run.path}: its history lacks the column {missing[0]!r}")
    if len({column.shape for column in run.history.values()}) > 1:
        raise FileError(f"{run.path}: the columns of its history have different lengths")


def draw_solution(run: Run) -> Figure:
    """Return the figure of u, reference and error over the run's coordinates."""
    if len(run.axes) == 1:
        figure = _lines(run)
    else:
        rows = [row for field in run.fields for row in _panels(run.axes, field)]
        columns = max(len(row) for row in rows)
        figure = Figure(figsize=(0.3 + 3.5 * columns, 0.6 + 2.7 * len(rows)), layout="constrained")
        for i, row in enumerate(rows):
            for j, panel in enumerate(row):
                _draw(figure, figure.add_subplot(len(rows), columns, i * columns + j + 1), panel, run.axes)
    figure.suptitle("\n".join(filter(None, [_plain(run.title), *map(_error_text, run.fields)])), linespacing=1.0)
    return figure


def _lines(run: Run) -> Figure:
    """Draw u (and the reference) over one coordinate; below it the error."""
    [(name, x)] = run.axes.items()
    columns = 1 + any(field.error is not None for field in run.fields)
    figure = Figure(figsize=(0.3 + 4.2 * columns, 0.6 + 2.9 * len(run.fields)), layout="constrained")
    for i, field in enumerate(run.fields):
        left = figure.add_subplot(len(run.fields), columns, i * columns + 1)
        left.plot(x, field.values, color=COLOURS[0], label=_symbol(field.name))
        if field.reference is not None:
            left.plot(x, field.reference, color=COLOURS[1], linestyle="--", label="reference")
            left.legend()
        left.set(xlabel=_symbol(name), ylabel=_symbol(field.name), xlim=(x.min(), x.max()))
        if field.error is not None:
            right = figure.add_subplot(len(run.fields), columns, i * columns + 2)
            right.axhline(0, color="0.7", linewidth=0.7)
            right.plot(x, field.error, color=COLOURS[0])
            right.set(xlabel=_symbol(name), ylabel=f"error of {_symbol(field.name)}", xlim=(x.min(), x.max()))
            right.yaxis.set_major_formatter(_scientific())
    return figure


def _panels(axes: Mapping[str, Array], field: Field) -> list[list[Panel]]:
    """Return the rows of pictures of one output: one for two coordinates, else a row of slices per quantity."""
    rows = [(_symbol(field.name), field.values, _limits(field.values, field.reference), False)]
    if field.reference is not None and len(axes) == 2:
        rows.append(("reference", field.reference, rows[0][2], False))
    if field.error is not None:
        largest = _round_up(max(map(abs, _limits(field.error))))
        rows.append(("error", field.error, (-largest, largest), True))
    panels = [[_slice(axes, fixed, *row) for fixed in ([{}] if len(axes) == 2 else _slices(axes))] for row in rows]
    return [[row[0] for row in panels]] if len(axes) == 2 else panels


def _slices(axes: Mapping[str, Array]) -> list[dict[str, int]]:
    """Return the indices that stay fixed in each of three pictures over two of three or four coordinates."""
    names = list(axes)
    middle = {name: len(axes[name]) // 2 for name in names}
    if "t" in axes:
        depth = {name: middle[name] for name in [name for name in names if name != "t"][2:]}
        return [depth | {"t": k} for k in (0, middle["t"], len(axes["t"]) - 1)]
    rest = {name: middle[name] for name in names[3:]}
    return [{name: middle[name]} | rest for name in reversed(names[:3])]


def _slice(
    axes: Mapping[str, Array],
    fixed: Mapping[str, int],
    title: str,
    values: Array,
    limits: tuple[float, float],
    is_error: bool,
) -> Panel:
    picture = values[tuple(fixed.get(name, slice(None)) for name in axes)]
    first, second = (name for name in axes if name not in fixed)
    # Time runs to the right.
    if second == "t":
        first, second = second, first
    else:
        picture = picture.T
    where = ", ".join(f"{_symbol(name)} = {axes[name][k]:.3g}" for name, k in fixed.items())
    return Panel(f"{title} at {where}" if where else title, first, second, picture, limits, is_error)


def _draw(figure: Figure, axes: Axes, panel: Panel, coordinates: Mapping[str, Array]) -> None:
    low, high = panel.limits
    image = axes.pcolormesh(
        coordinates[panel.horizontal],
        coordinates[panel.vertical],
        panel.values,
        shading="gouraud" if min(panel.values.shape) > 1 else "nearest",  # the first needs two points to interpolate
        cmap="RdBu_r" if panel.is_error else "viridis",
        vmin=low,
        vmax=high,
    )
    axes.set(xlabel=_symbol(panel.horizontal), ylabel=_symbol(panel.vertical), title=panel.title)
    if panel.horizontal != "t":
        axes.set_aspect("equal")
    ticks = [low, low / 2, 0, high / 2, high] if panel.is_error else None
    bar = figure.colorbar(image, ax=axes, pad=0.02, format=_scientific(), ticks=ticks)
    bar.ax.yaxis.set_offset_position("left")  # the power of ten grows to the right, away from the title


def draw_convergence(runs: Sequence[Run]) -> Figure:
    """Return the figure of objective, errors, accuracies and movements against the four measures of work.

    One colour per run. Where a row shows several columns of the history, they differ in their dashes.
    """
    rows = {title: found for title, names in MERIT.items() if (found := [n for n in names if _is_known(runs, n)])}
    figure = Figure(figsize=(13, 0.9 + 2.6 * len(rows) + 0.2 * len(runs)), layout="constrained")
    grid = figure.subplots(len(rows), len(WORK), sharex="col", sharey="row", squeeze=False)
    labels = _labels(runs)
    for i, (title, names) in enumerate(rows.items()):
        for j, work in enumerate(WORK):
            for k, run in enumerate(runs):
                for d, name in enumerate(names):
                    dashes = DASHES[(d if len(names) > 1 else k) % len(DASHES)]
                    _curve(grid[i, j], run, work, name, COLOURS[k % len(COLOURS)], dashes, labels[k])
            grid[i, j].grid(color="0.9", linewidth=0.6)
            grid[-1, j].set_xlabel(WORK[work])
            grid[-1, j].xaxis.set_major_locator(MaxNLocator(5, integer=work != "seconds"))
        if all(_is_positive(run.history.get(name)) for run in runs for name in names) and title != "accuracy":
            grid[i, 0].set_yscale("log")
        grid[i, 0].set_ylabel(title)
        if len(names) > 1:
            lines = [Line2D([], [], color="0.3", linestyle=DASHES[d % len(DASHES)]) for d in range(len(names))]
            grid[i, 0].legend(lines, [name.partition("_")[2] for name in names])
    if len({run.title for run in runs}) == 1:
        figure.suptitle(_plain(runs[0].title))
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center")
    return figure


def _is_known(runs: Sequence[Run], name: str) -> bool:
    """Whether any run has numbers in a column of its history."""
    return any(np.isfinite(run.history.get(name, np.empty(0))).any() for run in runs)


def _curve(axes: Axes, run: Run, work: str, name: str, colour: str, dashes: Any, label: str) -> None:
    values = run.history.get(name, np.full(run.history[work].shape, np.nan))
    known = np.isfinite(values)
    axes.plot(
        run.history[work][known],
        values[known],
        color=colour,
        linestyle=dashes,
        marker="o" if known.sum() <= FEW else "",
        markersize=2.5,
        label=label,
    )
    resampled = np.flatnonzero(np.diff(run.history.get(MARK, np.empty(0))))
    for x in run.history[work][resampled]:  # the last row on the old points
        axes.axvline(x, color=colour, linewidth=0.4, alpha=0.5)


def _labels(runs: Sequence[Run]) -> list[str]:
    """Name each curve by its solver, and by its file if two solvers agree."""
    solvers = [run.solver for run in runs]
    return [_plain(s if solvers.count(s) == 1 else f"{s} ({run.name})") for s, run in zip(solvers, runs)]


def _is_positive(values: Array | None) -> bool:
    return values is None or bool((values[np.isfinite(values)] > 0).all())


def _limits(*arrays: Array | None) -> tuple[float, float]:
    known = np.concatenate([array[np.isfinite(array)] for array in arrays if array is not None])
    return (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)


def _round_up(largest: float) -> float:
    """Return the next number with a leading half digit: a colour bar that ends there has round ticks."""
    if largest == 0.0:
        return 1.0
    half = 0.5 * 10.0 ** np.floor(np.log10(largest))
    return float(half * np.ceil(largest / half))


def _error_text(field: Field) -> str:
    """Return the relative error as a sentence, empty if it is not known."""
    if field.reference is None or field.error is None or not field.reference.any():
        return ""
    relative = np.linalg.norm(field.error) / np.linalg.norm(field.reference)
    digits, exponent = f"{relative:.1e}".split("e") if np.isfinite(relative) else ("", "")
    number = rf"{digits} \times 10^{{{int(exponent)}}}" if digits else r"\infty"
    return rf"relative $L_2$ error of {_symbol(field.name)}: ${number}$"


def _scientific() -> ScalarFormatter:
    formatter = ScalarFormatter(useMathText=True)
    formatter.set_powerlimits((-2, 4))
    return formatter


def _symbol(name: str) -> str:
    """Write a letter with an optional number as mathematics, anything else as it is."""
    if name[:1].isalpha() and (len(name) == 1 or name[1:].isdigit()):
        return f"${name[0]}_{{{name[1:]}}}$" if name[1:] else f"${name}$"
    return _plain(name)


def _plain(text: str) -> str:
    return text.replace("$", r"\$")


def figures(runs: Sequence[Run], output: str) -> dict[Path, Figure]:
    """Return every figure under the name of the file that it goes to."""
    drawn: dict[Path, Figure] = {}
    for run in runs:
        if run.fields:
            drawn[_place(run, output, len(runs), "solution")] = draw_solution(run)
    convergence = f"{output}_convergence.png" if output else "convergence.png"
    drawn[Path(convergence) if len(runs) > 1 else _place(runs[0], output, 1, "convergence")] = draw_convergence(runs)
    return drawn


def _place(run: Run, output: str, count: int, what: str) -> Path:
    if output:
        return Path(f"{output}_{what}.png" if count == 1 else f"{output}_{run.name}_{what}.png")
    return run.path.with_name(f"{run.name}_{what}.png")


def save(drawn: Mapping[Path, Figure]) -> None:
    """Write all figures, or none."""
    images = {}
    for path, figure in drawn.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        images[path] = buffer.getvalue()
    temporary = {path: path.with_name(path.name + ".tmp") for path in images}
    try:
        try:
            for path, image in images.items():
                temporary[path].write_bytes(image)
            for path in images:
                os.replace(temporary[path], path)
        finally:
            for path in images:
                temporary[path].unlink(missing_ok=True)
    except OSError as error:
        raise FileError(f"{error.filename or path} cannot be written: {error.strerror}") from error


def main(arguments: Sequence[str]) -> int:
    """Draw the files named on the command line and return the exit status."""
    try:
        paths, db = _arguments(arguments)
        options = db.read(Options, title="Plot")
        if db.flag("help"):
            print(f"{USAGE}\n\n{db.help_text()}")
            return 0
        db.check_unused()
        if not paths:
            raise OptionsError(f"no file to draw is given; {USAGE}")
        runs = load(paths)
        with matplotlib.rc_context(STYLE):
            drawn = figures(runs, options.output)
            save(drawn)
    except UserError as error:
        print(f"plot: {error}", file=sys.stderr)
        return 1
    for run in runs:
        if not run.fields:
            print(f"{run.path} holds no solution to draw")
    for path in drawn:
        print(f"wrote {path}")
    return 0


def _arguments(arguments: Sequence[str]) -> tuple[list[Path], Database]:
    """Split the command line into the files and the options: a word that follows an option is its value."""
    words: list[str] = []
    files: list[str] = []
    for before, word in zip(["", *arguments], arguments):
        takes_value = is_name(before) and "=" not in before and before.lower() != "-help"
        is_file = not is_name(word) and not takes_value
        (files if is_file else words).append(word)
    # The environment is not asked: it holds the options of runs.
    return [Path(file) for file in files], Database.from_sources(argv=words, environment={})


# test: mpirun -n 2 python -m ml2hpc.apps.pinn -snes_max_it 1 -pinn_points 200 -net_depth 2 -npc_dm_subdomains 2
# test: python -m ml2hpc.apps.plot run.h5
# test: test -s run_solution.png -a -s run_convergence.png
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
