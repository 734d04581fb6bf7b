"""A file corrected on a cluster: to the bit as in one process, whoever does the parts or dies. All on loopback."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
from command import correct, few_steps
from machines import (
    eventually,
    free_port,
    listens,
    local_cluster,
    scheduler_program,
    started_by_hand,
    worker_program,
)

import cellnorm as cn
from cellnorm import DataError, parts
from cellnorm.cluster import _connect
from cellnorm.cluster._needs import PROBE

__all__ = ["few_steps"]

distributed = pytest.importorskip("distributed")

N_PARTS = 6
STAGES = ("survey_part", "values_part", "gram_part", "pcs_part", "embedding_part")
SETTINGS: dict[str, Any] = {"n_top_genes": 60, "n_comps": 10, "n_latent": 5, "n_steps": 5, "strength": 1.0}


@pytest.fixture(scope="module")
def made(simulated_once: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a file of six parts, and its correction in one process."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "SPAN_ROWS", -(-simulated_once.n_obs // N_PARTS))
        simulated_once.write_h5ad(folder / "cells.h5ad")
        cn.tl.correct_file(folder / "cells.h5ad", "batch", embedding_only=folder / "one.h5ad", **SETTINGS)
        yield folder


@pytest.fixture
def cells(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file, named as a user in its folder does."""
    Path(tmp_path, "cells.h5ad").symlink_to(made / "cells.h5ad")
    monkeypatch.chdir(tmp_path)
    return Path("cells.h5ad")


def check_same(written: Path, made: Path) -> None:
    found, expected = ad.read_h5ad(written), ad.read_h5ad(made / "one.h5ad")
    np.testing.assert_array_equal(found.obsm["X_cellnorm"], expected.obsm["X_cellnorm"])
    found, expected = found.uns["cellnorm"], expected.uns["cellnorm"]
    assert found.keys() == expected.keys()
    assert found["model"] == expected["model"]
    assert list(found["genes"]) == list(expected["genes"])
    assert found["alarm"]["verdict"] == expected["alarm"]["verdict"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two worker processes, which are started again when they die."""
    with local_cluster(2) as started:
        yield started


def test_two_workers_give_the_bits_of_one_process(cells: Path, made: Path, cluster: Any) -> None:
    with distributed.Client(cluster, set_as_default=False) as client:
        with distributed.get_task_stream(client) as stream:
            written = cn.tl.correct_file(cells, "batch", embedding_only="two.h5ad", client=client, **SETTINGS)
        assert client.status == "running"
    check_same(written, made)
    assert sorted(os.listdir()) == ["cells.h5ad", "two.h5ad"]
    done = [str(task["key"]).split("-")[0] for task in stream.data]
    assert {stage: done.count(stage) for stage in STAGES} == dict.fromkeys(STAGES, N_PARTS)
    assert len({task["worker"] for task in stream.data}) == 2


@pytest.mark.usefixtures("few_steps")
def test_the_command_takes_the_address_of_a_scheduler(cells: Path, cluster: Any) -> None:
    asked = (cells, "-b", "batch", "--strength", 1, "--embedding-only")
    here = correct(*asked, "one.npy", "--stream")
    there = correct(*asked, "two.npy", "--scheduler", cluster.scheduler_address, "--work-dir", "work")
    assert (here.exit_code, there.exit_code) == (0, 0), here.stderr + there.stderr
    assert f"cluster {cluster.scheduler_address}: 2 workers" in there.stderr
    np.testing.assert_array_equal(np.load("one.npy"), np.load("two.npy"))
    assert not Path("work", PROBE).exists()


def test_a_worker_that_is_killed_and_comes_back_costs_no_bit(cells: Path, made: Path, cluster: Any) -> None:
    with distributed.Client(cluster, set_as_default=False) as client:
        killed = killing(min(client.run(os.getpid).values()), "survey")
        written = cn.tl.correct_file(
            cells, "batch", embedding_only="two.h5ad", client=client, progress=killed, **SETTINGS
        )
    check_same(written, made)


def test_workers_started_by_hand_of_which_one_is_killed(
    cells: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_connect, "CONNECT", 60.0)  # for all of them to start
    elsewhere, port = tmp_path.parent / f"{tmp_path.name}_machines", free_port()
    address = f"tcp://127.0.0.1:{port}"
    elsewhere.mkdir()
    programs = scheduler_program(port), worker_program(port, elsewhere), worker_program(port, elsewhere)
    with started_by_hand(elsewhere, *programs) as (_, first, second):
        assert eventually(lambda: listens(port), 60)
        with distributed.Client(address, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
        written = cn.tl.correct_file(
            cells,
            "batch",
            embedding_only="two.h5ad",
            client=address,
            work_dir="work",
            progress=killing(first.pid, "encode"),
            **SETTINGS,
        )
        assert first.wait(10) == -signal.SIGKILL
        assert second.poll() is None
    assert not listens(port)
    check_same(written, made)


def killing(process: int, stage: str) -> Any:
    """A progress that kills a process once a stage has done its first part."""

    def progress(name: str, done: int, total: int, loss: float | None) -> None:
        if (name, done) == (stage, 1):
            os.kill(process, signal.SIGKILL)

    return progress


def test_an_address_where_nobody_is(cells: Path) -> None:
    with pytest.raises(DataError, match="No scheduler answers"):
        cn.tl.correct_file(cells, "batch", client=f"tcp://127.0.0.1:{free_port()}", **SETTINGS)
    assert os.listdir() == ["cells.h5ad"]
