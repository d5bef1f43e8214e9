"""Edit distances by hand, and when a suggestion is withheld."""

from __future__ import annotations

from itertools import product

import pytest

from ml2hpc.options.closest import closest, edit_distance


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("type", "type", 0),
        ("tpye", "type", 1),
        ("typ", "type", 1),
        ("kitten", "sitting", 3),
    ],
)
def test_edit_distance(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == distance
    assert edit_distance(b, a) == distance


def gold(a: str, b: str) -> int:
    if not a or not b:
        return len(a) + len(b)
    swap = [gold(a[:-2], b[:-2]) + 1] if a[-2:] == b[-2:][::-1] and len(a) > 1 and len(b) > 1 else []
    return min(gold(a[:-1], b) + 1, gold(a, b[:-1]) + 1, gold(a[:-1], b[:-1]) + (a[-1] != b[-1]), *swap)


def test_edit_distance_against_its_definition() -> None:
    words = ["".join(letters) for n in range(5) for letters in product("ab", repeat=n)] + ["abc", "cab", "bcab"]
    assert all(edit_distance(a, b) == gold(a, b) for a in words for b in words)


def test_nearest_wins_and_ties_go_to_the_shorter() -> None:
    assert closest("snes_max_ti", ["snes_max_its", "snes_max_it", "snes_rtol"]) == "snes_max_it"
    assert closest("abcd", ["abcde", "abc"]) == "abc"


def test_one_slip_in_four_letters_is_the_limit() -> None:
    assert closest("abcdefgh", ["abcdefxy"]) == "abcdefxy"
    assert closest("abcdefgh", ["abcdexyz"]) is None


def test_short_words() -> None:
    assert closest("qm", ["qn"]) == "qn"
    assert closest("q", ["h", "m"]) is None
    assert closest("", ["h"]) is None


def test_lacking_prefix_is_suggested_but_lacking_solver_is_not() -> None:
    assert closest("max_it", ["snes_max_it"]) == "snes_max_it"
    assert closest("npc_snes_max_it", ["snes_max_it", "max_it"]) is None
