"""The database as its users see it."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from ml2hpc.errors import OptionsError
from ml2hpc.options import Database, option


@dataclass(frozen=True)
class Qn:
    m: int = option(10, "number of stored secant pairs")
    type: Literal["lbfgs", "bfgs"] = option("lbfgs", "quasi-Newton update")


@dataclass(frozen=True)
class Loop:
    max_it: int = option(50, "most iterations", at_least=0)
    monitor: bool = option(False, "print each iteration")
    output: str | None = option(None, "results file")


def read_qn(db: Database, prefix: str = "", **defaults: object) -> Qn:
    return db.read(Qn, prefix=prefix, stem="snes_qn_", title="Quasi-Newton (qn)", defaults=defaults)


def read_loop(db: Database, prefix: str = "") -> Loop:
    return db.read(Loop, prefix=prefix, stem="snes_", title="Nonlinear solver (SNES)")


def complaint(db: Database) -> str:
    with pytest.raises(OptionsError) as caught:
        db.check_unused()
    return str(caught.value)


def test_read_by_prefix_and_stem() -> None:
    db = Database.from_string("-npc_snes_qn_m 3 -snes_qn_m 4 -SNES_QN_Type BFGS")
    assert read_qn(db, "npc_") == Qn(3, "lbfgs")
    assert read_qn(db) == Qn(4, "bfgs")
    assert db.read(Qn) == Qn()


def test_sources_and_precedence(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("snes: {qn: {m: 1, type: bfgs}, max_it: 1, output: x}")
    argv = ["-options_file", str(path), "-snes_max_it", "3", "-snes_monitor"]
    db = Database.from_sources(argv=argv, environment={"ML2HPC_OPTIONS": "-snes_max_it 2 -snes_qn_m 2"})
    assert read_qn(db) == Qn(2, "bfgs")
    assert read_loop(db) == Loop(3, True, "x")
    assert db.check_unused() == ""


def test_last_wins() -> None:
    assert read_qn(Database.from_string("-snes_qn_m 1 -SNES_QN_M 2")).m == 2


def test_from_dict() -> None:
    db = Database.from_dict({"npc": {"snes": {"qn": {"m": 3}, "monitor": None}}})
    assert read_qn(db, "npc_").m == 3
    assert read_loop(db, "npc_").monitor is True


def test_defaults_of_the_caller() -> None:
    db = Database.from_string("-npc_snes_qn_m 4")
    assert read_qn(db, m=3, type="BFGS") == Qn(3, "bfgs")
    assert read_qn(db, "npc_", m=3) == Qn(4, "lbfgs")
    assert (
        read_qn(Database.from_string("-snes_qn_m 10"), m=3).m == 10
    )  # also the class's own default is the user's word


def test_defaults_are_validated_even_if_the_user_overrides() -> None:
    with pytest.raises(OptionsError, match=r"^option -snes_qn_m: '1\.5' is not an integer \(default of the program\)$"):
        read_qn(Database.from_string("-snes_qn_m 4"), m=1.5)
    with pytest.raises(TypeError, match=r"^Qn has no option n$"):
        read_qn(Database.from_string(""), n=1)


def test_bad_value_names_the_option_as_given_and_its_source() -> None:
    db = Database.from_sources(argv=["-Sub_snes_max_it", "ten"], environment={"ML2HPC_OPTIONS": "-snes_qn_type lbfg"})
    with pytest.raises(OptionsError) as caught:
        read_loop(db, "sub_3_")
    assert str(caught.value) == "option -Sub_snes_max_it: 'ten' is not an integer (command line)"
    with pytest.raises(OptionsError) as caught:
        read_qn(db)
    assert str(caught.value) == (
        "option -snes_qn_type: 'lbfg' is not available, must be one of lbfgs bfgs; did you mean lbfgs? (environment)"
    )


def test_number_stripping() -> None:
    db = Database.from_string("-sub_snes_max_it 1 -sub_3_snes_max_it 2 -fas_levels_1_sub_snes_max_it 3")
    assert read_loop(db, "sub_2_").max_it == 1
    assert read_loop(db, "sub_3_").max_it == 2
    assert read_loop(db, "fas_levels_1_sub_7_").max_it == 3
    assert read_loop(db, "fas_levels_2_sub_7_").max_it == 50
    assert read_loop(db, "SUB_3_").max_it == 2


def test_overridden_entries_count_as_used() -> None:
    db = Database.from_string("-snes_qn_m 1 -snes_qn_m 2 -sub_snes_qn_m 3 -sub_0_snes_qn_m 4")
    read_qn(db)
    read_qn(db, "sub_0_")
    assert db.check_unused() == ""


def test_unread_number_is_unused() -> None:
    db = Database.from_string("-sub_9_snes_qn_m 1")
    read_qn(db, "sub_0_")
    assert complaint(db) == "unknown option -sub_9_snes_qn_m 1 (code); did you mean -sub_snes_qn_m?"


def test_same_option_read_twice() -> None:
    db = Database.from_string("-snes_qn_m 3")
    assert read_qn(db) == read_qn(db)
    assert read_qn(db, "NPC_") == db.read(Qn, prefix="npc_", stem="Snes_Qn_", title="again")
    assert [db.help_text().count(name) for name in (" -snes_qn_m ", " -npc_snes_qn_m ")] == [1, 1]


def test_unused_names_value_source_and_closest(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("-Snes_qn_n 3\nalias -q -snes_qn_tpe\n")
    argv = ["-snes_qn_typ", "lbfgs", "-snes_minotor", "-q", "1", "-options_fil=-x", "-options_file", str(path)]
    db = Database.from_sources(argv=argv, environment={"ML2HPC_OPTIONS": "-colour 'dark red'"})
    read_qn(db)
    read_loop(db)
    assert complaint(db).splitlines() == [
        f"unknown option -Snes_qn_n 3 (file {path}); did you mean -snes_qn_m?",
        'unknown option -colour "dark red" (environment)',
        "unknown option -snes_qn_typ lbfgs (command line); did you mean -snes_qn_type?",
        "unknown option -snes_minotor (command line); did you mean -snes_monitor?",
        "unknown option -q 1 (command line, alias of -snes_qn_tpe); did you mean -snes_qn_type?",
        "unknown option -options_fil=-x (command line); did you mean -options_file?",
    ]


def test_closest_among_numbered_names() -> None:
    db = Database.from_string("-sub_2_snes_qn_typ x -sub_snes_qn_typ x -sub_9_snes_qn_typ x")
    for i in range(4):
        read_qn(db, f"sub_{i}_")
    assert [line.split("mean ")[1] for line in complaint(db).splitlines()] == [
        "-sub_2_snes_qn_type?",
        "-sub_snes_qn_type?",
        "-sub_snes_qn_type?",
    ]


@pytest.mark.parametrize(
    ("left", "text"), [("warn", "unknown option -foo 1 (code)"), ("no", ""), ("FALSE", ""), ("0", "")]
)
def test_options_left(left: str, text: str) -> None:
    assert Database.from_string(f"-foo 1 -options_left {left}").check_unused() == text


def test_options_left_is_itself_checked() -> None:
    assert complaint(Database.from_string("-foo 1 -options_left error")) == "unknown option -foo 1 (code)"
    assert complaint(Database.from_string("-options_left wran")).endswith("did you mean warn? (code)")
    assert complaint(Database.from_string("-option_left no")).endswith("did you mean -options_left?")


def test_asking_marks_nothing() -> None:
    db = Database.from_string("-npc_snes_type qn")
    assert db.has("npc_snes_type", prefix="") and db.has("-SNES_type", prefix="npc_") and not db.has("snes_type")
    assert db.has_prefix("npc_")
    assert complaint(db) == "unknown option -npc_snes_type qn (code)"


def test_has_strips_numbers() -> None:
    db = Database.from_string("-sub_snes_type qn")
    assert db.has("snes_type", prefix="sub_4_")
    assert not db.has("snes_type", prefix="sub_4_npc_")


def test_has_prefix() -> None:
    db = Database.from_string("-sub_npc_snes_type qn -fas_levels_2_snes_max_it 1 -Left_x 1")
    assert all(db.has_prefix(p) for p in ("sub_", "sub_3_", "sub_3_npc_", "fas_levels_2_", "fas_levels_", "-LEFT_"))
    assert not any(db.has_prefix(p) for p in ("npc_", "fas_levels_1_", "sub_3_sub_", "snes_"))


def test_flag() -> None:
    db = Database.from_string("-help -npc_snes_view no -log_view maybe")
    assert db.flag("help") is True
    assert db.flag("-H") is False
    assert db.flag("snes_view", prefix="npc_") is False
    assert complaint(db) == "unknown option -log_view maybe (code)"
    with pytest.raises(OptionsError, match=r"^option -log_view: 'maybe' is not a boolean"):
        db.flag("log_view")
    assert db.check_unused() == ""


def test_help_text() -> None:
    db = Database.from_string("-npc_snes_qn_type bfgs")
    read_loop(db)
    read_qn(db, "NPC_", m=3)
    read_loop(db)
    assert db.help_text() == (
        "Nonlinear solver (SNES) options:\n"
        "  -snes_max_it <now 50 : formerly 50>: most iterations (at least 0)\n"
        "  -snes_monitor <now false : formerly false>: print each iteration\n"
        "  -snes_output <now none : formerly none>: results file\n"
        "Quasi-Newton (qn) options:\n"
        "  -npc_snes_qn_m <now 3 : formerly 10>: number of stored secant pairs\n"
        "  -npc_snes_qn_type <now bfgs : formerly lbfgs>: quasi-Newton update (one of) lbfgs bfgs"
    )


def test_title_defaults_to_the_class() -> None:
    db = Database.from_string("")
    db.read(Qn)
    assert db.help_text().startswith("Qn options:\n  -m <now 10")


VIEWED = """\
#ml2hpc Option Table entries:
-options_view # (source: command line)
-snes_max_it 100 # (source: environment)
-snes_monitor # (source: command line)
-snes_qn_type bfgs # (source: command line)
-title "a b" # (source: command line)
#End of ml2hpc Option Table entries"""


def test_view_text_shows_what_is_in_force_and_reads_back() -> None:
    argv = ["-SNES_QN_type", "lbfgs", "-snes_qn_type", "BFGS", "-title", "a b", "-options_view", "-snes_monitor"]
    db = Database.from_sources(argv=argv, environment={"ML2HPC_OPTIONS": "-snes_max_it 1e2"})
    read_loop(db)
    read_qn(db)
    assert db.flag("options_view")
    assert db.view_text() == VIEWED
    again = Database.from_string(db.view_text())
    assert (read_loop(again), read_qn(again)) == (read_loop(db), read_qn(db))


def test_effective_holds_defaults_and_repeats_the_run() -> None:
    db = Database.from_string("-sub_snes_max_it 1e2 -SNES_QN_M 3 -view")
    read_loop(db, "sub_0_")
    read_qn(db, type="bfgs")
    assert db.effective() == {
        "snes_qn_m": "3",
        "snes_qn_type": "bfgs",
        "sub_0_snes_max_it": "100",
        "sub_0_snes_monitor": "false",
        "sub_0_snes_output": "none",
        "sub_snes_max_it": "100",
        "view": "true",
    }
    again = Database.from_dict(db.effective())
    assert (read_loop(again, "sub_0_"), read_qn(again)) == (read_loop(db, "sub_0_"), read_qn(db, type="bfgs"))


def test_database_can_be_broadcast() -> None:
    db = Database.from_string("-snes_qn_m 3")
    read_qn(db)
    assert read_qn(pickle.loads(pickle.dumps(db))).m == 3


def test_weaker_options_give_way_and_need_no_reader() -> None:
    stored = {"snes_qn_m": "5", "snes_qn_type": "bfgs", "gone": "1"}
    db = Database.from_string("-snes_qn_m 3").under(stored, "restart file r")
    assert (read_qn(db).m, read_qn(db).type) == (3, "bfgs")
    assert db.check_unused() == ""
    assert db.given() == {"snes_qn_m": "3", "snes_qn_type": "bfgs", "gone": "1"}
    assert "-gone 1 # (source: restart file r)" in db.view_text()


@dataclass(frozen=True)
class Views:
    view: str | None = option(None, "print the solver tree, [ascii][:file]", alone="")
    steep: bool = option(False, "a switch")


def test_what_was_given_without_a_value_is_given_again_as_it_was_read() -> None:
    db = Database.from_string("-view -steep -unread")
    assert db.read(Views).view == ""
    assert db.given() == {"view": "", "steep": "true", "unread": "true"}
    again = Database.from_string("").under(db.given(), "restart file r")
    assert again.read(Views) == db.read(Views)


def test_options_of_another_library_are_handed_over_and_count_as_read():
    db = Database.from_string(
        "-sub_petsc_tao_type lmvm -sub_3_petsc_tao_type ntr -sub_petsc_tao_view -petsc_tao_type nls"
    )
    assert db.foreign("sub_3_petsc_") == {"tao_type": "ntr", "tao_view": ""}
    assert db.foreign("sub_1_petsc_") == {"tao_type": "lmvm", "tao_view": ""}
    with pytest.raises(OptionsError, match=r"unknown option -petsc_tao_type nls \("):
        db.check_unused()
    assert db.foreign("petsc_") == {"tao_type": "nls"}
    assert db.check_unused() == ""
    again = Database.from_dict(db.given())
    assert again.foreign("sub_1_petsc_") == {"tao_type": "lmvm", "tao_view": ""}
