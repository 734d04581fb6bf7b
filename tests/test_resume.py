"""Killed at any moment and started again, a streamed correction goes on, and gives what it gives undisturbed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
from command import h5_content

DRIVER = Path(__file__).with_name("killed.py")
MOMENTS = 10
CHANGES = {"codes.npy", "lock", "seconds.json"}  # of a work folder, at every run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed as POSIX does")


@pytest.fixture(scope="module")
def place(simulated_once: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    simulated_once.write_h5ad(folder / "in.h5ad")
    return folder


@pytest.fixture(scope="module")
def trials(place: Path) -> list[dict[str, Any]]:
    """One random moment in each tenth of the time that an undisturbed run takes, so that every stage has its turn."""
    moments = (np.arange(MOMENTS) + np.random.default_rng(0).random(MOMENTS)) / MOMENTS
    command = [sys.executable, str(DRIVER), str(place), *map(str, moments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def test_started_again_it_gets_done_at_once(place: Path, trials: list[dict[str, Any]]) -> None:
    logs = [(place / str(i) / "log").read_text() for i in range(MOMENTS)]
    assert [trial["codes"] for trial in trials] == [[0]] * MOMENTS, logs


def test_the_moments_lie_in_the_run(trials: list[dict[str, Any]]) -> None:
    assert sum(trial["killed"] for trial in trials) >= MOMENTS - 3  # a quick run may be done before the last ones
    held = {len(trial["stages"]) for trial in trials}
    assert len(held) > 1  # in different stages


def test_the_result_is_that_of_an_undisturbed_run(place: Path, trials: list[dict[str, Any]]) -> None:
    def lasting(path: Path) -> dict[str, tuple[Any, ...]]:
        return {name: value for name, value in h5_content(path).items() if "/seconds" not in name}

    expected = lasting(place / "whole" / "out.h5ad")
    assert "obsm/X_cellnorm" in expected
    for i in range(len(trials)):
        assert lasting(place / str(i) / "out.h5ad") == expected, f"moment {i}"


def test_what_was_done_is_not_done_again(trials: list[dict[str, Any]]) -> None:
    kept = 0
    for trial in trials:
        stays = {name: time for name, time in trial["stages"].items() if name in trial["later"]}
        stays = {name: time for name, time in stays.items() if name not in CHANGES}
        assert {name: trial["later"][name] for name in stays} == stays
        kept += len(stays)
    assert kept >= MOMENTS


def test_nothing_half_written_is_left(place: Path, trials: list[dict[str, Any]]) -> None:
    finished = set(os.listdir(place / "whole" / "work"))
    for i, trial in enumerate(trials):
        assert set(os.listdir(place / str(i))) == {"log", "out.h5ad", "work"}
        assert set(os.listdir(place / str(i) / "work")) == finished
        if trial["output"]:  # it was there when the run was killed: then it was whole, and the last stage done
            assert "embedding.npy" in trial["stages"]
