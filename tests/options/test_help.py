"""The help and the option table, letter by letter."""

from __future__ import annotations

import pytest

from ml2hpc.options.grammar import split, statements
from ml2hpc.options.help import Block, Row, help_text, view_text, written


def test_help_text() -> None:
    qn = Block(
        "Quasi-Newton (qn)",
        (
            Row("npc_snes_qn_m", "3", "10", "number of stored secant pairs", "at least 1"),
            Row("npc_snes_qn_type", "lbfgs", "lbfgs", "quasi-Newton update", choices=("lbfgs", "bfgs")),
            Row("npc_snes_qn_w", "", "a b", "weights"),
        ),
    )
    assert help_text([qn, Block("Nothing", ())]) == (
        "Quasi-Newton (qn) options:\n"
        "  -npc_snes_qn_m <now 3 : formerly 10>: number of stored secant pairs (at least 1)\n"
        "  -npc_snes_qn_type <now lbfgs : formerly lbfgs>: quasi-Newton update (one of) lbfgs bfgs\n"
        '  -npc_snes_qn_w <now "" : formerly "a b">: weights'
    )


def test_view_text() -> None:
    assert view_text([("options_view", None, "command line"), ("snes_type", "qn", "file f.txt")]) == (
        "#ml2hpc Option Table entries:\n"
        "-options_view # (source: command line)\n"
        "-snes_type qn # (source: file f.txt)\n"
        "#End of ml2hpc Option Table entries"
    )


@pytest.mark.parametrize(
    "value", [None, "qn", "", "-1e-3", "-inf", "-x", "a b", "#1", "a#1", "it's", '"', "a\"b'c d", "x=y"]
)
def test_written_options_read_back(value: str | None) -> None:
    words = split(f"{written('a', value)} # (source: code)")
    assert [(s.name, s.value) for s in statements(words, "code")] == [("a", value)]


def test_neighbours_of_one_title_share_it():
    row = Row("a", "1", "1", "first")
    text = help_text([Block("Solver", (row,)), Block("Solver", (row,)), Block("Empty", ()), Block("Other", (row,))])
    assert [line for line in text.splitlines() if not line.startswith(" ")] == ["Solver options:", "Other options:"]
