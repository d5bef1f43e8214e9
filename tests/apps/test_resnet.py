"""The resnet app as a user runs it: accuracies, the same bits on any number of ranks, restarts, controls, bad input."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml2hpc.io import store
from ml2hpc.problem.control import Architecture
from tests.apps.test_pinn import command, parameters, rank_process
from tests.problem.test_data import idx

SMALL = "-data_train 300 -data_validation 100 -data_test 50 -resnet_blocks 8 -resnet_chunk 64"


def launch(folder: Path, ranks: int, arguments: str) -> subprocess.CompletedProcess[str]:
    words = command(ranks, shlex.split(f"{SMALL} {arguments}"))
    words[words.index("ml2hpc.apps.pinn")] = "ml2hpc.apps.resnet"
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=110, stdin=subprocess.DEVNULL)


def succeed(folder: Path, ranks: int, arguments: str) -> str:
    done = launch(folder, ranks, arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def history(path: Path) -> dict[str, Any]:
    table: dict[str, Any] = store.read(path, "run")["history"]["outer"]
    return table


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 20 iterations of L-BFGS in one go, and 10 to go on from, on two ranks."""
    folder = tmp_path_factory.mktemp("runs")
    succeed(folder, 2, "-snes_max_it 20 -output straight.h5")
    succeed(folder, 2, "-snes_max_it 10 -output half.h5")
    return folder


def test_any_number_of_ranks_gives_the_same_bits(runs: Path) -> None:
    for ranks in (1, 3):
        succeed(runs, ranks, f"-snes_max_it 20 -output on{ranks}.h5")
        assert (parameters(runs / f"on{ranks}.h5") == parameters(runs / "straight.h5")).all()
    succeed(runs, 2, "-snes_max_it 20 -output sharded.h5 -vec_type sharded")
    difference = parameters(runs / "sharded.h5") - parameters(runs / "straight.h5")
    assert np.abs(difference).max() < 1e-6  # inner products are summed rank by rank


@pytest.mark.parametrize("ranks", [1, 3])
def test_restart_goes_on_bit_for_bit(runs: Path, ranks: int) -> None:
    shutil.copy(runs / "half.h5", runs / f"from{ranks}.h5")
    succeed(runs, ranks, f"-restart from{ranks}.h5 -snes_max_it 20 -output resumed{ranks}.h5")
    assert (parameters(runs / f"resumed{ranks}.h5") == parameters(runs / "straight.h5")).all()
    resumed, straight = history(runs / f"resumed{ranks}.h5"), history(runs / "straight.h5")
    for name in ("objective", "accuracy_test", "movement_blocks", "gradients_path"):
        assert (resumed[name] == straight[name]).all() and len(straight[name]) == 21


def test_history_and_results(runs: Path) -> None:
    tree = store.read(runs / "straight.h5", "run")
    table = history(runs / "straight.h5")
    for part in ("train", "validation", "test"):
        assert table[f"accuracy_{part}"][-1] == tree["results"][part]["accuracy"]
        assert (np.diff(table[f"accuracy_{part}"]) != 0).any()
    assert (table["measuring"] > 0).all()
    assert (table["measuring"][1:] < np.diff(table["cpu_seconds"])).all()
    train = tree["results"]["train"]
    theta = parameters(runs / "straight.h5")
    assert table["objective"][-1] == pytest.approx(train["loss"] + 0.5e-4 * theta @ theta, rel=1e-13)
    assert float(train["accuracy"]) * 300 == pytest.approx(round(float(train["accuracy"]) * 300))
    start = parameters_at_start(runs)
    for name, place in Architecture((2,), 2, 8, 3).groups.items():
        moved = np.linalg.norm(theta[place] - start[place]) / np.linalg.norm(start[place])
        assert table[f"movement_{name}"][-1] == pytest.approx(moved, rel=1e-12)
        assert table[f"movement_{name}"][0] == 0.0
    assert tree["solution"]["p"].shape == (101, 101) and 0 <= tree["solution"]["p"].min() < 0.5


def test_accuracies_of_some_parts_cost_no_others(tmp_path: Path) -> None:
    out = succeed(tmp_path, 1, "-snes_max_it 3 -resnet_accuracy_parts validation")
    table = history(tmp_path / "run.h5")
    assert np.isfinite(table["accuracy_validation"]).all()
    assert np.isnan(table["accuracy_train"]).all() and np.isnan(table["accuracy_test"]).all()
    assert re.search(r"train .*validation .*test .*%", out)


def test_the_penalty_of_blocks_is_a_sum_or_an_integral(tmp_path: Path) -> None:
    theta = parameters_at_start(tmp_path)
    at_start = {}
    for penalty in ("sum", "integral"):
        succeed(tmp_path, 1, f"-snes_max_it 0 -resnet_beta 1 -resnet_final_time 2 -resnet_penalty {penalty}")
        at_start[penalty] = history(tmp_path / "run.h5")["objective"][0]
    blocks = theta[Architecture((2,), 2, 8, 3).groups["blocks"]]
    expected = 0.5 * (1 - 2 / 8) * blocks @ blocks
    assert at_start["sum"] - at_start["integral"] == pytest.approx(expected, rel=1e-12)


def parameters_at_start(folder: Path) -> np.ndarray:
    succeed(folder, 1, "-snes_max_it 0 -output start.h5")
    return parameters(folder / "start.h5")


def test_circles_to_accuracy_1_by_lbfgs(tmp_path: Path) -> None:
    """With the sizes of the defaults, within 60 gradients; the solve ends there."""
    sizes = "-data_train 2000 -data_validation 1000 -data_test 1000 -resnet_blocks 32"
    out = succeed(tmp_path, 1, f"{sizes} -resnet_stop_accuracy 1 -resnet_chunk 1024")
    found = re.search(r"CONVERGED_USER after (\d+) iterations.*gradients: (\d+) path", out)
    assert found is not None and int(found[2]) <= 60, out
    accuracies = history(tmp_path / "run.h5")["accuracy_validation"]
    assert accuracies[-1] == 1.0 and (accuracies[:-1] < 1.0).all()
    assert history(tmp_path / "run.h5")["accuracy_test"][-1] > 0.995


def test_frozen_blocks_stay_and_the_outer_layers_train(tmp_path: Path) -> None:
    start = parameters_at_start(tmp_path)
    out = succeed(tmp_path, 2, "-resnet_freeze blocks -snes_max_it 15 -output frozen.h5")
    table = history(tmp_path / "frozen.h5")
    assert (table["movement_blocks"] == 0.0).all() and table["movement_opening"][-1] > 0.1
    assert "blocks 0.000e+00" in out
    assert "parameters, blocks frozen, 17 trained; 2 features, 2 classes; 300 train" in out
    groups = Architecture((2,), 2, 8, 3).groups
    outer = np.concatenate([start[groups["opening"]], start[groups["classification"]]])
    assert parameters(tmp_path / "frozen.h5").shape == outer.shape
    succeed(tmp_path, 1, "-resnet_freeze blocks -snes_max_it 7 -output half.h5")
    succeed(tmp_path, 1, "-restart half.h5 -snes_max_it 15 -output resumed.h5")
    assert (parameters(tmp_path / "resumed.h5") == parameters(tmp_path / "frozen.h5")).all()


@pytest.mark.parametrize(
    "arguments",
    [
        "-resnet_scheme verlet -resnet_final_time 5 -data_set spirals",
        "-resnet_loss least_squares -snes_type gn -data_set disk",
        "-snes_type gn -resnet_beta 1e-3",
        "-resnet_engine torch -resnet_activation relu -dtype float32",
        "-npc_snes_type nasm -npc_dm_subdomains 3",
    ],
)
def test_every_solver_and_network_lowers_the_loss(tmp_path: Path, arguments: str) -> None:
    succeed(tmp_path, 1, f"{arguments} -snes_max_it 6")
    objective = history(tmp_path / "run.h5")["objective"]
    assert len(objective) == 7 and objective[-1] < 0.99 * objective[0]


def test_libsvm_file_is_found_again_from_another_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 3))
    lines = [f"{int(a.sum() > 0)} " + " ".join(f"{k + 1}:{v}" for k, v in enumerate(a)) for a in x]
    (tmp_path / "set").write_text("\n".join(lines))
    succeed(tmp_path, 1, "-data_set libsvm -data_path set -snes_max_it 10")
    assert history(tmp_path / "run.h5")["accuracy_test"][-1] > 0.9
    other = tmp_path / "other"
    other.mkdir()
    succeed(other, 1, "-restart ../run.h5 -snes_max_it 12")
    assert len(history(other / "run.h5")["objective"]) == 13
    (tmp_path / "set").write_text("\n".join([str(1 - int(lines[0][0])) + lines[0][1:], *lines[1:]]))
    done = launch(other, 1, "-restart ../run.h5 -snes_max_it 12")
    assert done.returncode == 1 and "data is '300 train, 100 validation, 50 test, normalize default" in done.stderr


TREES = {
    "fas": "-snes_type fas -dm_metric function",
    "fas on batches": "-snes_type fas -snes_fas_batch 100",
    "nested": "-snes_type fas -snes_fas_type nested -dm_metric function -fas_coarse_snes_qn_type ssbroyden",
    "nested on batches": "-snes_type fas -snes_fas_type nested -dm_metric function -fas_coarse_snes_type torchoptim "
    "-fas_coarse_snes_torchoptim_batch 64",
    "rmtr": "-snes_type rmtr -dm_metric function",
    "rmtr on batches": "-snes_type rmtr -dm_metric function -snes_rmtr_batch 100 -snes_rmtr_batch_threshold 5",
    "kaskade": "-snes_type qn -snes_npc_lag 3 -npc_snes_type fas -npc_snes_fas_type kaskade -npc_dm_metric function",
}


@pytest.mark.parametrize("name", TREES)
def test_multilevel_trees_have_the_same_bits_on_any_ranks_and_after_a_restart(tmp_path: Path, name: str) -> None:
    tree = TREES[name]
    succeed(tmp_path, 1, f"{tree} -snes_max_it 6 -output straight.h5")
    succeed(tmp_path, 4, f"{tree} -snes_max_it 6 -output on4.h5")
    succeed(tmp_path, 2, f"{tree} -snes_max_it 2 -output half.h5")
    succeed(tmp_path, 4, "-restart half.h5 -snes_max_it 6 -output resumed.h5")
    straight, expected = history(tmp_path / "straight.h5"), parameters(tmp_path / "straight.h5")
    for other in ("on4.h5", "resumed.h5"):
        assert (parameters(tmp_path / other) == expected).all()
        table = history(tmp_path / other)
        for column in ("objective", "gradient_norm", "gradients_path", "gradients_work"):
            assert (table[column] == straight[column]).all() and len(table[column]) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-data_set mnist", "-data_set mnist needs -data_path"),
        ("-data_set mnist -data_path .", r"-data_path \.: holds neither train-images-idx3-ubyte"),
        ("-resnet_layers conv", "add -resnet_engine torch"),
        ("-resnet_layers conv -resnet_engine torch", r"samples have shape \(2,\)"),
        ("-resnet_stop_accuracy 1 -data_validation 0", "needs validation samples"),
        ("-resnet_stop_accuracy 1 -resnet_accuracy_parts test", "and validation in -resnet_accuracy_parts"),
        ("-data_set disk -data_turns 2", "-data_turns 2 is for -data_set spirals, not disk"),
        ("-data_set spirals -data_turns 0", "-data_turns"),
        ("-resnet_stop_accuracy 99", "-resnet_stop_accuracy 99: is a share, at most 1"),
        ("-resnet_bloks 3", "-resnet_bloks.*-resnet_blocks"),
        ("-resnet_blocks 0", "-resnet_blocks"),
        ("-resnet_blocks 1000000000000", "rank 0 of 2 has too little memory, ask for smaller sizes: "),
        ("-data_train 100000000000000", "rank 0 of 2 has too little memory, ask for smaller sizes: Unable to allocate"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path: Path, arguments: str, message: str) -> None:
    done = launch(tmp_path, 2, arguments)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("ml2hpc: error:")]
    assert len(lines) == 1 and re.search(message, lines[0]), done.stderr
    assert "Traceback" not in done.stderr


def labelled(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Write images and labels as MNIST's files."""
    for what, array in (("images-idx3", images), ("labels-idx1", labels)):
        (folder / f"{prefix}-{what}-ubyte").write_bytes(idx(array))


def digits(folder: Path) -> Path:
    images = np.arange(40 * 20).reshape(40, 4, 5) % 251
    labelled(folder, "train", images, np.arange(40) % 10)
    return folder / "train-images-idx3-ubyte"


def cut(folder: Path) -> None:
    file = digits(folder)
    file.write_bytes(file.read_bytes()[:-7])


def magic(folder: Path) -> None:
    file = digits(folder)
    file.write_bytes(b"\0\0\x0d" + file.read_bytes()[3:])


def sizes(folder: Path) -> None:
    digits(folder)
    labelled(folder, "t10k", np.zeros((10, 5, 5)), np.arange(10))


def labels(folder: Path) -> None:
    digits(folder)
    labelled(folder, "train", np.zeros((40, 4, 5)), np.arange(40))


def cifar(folder: Path) -> None:
    (folder / "data_batch_1.bin").write_bytes(bytes(3 * 3073 - 5))


def one_class(folder: Path) -> None:
    (folder / "set").write_text("".join(f"1 1:{k}\n" for k in range(40)))


def not_a_number(folder: Path) -> None:
    (folder / "set").write_text("".join(f"{k % 2} 1:{k} 2:{'nan' if k == 7 else 1}\n" for k in range(40)))


def test_recursive_trust_regions_on_convolutions_with_batches(tmp_path: Path) -> None:
    """Images with a bright row, whose place is the class: the option file, smaller, on one rank and on three."""
    images = np.random.default_rng(0).integers(0, 100, (120, 4, 5))
    images[np.arange(120), np.arange(120) % 4] += 150
    labelled(tmp_path, "train", images, np.arange(120) % 4)
    options = Path(__file__).parents[2] / "apps" / "options" / "resnet_rmtr_images.opts"
    sizes = "-data_set mnist -data_path . -data_train 80 -data_validation 20 -data_test 20 -resnet_width 4"
    for ranks in (1, 3):
        succeed(
            tmp_path, ranks, f"-options_file {options} {sizes} -snes_rmtr_batch 30 -snes_max_it 4 -output on{ranks}.h5"
        )
    assert (parameters(tmp_path / "on1.h5") == parameters(tmp_path / "on3.h5")).all()
    objective = history(tmp_path / "on1.h5")["objective"]
    assert (np.diff(objective) <= 0).all() and objective[-1] < 0.9 * objective[0]


FILES = "-data_train 20 -data_validation 10 -data_test 10 -data_path ."
DAMAGED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no folder": (digits, f"{FILES}/nowhere -data_set mnist", "nowhere: holds neither train-images"),
    "cut off": (cut, f"{FILES} -data_set mnist", "holds 793 bytes, and its head says 40 x 4 x 5; fetch it again"),
    "magic": (magic, f"{FILES} -data_set mnist", "is no IDX file of bytes: it begins with 00 00 0d 03, not 00 00 08"),
    "sizes": (sizes, f"{FILES} -data_set mnist", r"\(1, 4, 5\).*\(1, 5, 5\)"),
    "labels": (labels, f"{FILES} -data_set mnist", "holds the label 39; digits are 0 to 9"),
    "cifar10": (cifar, f"{FILES} -data_set cifar10", "holds 9214 bytes, no whole number of 3073 a record"),
    "libsvm": (not_a_number, f"{FILES}/set -data_set libsvm", "set:8: expected .*nan is no finite number"),
    "one class": (one_class, f"{FILES}/set -data_set libsvm", "set holds one class, 1: there is nothing to tell apart"),
    "levels": (digits, "-snes_type fas -dm_levels 6", "1 residual blocks cannot be coarsened by 2: .*-resnet_blocks"),
    "batch": (digits, "-snes_type rmtr -snes_rmtr_batch 301", "-snes_rmtr_batch 301: there are 300 samples"),
    "growth": (digits, "-snes_type rmtr -snes_rmtr_batch 30 -snes_rmtr_batch_growth 1", "-snes_rmtr_batch_growth"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_input_ends_every_rank_with_one_line_and_touches_no_output(
    runs: Path, tmp_path: Path, case: str
) -> None:
    write, arguments, message = DAMAGED[case]
    write(tmp_path)
    shutil.copy(runs / "half.h5", tmp_path / "run.h5")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = launch(tmp_path, 2, arguments)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("ml2hpc: error:")]
    assert len(lines) == 1 and re.search(message, lines[0]), done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_nested_iteration_ends_at_a_signal_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """It is all in the first iteration. A checkpoint is written in it, too."""
    tree = "-snes_type fas -snes_fas_type nested -dm_levels 2 -snes_fas_smoothing [2,{3000}] -snes_max_it 2"
    words = shlex.split(f"{SMALL} {tree} -checkpoint_interval 0.2 -output cut.h5")
    line = command(2, words)
    line[line.index("ml2hpc.apps.pinn")] = "ml2hpc.apps.resnet"
    job = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "cut.h5").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(rank_process("cut.h5"), signal.SIGUSR1)
        out, _ = job.communicate(timeout=60)
    finally:
        job.kill()
    assert job.returncode == 85, out
    checkpoint = store.read(tmp_path / "cut.h5", "run")["checkpoint"]
    state, spent = checkpoint["solver"], checkpoint["spent"]
    assert state["iteration"] == 0 and 0 < state["method"]["level_0"]["iteration"] < 3000
    succeed(tmp_path, 1, "-restart cut.h5 -output resumed.h5")
    succeed(tmp_path, 2, f"{tree} -output straight.h5")
    for column in ("seconds", "cpu_seconds"):  # those of the first job have no row of their own
        assert history(tmp_path / "resumed.h5")[column][1] > spent[column] > history(tmp_path / "cut.h5")[column][0]
    for column in ("objective", "gradient_norm", "update_norm", "gradients_work"):
        resumed, straight = (history(tmp_path / f"{name}.h5")[column] for name in ("resumed", "straight"))
        assert resumed == pytest.approx(straight, rel=1e-12 if column == "gradients_work" else 0, abs=0), column


def test_nested_iteration_ends_when_its_time_is_over(tmp_path: Path) -> None:
    tree = "-snes_type fas -snes_fas_type nested -dm_levels 2 -snes_fas_smoothing [2,{1000000}]"
    out = succeed(tmp_path, 2, f"{tree} -max_time 3")
    assert "DIVERGED_MAX_TIME after 0 iterations: level 0 of nested iteration, step" in out
    told = "-max_time is over, inside iteration 1: its network is that before it; go on with -restart run.h5"
    assert f"resnet: {told}" in out
    assert 1.0 < store.read(tmp_path / "run.h5", "run")["checkpoint"]["spent"]["seconds"] < 4.0


def test_restart_with_other_data_is_refused(runs: Path) -> None:
    for other, message in (
        ("-seed 1", "data is"),
        ("-resnet_beta 0", "loss is"),
        ("-resnet_penalty integral", "loss is"),
        ("-resnet_freeze blocks", "frozen is"),
        ("-resnet_freeze blocks -restart_state parameters", "frozen is"),
    ):
        done = launch(runs, 1, f"-restart half.h5 {other} -output other.h5")
        assert done.returncode == 1 and "the checkpoint of another job" in done.stderr and message in done.stderr


def test_restart_with_other_spirals_is_refused(tmp_path: Path) -> None:
    succeed(tmp_path, 1, "-data_set spirals -snes_max_it 1")
    done = launch(tmp_path, 1, "-restart run.h5 -data_turns 3")
    assert done.returncode == 1 and "data is '1.5 turns" in done.stderr


def test_help_needs_no_data(tmp_path: Path) -> None:
    out = succeed(tmp_path, 1, "-data_set mnist -help")
    for name in ("-resnet_scheme", "-resnet_freeze", "-data_normalize", "-resnet_stop_accuracy"):
        assert len(re.findall(f"^  {name} <.*>: .{{20,}}", out, re.MULTILINE)) == 1
