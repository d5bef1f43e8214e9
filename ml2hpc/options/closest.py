"""The closest valid word to a misspelt one, for error messages.

The measure is the edit distance with adjacent transpositions, so that `tpye` is one slip away from `type`. A word that
is too far from everything gets no suggestion, since a wrong hint is worse than none, unless it only lacks its prefix.

>>> closest("snes_qn_typ", ["snes_qn_m", "snes_qn_type"])
'snes_qn_type'
>>> closest("qn_m", ["snes_qn_m", "snes_qn_type"])
'snes_qn_m'
>>> closest("colour", ["snes_qn_m", "snes_qn_type"]) is None
True
"""

from __future__ import annotations

from collections.abc import Iterable


def edit_distance(a: str, b: str) -> int:
    """Count the insertions, deletions, replacements and adjacent swaps that turn `a` into `b`. Not collective.

    d(i, j) = min(d(i-1, j) + 1, d(i, j-1) + 1, d(i-1, j-1) + [a_i != b_j], d(i-2, j-2) + 1 if a swap fits).
    """
    before: list[int] = []
    above = list(range(len(b) + 1))
    for i, letter in enumerate(a, start=1):
        row = [i]
        for j, other in enumerate(b, start=1):
            best = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                best = min(best, before[j - 2] + 1)
            row.append(best)
        before, above = above, row
    return above[-1]


def closest(word: str, valid: Iterable[str]) -> str | None:
    """Find the valid word nearest to `word`, or none when all are far. Not collective.

    Near means one slip in four letters, or one slip in a shorter word. Ties go to the shorter candidate.
    """
    candidates = sorted(set(valid), key=lambda name: (len(name), name))
    limit = min(max(1, len(word) // 4), len(word) - 1)  # all words of one letter are one slip apart
    near = [name for name in candidates if abs(len(name) - len(word)) <= limit]
    best = min(near, key=lambda name: edit_distance(word, name), default=None)
    if best is not None and edit_distance(word, best) <= limit:
        return best
    return next((name for name in candidates if name.endswith(f"_{word}")), None)
