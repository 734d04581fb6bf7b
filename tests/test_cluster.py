"""The package cluster: connections, what workers must have, and `map` on two worker processes. All on loopback."""

import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import eventually, free_port, listens, local_cluster, scheduler_program, started_by_hand, worker_program
from toys import Toy

from cellnorm import DataError
from cellnorm.cluster import _connect, _map, in_order, on_cluster, opened
from cellnorm.cluster._needs import PROBE, complaint, needs_of

distributed = pytest.importorskip("distributed")
dask = pytest.importorskip("dask")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two worker processes; a task that two of them died of is given up."""
    with dask.config.set({"distributed.scheduler.allowed-failures": 1}), local_cluster(2) as started:
        yield started


@pytest.fixture
def client(cluster: Any) -> Iterator[Any]:
    with distributed.Client(cluster, set_as_default=False) as connection:
        connection.wait_for_workers(2, timeout=30)
        yield connection


def test_answers_come_in_the_order_of_the_tasks(client: Any) -> None:
    tasks = [Toy(i, seconds=0.2 if i == 0 else 0.0) for i in range(9)]
    assert list(in_order(client)(toys.square, tasks)) == [i * i for i in range(9)]


@settings(max_examples=8, deadline=None)
@given(numbers=st.lists(st.integers(-9, 9), max_size=7), offset=st.integers(-9, 9))
def test_it_is_the_builtin_map(cluster: Any, numbers: list[int], offset: int) -> None:
    function, tasks = partial(toys.added, offset), [Toy(number) for number in numbers]
    with opened(cluster.scheduler_address) as connection:
        assert list(in_order(connection)(function, tasks)) == list(map(function, tasks))


def test_an_error_of_a_task_reaches_the_user_as_it_is(client: Any) -> None:
    answers = in_order(client)(toys.fails, [Toy(i) for i in range(4)])
    assert [next(answers), next(answers)] == [0, 1]
    with pytest.raises(DataError) as caught:
        next(answers)
    assert type(caught.value) is DataError
    assert str(caught.value) == "the second part\nholds no cells"
    with pytest.raises(TimeoutError, match=r"^of the task$"):
        list(in_order(client)(toys.fails, [Toy(5)]))


def test_what_a_dead_worker_had_is_done_again(client: Any, tmp_path: Path) -> None:
    tasks = [Toy(i, tmp_path, 0.02) for i in range(12)]
    assert list(in_order(client)(toys.dies_once, tasks)) == [i * i for i in range(12)]
    assert Path(tmp_path, "dead").exists()


def test_a_task_that_kills_its_workers_is_given_up(client: Any) -> None:
    with pytest.raises(DataError, match=r"died, one after the other.*more memory"):
        list(in_order(client)(toys.dies, [Toy(0)]))


def test_few_tasks_are_in_flight(client: Any, tmp_path: Path) -> None:
    answers = in_order(client)(toys.leaves_trace, [Toy(i, tmp_path) for i in range(50)])
    assert next(answers) == 0
    time.sleep(0.5)  # nobody asks
    assert {int(path.name) for path in tmp_path.iterdir()} == set(range(2 * _map.IN_FLIGHT))
    assert len(list(answers)) == 49


def test_nothing_is_left_on_the_scheduler(client: Any, cluster: Any, tmp_path: Path) -> None:
    list(in_order(client)(toys.square, [Toy(i) for i in range(5)]))
    assert eventually(lambda: not cluster.scheduler.tasks)
    answers = in_order(client)(toys.leaves_trace, [Toy(i, tmp_path, 0.5) for i in range(50)])
    next(answers)
    answers.close()  # as when what asked for them failed
    assert eventually(lambda: not cluster.scheduler.tasks)
    assert len(list(tmp_path.iterdir())) <= 2 * _map.IN_FLIGHT


def test_an_interrupted_run_cancels_what_is_in_flight(client: Any, cluster: Any, tmp_path: Path) -> None:
    tasks = [Toy(i, tmp_path, 1.0) for i in range(50)]
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt) as caught:
        list(in_order(client)(toys.leaves_trace, tasks))
    assert eventually(lambda: not cluster.scheduler.tasks)
    assert caught.tb  # which keeps alive what is not cancelled
    assert len(list(tmp_path.iterdir())) <= 2 * _map.IN_FLIGHT


def test_a_worker_does_one_task_at_a_time_whatever_its_threads(client: Any) -> None:
    found = list(in_order(client)(toys.side_by_side, [Toy(i, seconds=0.05) for i in range(12)]))
    assert {n for _, n in found} == {1}
    assert len({process for process, _ in found}) == 2


def test_all_that_is_needed_is_there(client: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tmp_path / "cells.h5ad"
    source.write_bytes(b"1234")
    caplog.set_level(logging.INFO, "cellnorm")
    with on_cluster(client, source, tmp_path) as mapped:
        assert list(mapped(toys.square, [Toy(3)])) == [9]
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]
    said = [record.getMessage() for record in caplog.records if record.name.startswith("cellnorm")]
    assert "2 workers" in said[0]
    assert "one thread each" in said[1]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"size": 5}, "does not see the input .*cells.h5ad as the client does. Put both on storage that"),
        ({"written": "by another client"}, "does not see the work folder"),
        ({"folder": "/no/such/folder"}, "does not see the work folder /no/such/folder"),
        ({"versions": (("cellnorm", "99.0"),)}, r"has cellnorm [\w.]+ instead of 99.0. Install"),
    ],
)
def test_a_worker_that_lacks_something_is_named(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], said: str
) -> None:
    source = tmp_path / "cells.h5ad"
    source.write_bytes(b"1234")
    monkeypatch.setattr(_map, "needs_of", lambda *args: needs_of(*args)._replace(**changed))
    named = rf"The worker tcp://127\.0\.0\.1:\d+ on \S+ {said}"
    with pytest.raises(DataError, match=named), on_cluster(client, source, tmp_path):
        pass
    assert not Path(tmp_path, PROBE).exists()
    # and one that comes later, at its first task
    late = needs_of(source, tmp_path, "gone")._replace(**changed)
    with pytest.raises(DataError, match=named):
        list(in_order(client, late)(toys.square, [Toy(3)]))


def test_needs_of_this_process(tmp_path: Path) -> None:
    source = tmp_path / "cells.zarr"
    source.mkdir()
    Path(tmp_path, PROBE).write_text("mine")
    needs = needs_of(source, tmp_path, "mine")
    assert complaint(needs) == ""
    assert dict(needs.versions).keys() == {"cellnorm", "numpy", "scipy", "torch"}
    assert all("+" not in version for _, version in needs.versions)
    Path(tmp_path, PROBE).write_bytes(b"\xff\xfe")
    assert "work folder" in complaint(needs._replace(written="ours"))
    assert "input" in complaint(needs._replace(source=str(tmp_path / "none")))


@pytest.mark.parametrize(
    "address",
    ["localhost:8786", "tcp://10.0.0.1", "tcp://:8786", "tcp://a:b", "inproc://1/2", "ucx://a:1", "http://a:1"],
)
def test_only_addresses_of_processes_elsewhere_are_taken(address: str) -> None:
    with pytest.raises(DataError, match="Give its address as tcp://host:port"), opened(address):
        pass


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    with pytest.raises(DataError, match=f"No scheduler answers at {address} .*Start one there"), opened(address):
        pass
    monkeypatch.setattr(_connect, "CONNECT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DataError, match=r"No scheduler answers .*timed out"), opened(address):
            pass
        with pytest.raises(DataError, match="dask knows no certificates"), opened(address.replace("tcp", "tls")):
            pass


def test_a_connection_that_failed_leaves_no_client_behind() -> None:
    """One that the garbage collector finds while another one starts would hang it (distributed's LoopRunner)."""
    gc.collect()
    before = n_clients()
    gc.disable()  # which might come to the rescue
    try:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"tls://127.0.0.1:{silent.getsockname()[1]}"
            with pytest.raises(DataError, match="dask knows no certificates") as caught, opened(address):
                pass
        assert caught.tb  # the error is still there, and holds none
        assert n_clients() == before
    finally:
        gc.enable()


def n_clients() -> int:
    """Clients in memory, those too that never got as far as `Client._instances`."""
    return sum(type(found) is distributed.Client for found in gc.get_objects())


def test_dask_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(DataError, match=r"pip install 'cellnorm\[cluster\]'"), opened("tcp://127.0.0.1:8786"):
        pass


def test_a_client_that_cannot_be_used(cluster: Any) -> None:
    with distributed.Client(cluster, set_as_default=False) as connection:
        pass
    with pytest.raises(DataError, match="closed"), opened(connection):
        pass
    with (
        distributed.LocalCluster(
            1, processes=False, dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL
        ) as threads,
        distributed.Client(threads, set_as_default=False) as connection,
        pytest.raises(DataError, match="processes of their own"),
        opened(connection),
    ):
        pass


def test_a_connection_is_closed_by_who_made_it(client: Any, cluster: Any) -> None:
    with opened(client) as same:
        assert same is client
    assert client.status == "running"
    with opened(cluster.scheduler_address) as own:
        assert own.status == "running"
    assert own.status == "closed"


def test_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_connect, "CONNECT", 0.5)
    monkeypatch.setattr(_map, "POLL", 0.1)
    monkeypatch.setattr(_map, "DESERTED", 0.4)
    with local_cluster(0) as empty:
        with pytest.raises(DataError, match=r"has no workers\. Start some"), opened(empty.scheduler_address):
            pass
        with (
            distributed.Client(empty, set_as_default=False) as connection,  # they were there, and went
            pytest.raises(DataError, match="No worker has been at the scheduler"),
        ):
            list(in_order(connection)(toys.square, [Toy(1)]))


@pytest.mark.parametrize("while_waiting", [False, True])
def test_the_scheduler_is_lost_in_mid_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, while_waiting: bool) -> None:
    monkeypatch.setattr(_connect, "CONNECT", 20.0)  # for both to start
    port = free_port()
    with started_by_hand(tmp_path, scheduler_program(port), worker_program(port, tmp_path)) as (scheduler, _):
        assert eventually(lambda: listens(port))
        with opened(f"tcp://127.0.0.1:{port}") as connection:
            connection._timeout = 0.5  # to find it again
            answers = in_order(connection)(toys.square, [Toy(i, seconds=1.0 if i else 0.0) for i in range(50)])
            assert next(answers) == 0
            threading.Timer(0.4 if while_waiting else 0.0, scheduler.kill).start()
            time.sleep(0.0 if while_waiting else 0.2)
            with pytest.raises(DataError, match="connection to its scheduler lost"):
                list(answers)


@pytest.mark.parametrize("bare", ["scheduler", "worker"])
def test_who_has_no_cellnorm_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bare: str) -> None:
    monkeypatch.setattr(_connect, "CONNECT", 20.0)
    port = free_port()
    without = {bare: "sys.modules['cellnorm'] = None"}
    programs = (
        scheduler_program(port, without.get("scheduler", "pass")),
        worker_program(port, tmp_path, without.get("worker", "pass")),
    )
    with started_by_hand(tmp_path, *programs):
        assert eventually(lambda: listens(port))
        with (
            opened(f"tcp://127.0.0.1:{port}") as connection,
            pytest.raises(DataError, match=rf"The {bare} tcp://\S+ cannot load cellnorm .*Install cellnorm"),
            on_cluster(connection, tmp_path, tmp_path),
        ):
            pass
