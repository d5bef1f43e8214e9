"""The plot app: pictures that show something, and clean errors that leave nothing behind."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml2hpc.io import store

pytest.importorskip("matplotlib")
from matplotlib import image

ROOT = Path(__file__).parents[2]
FILE = ROOT / "apps" / "plot.py"
SPEC = importlib.util.spec_from_file_location("plot_app", FILE)
assert SPEC is not None
assert SPEC.loader is not None
plot = importlib.util.module_from_spec(SPEC)
sys.modules["plot_app"] = plot
SPEC.loader.exec_module(plot)

WORK = ["iteration", "gradients_path", "gradients_total", "gradients_work", "seconds"]


def tree(coordinates: str = "x t", solver: str = "qn(lbfgs)", **solution: Any) -> dict[str, Any]:
    """Return a run over a coarse grid that converges by a factor of two."""
    names = coordinates.split()
    axes = {name: np.linspace(0, 1, 7 + i) for i, name in enumerate(names)}
    reference = sum(np.sin(3 * x) for x in np.meshgrid(*axes.values(), indexing="ij"))
    error = 1e-3 * reference**2
    k = np.arange(12.0)
    history = {name: (i + 1) * k for i, name in enumerate(WORK)}
    history |= {"objective": 0.5**k, "error": np.where(k % 3, np.nan, 0.7**k), "reductions": k}
    fields = " ".join(name for name in solution if name not in names and "r" not in name) or "u"
    return {
        "configuration": {"title": "A $ problem", "coordinates": coordinates, "fields": fields, "solver": solver},
        "history": {"outer": history, "npc_": {"iteration": k}},
        "solution": solution or {**axes, "u": reference + error, "reference": reference, "error": error},
    }


def write(path: Path, content: dict[str, Any]) -> str:
    path.parent.mkdir(exist_ok=True)
    store.write(path, content, "run")
    return str(path)


@pytest.fixture(autouse=True)
def _coarse_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plot.STYLE, "savefig.dpi", 50)


def check_picture(path: Path) -> None:
    """Check that a PNG has white margins, and shows something in many colours."""
    pixels = (image.imread(path)[..., :3] * 255).astype(np.uint32)
    assert min(pixels.shape[:2]) > 150
    assert (pixels[0] == 255).all()
    assert len(np.unique(pixels @ np.array([1, 256, 65536], np.uint32))) > 50
    assert (pixels < 230).any(axis=-1).mean() > 0.01


@pytest.mark.parametrize("coordinates", ["x", "x t", "x y t", "x y z", "x y z t", "a b c d"])
def test_every_number_of_coordinates_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], coordinates: str
) -> None:
    assert plot.main([write(tmp_path / "run.h5", tree(coordinates))]) == 0
    names = [tmp_path / "run_solution.png", tmp_path / "run_convergence.png"]
    assert capsys.readouterr().out.splitlines() == [f"wrote {name}" for name in names]
    for name in names:
        check_picture(name)
    assert len(list(tmp_path.iterdir())) == 3


def test_several_files_share_one_convergence_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = [write(tmp_path / f"{s}.h5", tree(solver=s)) for s in ("a", "b", "c")]
    assert plot.main(files) == 0
    for name in ("a_solution.png", "b_solution.png", "c_solution.png", "convergence.png"):
        check_picture(tmp_path / name)
    assert len(list(tmp_path.glob("*.png"))) == 4


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    files = [write(tmp_path / folder / "run.h5", tree("x")) for folder in ("a", "b")]
    assert plot.main([files[0], "-output", str(tmp_path / "all"), files[1]]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "all_a_run_solution.png",
        "all_b_run_solution.png",
        "all_convergence.png",
    ]
    runs = plot.load([Path(file) for file in files])
    legend = plot.draw_convergence(runs).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["qn(lbfgs) (a_run)", "qn(lbfgs) (b_run)"]


def test_panels_show_the_values_at_their_coordinates(tmp_path: Path) -> None:
    content = tree("x t")
    [run] = plot.load([Path(write(tmp_path / "run.h5", content))])
    [row] = plot._panels(run.axes, run.fields[0])
    assert [panel.title for panel in row] == ["$u$", "reference", "error"]
    for panel, name in zip(row, ("u", "reference", "error")):
        assert (panel.horizontal, panel.vertical) == ("t", "x")
        assert np.array_equal(panel.values, content["solution"][name])
    assert row[0].limits == row[1].limits
    assert row[2].limits[0] == -row[2].limits[1] <= -np.abs(content["solution"]["error"]).max()

    content = tree("x y z t")
    [run] = plot.load([Path(write(tmp_path / "run.h5", content))])
    values, errors = plot._panels(run.axes, run.fields[0])
    for panel, k in zip(values, (0, 5, 9)):
        assert np.array_equal(panel.values, content["solution"]["u"][:, :, 4, k].T)
        assert (panel.horizontal, panel.vertical) == ("x", "y")
    assert values[0].title == "$u$ at $z$ = 0.5, $t$ = 0"
    assert np.array_equal(errors[2].values, content["solution"]["error"][:, :, 4, 9].T)

    [run] = plot.load([Path(write(tmp_path / "run.h5", tree("x y z")))])
    assert [(p.horizontal, p.vertical) for p in plot._panels(run.axes, run.fields[0])[0]] == [
        ("x", "y"),
        ("x", "z"),
        ("y", "z"),
    ]


def test_curves_hold_the_history(tmp_path: Path) -> None:
    content = tree()
    runs = plot.load([Path(write(tmp_path / "run.h5", content))])
    axes = np.array(plot.draw_convergence(runs).axes).reshape(2, 5)
    history = content["history"]["outer"]
    known = np.isfinite(history["error"])
    for column, work in zip(axes.T, WORK):
        for panel, merit, keep in zip(column, ("objective", "error"), (slice(None), known)):
            [line] = panel.lines
            assert np.array_equal(line.get_xydata(), np.stack([history[work][keep], history[merit][keep]], axis=-1))
            assert panel.get_yscale() == "log"


def test_thin_lines_mark_resamplings(tmp_path: Path) -> None:
    content = tree()
    content["history"]["outer"]["resampling"] = np.array([0.0] * 5 + [1.0] * 4 + [2.0] * 3)
    runs = plot.load([Path(write(tmp_path / "run.h5", content))])
    for panel, work in zip(np.array(plot.draw_convergence(runs).axes).reshape(2, 5)[0], WORK):
        marks = [line.get_xdata()[0] for line in panel.lines[1:]]
        assert marks == content["history"]["outer"][work][[4, 8]].tolist()


def test_what_is_not_there_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = tree()
    del content["history"]["outer"]["error"], content["solution"]
    content["history"]["outer"]["objective"] -= 0.5
    file = write(tmp_path / "run.h5", content)
    assert plot.main([file]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{file} holds no solution to draw",
        f"wrote {tmp_path}/run_convergence.png",
    ]
    axes = plot.draw_convergence(plot.load([Path(file)])).axes
    assert len(axes) == 5
    assert axes[0].get_yscale() == "linear"


def test_several_outputs_and_odd_values(tmp_path: Path) -> None:
    x = np.linspace(0, 1, 5)
    u = np.add.outer(x, x)
    hole = u.copy()
    hole[2, 2] = np.nan
    solution = {"x": x, "y": x, "v": u, "w": hole, "reference1": u, "u": 0 * u, "reference2": 0 * u}
    [run] = plot.load([Path(write(tmp_path / "run.h5", tree("x y", "adam", **solution)))])
    assert [field.name for field in run.fields] == ["v", "w", "u"]
    assert plot.main([str(run.path)]) == 0
    check_picture(tmp_path / "run_solution.png")


def drop(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for name in path[:-1]:
            content = content[name]
        del content[path[-1]]

    return change


BAD: dict[str, Callable[[dict[str, Any]], None]] = {
    "is a run without 'configuration'": drop("configuration"),
    "is a run without 'title'": drop("configuration", "title"),
    "is a run without 't'": drop("solution", "t"),
    "its history lacks the column 'seconds'": drop("history", "outer", "seconds"),
    "its history lacks the column 'iteration'": drop("history", "outer"),
    "u has shape (7, 8), its coordinates have (3, 8)": lambda c: c["solution"].update(x=np.arange(3.0)),
    "have different lengths": lambda c: c["history"]["outer"].update(seconds=np.arange(3.0)),
    "over 5 coordinates cannot be drawn": lambda c: c.update(tree("a b c d e")),
}


@pytest.mark.parametrize("message", BAD)
def test_a_run_with_holes_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], message: str) -> None:
    content = tree()
    BAD[message](content)
    good, bad = write(tmp_path / "good.h5", tree()), write(tmp_path / "bad.h5", content)
    assert plot.main([good, bad]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"plot: {bad}")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.glob("*.png*")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nix.h5"], "plot: nix.h5 does not exist\n"),
        (["empty.h5"], "plot: empty.h5 is empty\n"),
        ([], "plot: no file to draw is given; usage: python -m ml2hpc.apps.plot run.h5"),
        (["run.h5", "-outptu", "x"], "did you mean -output?\n"),
        (["run.h5", "run.h5"], "plot: run.h5 is given twice"),
        (["run.h5", "-output", "nowhere/x"], "plot: nowhere/x_solution.png.tmp cannot be written: No such file or"),
    ],
)
def test_bad_input_is_one_clear_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "run.h5", tree("x"))
    (tmp_path / "empty.h5").touch()
    assert plot.main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.glob("*.png*")) == []


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert plot.main(["-help"]) == 0
    out = capsys.readouterr().out
    assert "usage: python -m ml2hpc.apps.plot" in out
    assert "-output <" in out


def test_as_a_program(tmp_path: Path) -> None:
    file = write(tmp_path / "run.h5", tree("x"))
    command = [sys.executable, "-W", "error", str(FILE), f"-output={tmp_path}/figure", file]
    result = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    check_picture(tmp_path / "figure_solution.png")


def test_accuracies_and_movements_share_a_row_each(tmp_path: Path) -> None:
    content, k = tree(), np.arange(12.0)
    columns = {"accuracy_train": k / 12, "accuracy_test": k / 13, "movement_blocks": k, "movement_opening": 2 * k}
    content["history"]["outer"] |= columns
    figure = plot.draw_convergence(plot.load([Path(write(tmp_path / "run.h5", content))]))
    rows = [figure.axes[len(WORK) * i] for i in range(4)]
    labels = ["objective", "relative $L_2$ error", "accuracy", "relative movement"]
    assert [axes.get_ylabel() for axes in rows] == labels
    for axes, names in ((rows[2], ["train", "test"]), (rows[3], ["opening", "blocks"])):
        assert [text.get_text() for text in axes.get_legend().get_texts()] == names
        kind = axes.get_ylabel().split()[-1]
        for line, name in zip(axes.get_lines(), names, strict=True):
            assert (line.get_ydata() == columns[f"{kind}_{name}"]).all()
        assert len({line.get_linestyle() for line in axes.get_lines()}) == 2
