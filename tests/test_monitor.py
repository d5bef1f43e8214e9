"""Monitor lines in PETSc's formats, viewers, the history table, the progress line."""

from __future__ import annotations

import io
import math
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from ml2hpc import monitor
from ml2hpc.errors import FileError, OptionsError
from ml2hpc.monitor import History, Progress, Viewer, duration, norm_line, reason_line


def c_format(pattern: str, *values: object) -> str:
    """The % operator formats as C does."""
    return pattern % values


@pytest.mark.parametrize("level", [0, 1, 3])
@pytest.mark.parametrize("iteration", [0, 9, 100, 12345])
@pytest.mark.parametrize("norm", [27.064, 0.0, 1e-300, math.inf, math.nan])
def test_monitor_lines_are_petscs(level: int, iteration: int, norm: float) -> None:
    plain = "  " * level + c_format("%3d SNES Function norm %14.12e", iteration, norm)
    assert norm_line(level, iteration, norm, None) == plain
    detail = c_format(", Update norm %14.12e, Objective %14.12e", 0.5, -1.25)
    assert norm_line(level, iteration, norm, (0.5, -1.25)) == plain + detail


def test_reason_lines_are_petscs() -> None:
    assert reason_line(0, "", "CONVERGED_FNORM_RELATIVE", 3) == (
        "  Nonlinear solve converged due to CONVERGED_FNORM_RELATIVE iterations 3"
    )
    assert reason_line(1, "npc_", "DIVERGED_MAX_IT", 12) == (
        "    Nonlinear npc_ solve did not converge due to DIVERGED_MAX_IT iterations 12"
    )


# ---- viewers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "viewer"),
    [
        ("", Viewer("", False, "w")),
        ("ascii", Viewer("", False, "w")),
        (":hist.txt", Viewer("hist.txt", False, "w")),
        ("::ascii_info_detail", Viewer("", True, "w")),
        ("::ascii_info", Viewer("", False, "w")),
        ("ascii:a/b.txt:ascii_info_detail:append", Viewer("a/b.txt", True, "a")),
        (":hist.txt::write", Viewer("hist.txt", False, "w")),
    ],
)
def test_viewer_arguments(text: str, viewer: Viewer) -> None:
    assert Viewer.parse(text, "-snes_monitor") == viewer


@pytest.mark.parametrize("text", ["hist.txt", "draw", "::ascii_xml", ":f::update", ":f:::", "ascii:f:append"])
def test_wrong_viewer_arguments_are_told(text: str) -> None:
    with pytest.raises(OptionsError) as caught:
        Viewer.parse(text, "-npc_snes_monitor")
    assert str(caught.value) == (
        f"-npc_snes_monitor {text}: expected [ascii][:file[:format[:mode]]] with the formats ascii_info, "
        "ascii_info_detail and the modes write, append"
    )


@pytest.fixture
def hist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of an earlier job."""
    monkeypatch.setattr(monitor, "_begun", set())
    path = tmp_path / "hist.txt"
    path.write_text("earlier job\n")
    return path


def test_a_job_replaces_the_file_once_however_often_a_solver_starts(hist: Path) -> None:
    """An NPC starts its iterations again in every outer one, and two viewers may name one file."""
    norms, reasons = Viewer.parse(f":{hist}", "-m"), Viewer.parse(f":{hist.parent}/./hist.txt", "-r")
    for solve in range(2):
        norms.write(f"norm {solve}")
        reasons.write(f"reason {solve}")
    assert hist.read_text() == "norm 0\nreason 0\nnorm 1\nreason 1\n"


def test_a_first_line_that_is_not_iteration_0_replaces_too(hist: Path) -> None:
    Viewer.parse(f":{hist}", "-m").write("  7 after a restart")
    assert hist.read_text() == "  7 after a restart\n"


def test_append_keeps_the_earlier_job(hist: Path) -> None:
    viewer = Viewer.parse(f":{hist}::append", "-m")
    viewer.write("a")
    viewer.write("b")
    assert hist.read_text() == "earlier job\na\nb\n"


def test_no_file_is_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    Viewer.parse("", "-m").write("  0 SNES Function norm")
    assert capsys.readouterr().out == "  0 SNES Function norm\n"


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"nowhere/hist.txt: cannot be written: No such file or directory$"):
        Viewer.parse(f":{tmp_path}/nowhere/hist.txt", "-m").write("x")


# ---- history ---------------------------------------------------------------------------------------------------------


def filled() -> History:
    history = History()
    history.add(iteration=0, objective=1.5)
    history.add(objective=math.nan, iteration=1)  # by name, in any order
    history.add(iteration=2, objective=math.inf)
    return history


def test_history_is_a_table_of_float64() -> None:
    history = filled()
    table = history.table()
    assert (len(history), history.columns, list(table)) == (3, ("iteration", "objective"), ["iteration", "objective"])
    np.testing.assert_array_equal(table["iteration"], [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(table["objective"], [1.5, math.nan, math.inf])
    assert {column.dtype for column in table.values()} == {np.dtype(np.float64)}
    table["iteration"][:] = -1.0
    assert history.table()["iteration"][2] == 2.0


def test_history_goes_on_after_a_round_trip() -> None:
    straight, resumed = filled(), History()
    saved = filled().table()
    resumed.load({name: saved[name] for name in ("objective", "iteration")})  # a file may give them in another order
    for history in (straight, resumed):
        history.add(iteration=3, objective=0.25)
    assert len(resumed) == 4
    for name, column in straight.table().items():
        np.testing.assert_array_equal(resumed.table()[name], column)


def test_history_has_one_set_of_columns() -> None:
    with pytest.raises(AssertionError, match="one set of columns"):
        filled().add(iteration=3, loss=1.0)
    assert History().table() == {}


# ---- progress --------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def screen(text: str) -> str:
    """What a terminal shows in its line after the text."""
    cells: list[str] = []
    column = 0
    for letter in text:
        if letter == "\r":
            column = 0
            continue
        cells[column : column + 1] = [letter]
        column += 1
    return "".join(cells).rstrip()


def test_progress_is_quiet_in_a_file() -> None:
    stream = io.StringIO()
    progress = Progress(stream, interval=0.0)
    progress.show("iteration 1", 1.0, 0.5)
    progress.clear()
    assert stream.getvalue() == ""


def test_progress_writes_over_its_line_and_wipes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((80, 24)))
    stream = Terminal()
    progress = Progress(stream, interval=0.0)
    progress.clear()
    assert stream.getvalue() == ""
    progress.show("iteration 10", 90.0, 0.25)
    assert screen(stream.getvalue()) == "iteration 10  1m30s elapsed, about 4m30s left"
    progress.show("iteration 11", 100.0, 1.0)
    assert screen(stream.getvalue()) == "iteration 11  1m40s elapsed, about 0s left"
    progress.show("it", 1.0, 0.0)
    assert screen(stream.getvalue()) == "it  1s elapsed, about ? left"
    progress.clear()
    assert screen(stream.getvalue()) == ""
    assert "\n" not in stream.getvalue()


def test_progress_keeps_to_one_line_of_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((20, 24)))
    stream = Terminal()
    Progress(stream, interval=0.0).show("a long name of an app: iteration 10", 90.0, 0.25)
    assert stream.getvalue() == "\ra long name of an a"


def test_progress_is_not_shown_more_often_than_its_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [50.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = Terminal()
    progress = Progress(stream, interval=0.2)
    for now[0] in (50.0, 50.1, 50.19, 50.21, 50.3, 50.45):
        progress.show(f"at {now[0]}", 1.0, 0.5)
    assert [line.split()[1] for line in stream.getvalue().split("\r")[1:]] == ["50.0", "50.21", "50.45"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (3599, "59m59s"), (3600, "1h00m"), (90000, "25h00m"), (math.inf, "?")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
