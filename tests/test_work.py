"""The work folder: pieces that are complete or not there, one job and one run at a time, nothing left behind."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from cellnorm import work
from cellnorm.errors import DataError
from cellnorm.work import WorkFolder, atomic, load_arrays, load_rows, work_folder

JOB = {"input": "cells.h5ad", "n_latent": 50, "strength": None}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def double(task: int, out: IO[bytes]) -> None:
    np.save(out, np.array([2.0 * task], np.float32))


def fail_at_two(task: int, out: IO[bytes]) -> None:
    double(task, out)
    if task == 2:
        raise RuntimeError("stopped")


# -- files -----------------------------------------------------------------------------------------------------------


def test_a_file_is_there_when_it_is_complete(tmp_path: Path) -> None:
    with atomic(tmp_path / "a") as one, atomic(tmp_path / "a") as other:
        one.write(b"one")
        other.write(b"other")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == b"one", "that which was closed last"

    def stop(path: Path) -> None:
        with atomic(path) as handle:
            handle.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        stop(tmp_path / "b")
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("limit", [0, 2**28])
def test_large_arrays_are_mapped(tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "IN_MEMORY", limit)
    np.save(tmp_path / "a.npy", np.arange(6.0).reshape(3, 2))
    found = load_rows(tmp_path / "a.npy")
    assert isinstance(found.base, np.memmap) == (limit == 0)
    assert found.tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("load", [load_rows, load_arrays])
def test_a_damaged_stage_is_told_and_nothing_is_unpickled(tmp_path: Path, load: Callable[[Path], Any]) -> None:
    (tmp_path / "a").write_bytes(b"none")
    with pytest.raises(DataError, match=r"cannot be read.*Remove that file and start again"):
        load(tmp_path / "a")
    with (tmp_path / "a").open("wb") as handle:
        np.savez(handle, a=np.array([{}], object)) if load is load_arrays else np.save(handle, np.array([{}], object))
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "a")


# -- parts -----------------------------------------------------------------------------------------------------------


def test_only_parts_that_are_missing_are_done(tmp_path: Path) -> None:
    done: list[int] = []

    def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        for task in tasks:
            done.append(task[0])
            yield function(task)

    folder, told = WorkFolder(tmp_path), []
    with pytest.raises(RuntimeError, match="stopped"):
        folder.parts("stage", fail_at_two, range(4), run)
    assert names(tmp_path) == ["stage-0000", "stage-0001"]
    files = folder.parts("stage", double, range(4), run, lambda *state: told.append(state))
    assert done == [0, 1, 2, 2, 3]
    assert told == [(2, 4), (3, 4), (4, 4)]
    assert [load_rows(file).tolist() for file in files] == [[0], [2], [4], [6]]
    joined = folder.join_rows("stage", files, (4,))
    assert load_rows(joined).tolist() == [0, 2, 4, 6]
    assert names(tmp_path) == ["stage.npy"]


def test_only_the_parts_of_the_stage_are_dropped(tmp_path: Path) -> None:
    folder = WorkFolder(tmp_path)
    folder.parts("survey-0", double, range(2))
    folder.parts("survey-0-log", double, range(1))
    folder.drop("survey-0")
    assert names(tmp_path) == ["survey-0-log-0000"]


def test_seconds_add_up_over_runs(tmp_path: Path) -> None:
    with work_folder(tmp_path / "w", JOB) as folder:
        folder.add_seconds("survey", 1.5)
    with work_folder(tmp_path / "w", JOB) as folder:
        folder.add_seconds("survey", 2)
        assert folder.seconds == {"survey": 3.5}


# -- the folder ------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_nobodys_goes_in_the_end(tmp_path: Path) -> None:
    target = tmp_path / "out.h5ad"
    dead = tmp_path / f".out.h5ad.{2**22 + 1}.work"  # no process has such a number
    dead.mkdir()
    (dead / "part").write_text("half")
    with work_folder(None, JOB, beside=target) as folder:
        assert names(tmp_path) == [f".out.h5ad.{os.getpid()}.work"]
        (folder.path / "part").write_text("half")
    assert names(tmp_path) == []
    with pytest.raises(RuntimeError), work_folder(None, JOB, beside=target):
        raise RuntimeError
    assert names(tmp_path) == []


def test_what_is_not_asked_for_again_is_refused(tmp_path: Path) -> None:
    with work_folder(tmp_path / "w", JOB):
        pass
    with (
        pytest.raises(DataError, match="begun for another job: n_latent is '30' and was '50'") as caught,
        work_folder(tmp_path / "w", {**JOB, "n_latent": 30}),
    ):
        pass
    assert "choose another work folder" in str(caught.value)
    with (
        pytest.raises(DataError, match="layer is 'counts' and was 'None'"),
        work_folder(tmp_path / "w", {**JOB, "layer": "counts"}),
    ):
        pass
    with pytest.raises(DataError, match="input is 'None' and was 'cells"), work_folder(tmp_path / "w", {}):
        pass


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty and no work folder"), work_folder(tmp_path / "w", JOB):
        pass
    assert names(tmp_path / "w") == ["notes.txt"]
    with pytest.raises(DataError, match="cannot be made"), work_folder(tmp_path / "w" / "notes.txt", JOB):
        pass
    with pytest.raises(DataError, match="cannot be made"), work_folder(tmp_path / "none" / "w", JOB):
        pass


def test_a_job_that_is_damaged_is_told(tmp_path: Path) -> None:
    with work_folder(tmp_path / "w", JOB):
        pass
    (tmp_path / "w" / "job.json").write_text("[1]")
    with pytest.raises(DataError, match=r"job\.json.*it is not as it was written"), work_folder(tmp_path / "w", JOB):
        pass


def test_two_runs_at_once_are_refused_and_a_killed_one_is_in_nobodys_way(tmp_path: Path) -> None:
    folder = tmp_path / "w"
    text = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from cellnorm.work import work_folder\n"
        f"with work_folder(Path({str(folder)!r}), {json.loads(json.dumps(JOB))!r}) as f:\n"
        "    (f.path / '.part.tmp').write_text('half')\n"
        "    print('in', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        with pytest.raises(DataError, match="Another run is at work in"), work_folder(folder, JOB):
            pass
        assert (folder / ".part.tmp").exists()
    finally:
        process.kill()
        process.wait()
    with work_folder(folder, JOB):
        assert names(folder) == ["job.json", "lock"], "what was half written is gone"
