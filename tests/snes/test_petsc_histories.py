"""Gradient norms of all iterates against PETSc's solvers with the same options, on the Bratu problem of 9 x 9 nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("petsc4py")

from tests.studies import bratu
from tests.studies.bratu import AGREE, ROWS, Comparison, History, Row, compare

GRID, ITERATIONS = 9, 10


def named(tree: str) -> Row:
    (row,) = [row for row in ROWS if row.tree == tree]
    return row


@pytest.mark.parametrize("row", [row for row in ROWS if not row.differs], ids=lambda row: row.tree)
def test_histories_are_petscs(row):
    found = compare(row, GRID, ITERATIONS)
    assert found.first is None, (found.ours, found.petsc)
    assert max(found.differences) <= AGREE
    assert len(found.differences) >= 3
    assert found.ours.norms[0] == pytest.approx(1.0, abs=0.5)


@pytest.mark.parametrize("row", [row for row in ROWS if row.differs], ids=lambda row: row.tree)
def test_what_is_said_to_differ_does(row):
    found = compare(row, GRID, ITERATIONS)
    assert not found.equal
    assert not found.fails
    assert found.differences[0] < 1e-14


def test_a_composed_history_is_not_that_of_its_parts():
    """What is equal is not so because an option has no effect."""
    trees = ("nrichardson, none", "ncg, cp, left nrichardson", "anderson, right nrichardson", "ngmres, none")
    lasts = [compare(named(tree), GRID, 6).petsc.norms[-1] for tree in trees]
    assert all(abs(a - b) > 1e-4 * a for k, a in enumerate(lasts) for b in lasts[k + 1 :])


@pytest.mark.parametrize(
    ("ours", "petsc", "first"),
    [
        ([1.0, 0.5, 0.25], [1.0, 0.5, 0.25 * (1 + 5e-7)], None),
        ([1.0, 0.5, 0.25], [1.0, 0.5 * (1 + 5e-6), 0.25], 1),
        ([1.0, 0.5], [1.0, 0.5, 0.25], 2),
        ([1.0, 1e-11], [1.0, 3e-11, 1e-12], None),
        ([1.0, float("nan")], [1.0, 0.5], 1),
    ],
)
def test_the_first_difference(ours, petsc, first):
    assert Comparison(named("newtontr"), History(ours, ""), History(petsc, "")).first == first


def test_an_option_that_petsc_does_not_read_is_an_error():
    row = named("nrichardson, none")
    with pytest.raises(ValueError, match="PETSc does not read snes_qn_m"):
        compare(replace(row, petsc=f"{row.petsc} -snes_qn_m 3"), GRID, 2)


def test_the_exit_status(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    arguments = ["--grid", "5", "--iterations", "3", "--only", "ncg, hs", "bt, halving", "--output", str(tmp_path)]
    assert bratu.main(arguments) == 0
    assert "1 of 2 histories are equal" in (tmp_path / "bratu.md").read_text()
    assert (tmp_path / "bratu.png").stat().st_size > 0
    monkeypatch.setattr(bratu, "ROWS", [replace(named("ncg, hs, cp"), differs="")])
    assert bratu.main(arguments) == 1
    assert capsys.readouterr().err == "not equal: ncg, hs, cp\n"
