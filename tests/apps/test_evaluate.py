"""Evaluating a trained network at points, or on samples, of a CSV file."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from ml2hpc.apps import evaluate, pinn, resnet
from ml2hpc.io import store
from ml2hpc.problem.data.digits import digits
from ml2hpc.problem.data.pool import split


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluate") / "run.h5"
    options = "-pinn_points 300 -net_depth 2 -net_width 8 -npc_dm_subdomains 2 -snes_max_it 2"
    pinn.main([*options.split(), "-output", str(path)])
    return path


def table(path):
    with path.open() as stream:
        rows = list(csv.reader(stream))
    return rows[0], np.array(rows[1:], dtype=float)


def test_values_are_those_of_the_solution_in_the_file(trained, tmp_path, capsys):
    solution = store.read(trained, "run")["solution"]
    places = [(3, 5), (200, 100), (0, 0)]
    points = tmp_path / "points.csv"
    points.write_text("".join(f"{float(solution['x'][i])!r},{float(solution['t'][j])!r}\n" for i, j in places))
    assert evaluate.main([str(trained), str(points), str(tmp_path / "values.csv")]) == 0
    names, rows = table(tmp_path / "values.csv")
    assert names == ["x", "t", "u", "u_reference", "u_error"]
    expected = [solution["u"][i, j] for i, j in places]
    np.testing.assert_allclose(rows[:, 2], expected, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(rows[:, 2] - rows[:, 3], rows[:, 4], atol=1e-16)
    assert "3 points, relative L2 error" in capsys.readouterr().out


def test_named_columns_may_come_in_any_order(trained, tmp_path):
    for name, text in (("plain", "0.25,0.5\n-1,1\n"), ("named", "t, x\n0.5, 0.25\n1, -1\n")):
        (tmp_path / f"{name}.csv").write_text(text)
        assert evaluate.main([str(trained), str(tmp_path / f"{name}.csv"), str(tmp_path / f"{name}_out.csv")]) == 0
    assert (tmp_path / "plain_out.csv").read_text() == (tmp_path / "named_out.csv").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.1,0.2\n0.1\n", "line 2: expected 2 numbers, got '0.1'"),
        ("0.1,0.2\n0.1,nan\n", "line 2: expected 2 numbers"),
        ("x,y\n0,0\n", "the columns are x,y, expected x,t"),
        ("x,t\n", "holds no lines of numbers"),
        ("nan,0.1\n0.1,0.2\n", "line 1: expected 2 numbers"),
        ("0.1,0.2\n3,0.5\n", "point 2 .* outside the domain x in \\[-1, 1\\], t in \\[0, 1\\]"),
    ],
)
def test_bad_points_are_one_clear_error(trained, tmp_path, capsys, text, message):
    import re

    (tmp_path / "points.csv").write_text(text)
    assert evaluate.main([str(trained), str(tmp_path / "points.csv"), str(tmp_path / "values.csv")]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert not (tmp_path / "values.csv").exists()


NETWORKS = (
    "-resnet_freeze none",
    "-resnet_freeze blocks",
    "-resnet_loss least_squares",
    "-resnet_layers conv -resnet_engine torch",
)


@pytest.fixture(scope="module", params=NETWORKS)
def classifier(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluate") / "run.h5"
    options = "-data_set digits -data_train 300 -data_validation 400 -resnet_width 6 -resnet_blocks 4 -snes_max_it 30"
    resnet.main([*f"{options} {request.param} -dtype float32 -seed 3".split(), "-output", str(path)])
    return path


def test_classes_are_those_that_the_accuracy_counts(classifier, tmp_path, capsys):
    tree = store.read(classifier, "run")
    pool = digits()
    parts = split(pool, {"train": 300, "validation": 400, "test": 359}, 3)
    for name, (x, labels) in parts.items():
        samples = tmp_path / f"{name}.csv"
        np.savetxt(samples, x.reshape(len(x), -1), delimiter=",", header=",".join(["pixel"] * 64), comments="")
        assert evaluate.main([str(classifier), str(samples), str(tmp_path / "classes.csv")]) == 0
        head, rows = table(tmp_path / "classes.csv")
        right = np.mean(rows[:, 0] == [int(pool.classes[k]) for k in labels])
        assert right == pytest.approx(tree["results"][name]["accuracy"], abs=1e-12), name
        assert right > 0.4  # by chance 0.1
        by_value = "least_squares" in tree["configuration"]["options"]["resnet_loss"]
        assert head[:2] == ["class", f"{'value' if by_value else 'probability'}_0"]
        assert (rows[:, 1:].sum(1) == pytest.approx(1.0, abs=1e-12)) != by_value
        assert (rows[:, 1:].argmax(1) == rows[:, 0]).all()
    assert "359 samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3\n", "line 1: expected 64 numbers, got '1,2,3'"),
        ("a,b\n", "line 1: expected 64 numbers, got 'a,b'"),
        (",".join(["nan"] * 64) + "\n", "line 1: expected 64 numbers, got 64 columns, 'nan,nan"),
        (",".join(["1"] * 65) + "\n", "line 1: expected 64 numbers, got 65 columns, '1,1,"),
        (",".join(["1e300"] * 64) + "\n", "sample 1 is too large for the network"),
    ],
)
def test_bad_samples_are_one_clear_error(classifier, tmp_path, capsys, text, message):
    (tmp_path / "samples.csv").write_text(text)
    assert evaluate.main([str(classifier), str(tmp_path / "samples.csv"), str(tmp_path / "classes.csv")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "classes.csv").exists()


def test_missing_files_are_clear_errors(tmp_path, capsys, trained):
    assert evaluate.main([str(tmp_path / "no.h5"), "p.csv", "v.csv"]) == 1
    assert "no.h5 does not exist" in capsys.readouterr().err
    assert evaluate.main([str(trained), str(tmp_path / "no.csv"), "v.csv"]) == 1
    assert "no.csv: cannot be read" in capsys.readouterr().err
    assert evaluate.main([str(trained)]) == 1
    assert "expected three files, got 1" in capsys.readouterr().err
