"""Free memory as the system tells it, and an expectation that grows with what a file holds."""

import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellnorm import memory
from cellnorm.memory import Contents, Matrix, free_memory, in_memory_peak, streamed_peak

GB = 10**9
CSR = Matrix(10**8, 4, 4, True)
CELLS = Contents(100_000, 20_000, 8 * 10**8, (CSR,), n_batches=5)


# -- what is free ---------------------------------------------------------------------------------------------------


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system that says what a test writes; 10 GB are available."""
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: {16 * GB // 1024} kB\nMemAvailable: {10 * GB // 1024} kB\n")
    return tmp_path


def group(system: Path, place: str, **files: object) -> None:
    folder = system / "sys/fs/cgroup" / place
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def test_without_limits_it_is_what_the_machine_has_available(system: Path) -> None:
    assert free_memory() == 10 * GB // 1024 * 1024


def test_a_group_of_version_2_leaves_its_limit_less_what_it_cannot_give_back(system: Path) -> None:
    (system / "proc/self/cgroup").write_text("0::/jobs/mine\n")
    group(system, "jobs", memory__max=4 * GB, memory__current=3 * GB, memory__stat=f"anon 5\ninactive_file {GB}")
    group(system, "jobs/mine", memory__max="max", memory__current=GB)
    assert free_memory() == 2 * GB  # the limit is that of the group around it


def test_a_group_of_version_1_leaves_its_limit_less_what_it_cannot_give_back(system: Path) -> None:
    (system / "proc/self/cgroup").write_text("5:cpu:/\n4:memory,pids:/docker/abc\n0::/\n")
    use = {"memory__limit_in_bytes": 3 * GB, "memory__usage_in_bytes": 2 * GB}
    group(system, "memory", **use, memory__stat=f"inactive_file 7\ntotal_inactive_file {GB // 2}")
    assert free_memory() == 3 * GB // 2  # in a container the path is not there, and the top is its own


def test_a_group_that_holds_more_than_its_limit_leaves_nothing(system: Path) -> None:
    (system / "proc/self/cgroup").write_text("0::/\n")
    group(system, "", memory__max=GB, memory__current=2 * GB)
    assert free_memory() == 0


def test_a_limit_of_the_address_space_counts(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (system / "proc/self/statm").write_text("1000 500 100 1 0 50 0\n")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (GB, GB) if which == resource.RLIMIT_AS else None)
    assert free_memory() == GB - 1000 * os.sysconf("SC_PAGE_SIZE")


def test_a_system_that_says_nothing_has_half_of_its_memory_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert free_memory() == total // 2
    monkeypatch.delattr(os, "sysconf")
    assert free_memory() == memory.ASSUMED


def test_this_machine_says_something_likely() -> None:
    assert 10**7 < free_memory() < 10**14


# -- what is expected -----------------------------------------------------------------------------------------------

STORED = st.builds(
    Matrix,
    n_stored=st.integers(0, 10**10),
    value_bytes=st.sampled_from([1, 4, 8]),
    index_bytes=st.sampled_from([0, 4, 8]),
    by_rows=st.booleans(),
)
CONTENTS = st.builds(
    Contents,
    n_cells=st.integers(1, 10**7),
    n_genes=st.integers(1, 60_000),
    n_bytes=st.integers(0, 10**11),
    matrices=st.lists(STORED, max_size=3).map(tuple),
    n_batches=st.integers(1, 1000),
)


@given(contents=CONTENTS, n_top=st.integers(1, 5000))
def test_in_memory_all_that_is_read_counts_and_more_of_anything_is_never_less(contents: Contents, n_top: int) -> None:
    peak = in_memory_peak(contents, n_top)
    assert peak > contents.n_bytes
    assert in_memory_peak(replace(contents, n_bytes=contents.n_bytes + GB), n_top) >= peak + GB
    assert in_memory_peak(replace(contents, n_cells=2 * contents.n_cells), n_top) > peak
    assert in_memory_peak(contents, n_top + 1) >= peak


@given(contents=CONTENTS)
def test_streamed_neither_the_bytes_nor_the_stored_values_count(contents: Contents) -> None:
    contents = replace(contents, matrices=tuple(replace(matrix, by_rows=True) for matrix in contents.matrices))
    more = tuple(replace(matrix, n_stored=100 * matrix.n_stored) for matrix in contents.matrices)
    larger = replace(contents, n_bytes=100 * contents.n_bytes, matrices=more)
    assert streamed_peak(larger, 2000) == streamed_peak(contents, 2000)
    assert streamed_peak(replace(contents, n_batches=2 * contents.n_batches), 2000) > streamed_peak(contents, 2000)


def test_copies_are_told_from_how_the_matrix_is_stored() -> None:
    def peak(**of_matrix: object) -> int:
        return in_memory_peak(replace(CELLS, matrices=(replace(CSR, **of_matrix),)), 2000)

    assert peak() < peak(index_bytes=8) < peak(by_rows=False) < peak(index_bytes=0)


def test_a_million_cells_are_not_expected_to_fit_but_stream() -> None:
    million = Contents(10**6, 20_000, 8 * GB, (replace(CSR, n_stored=10**9),), n_batches=5)
    assert in_memory_peak(million, 2000) > 10 * GB
    assert streamed_peak(million, 2000) < 2 * GB


def test_a_matrix_stored_by_genes_is_sorted_pile_by_pile() -> None:
    wide = replace(CSR, n_stored=10**9)
    piled = streamed_peak(replace(CELLS, matrices=(replace(wide, by_rows=False),)), 2000)
    assert streamed_peak(replace(CELLS, matrices=(wide,)), 2000) < piled
    assert piled < 48 * 0.12 * wide.n_stored  # a pile holds 8,192 of 100,000 cells
    assert streamed_peak(replace(CELLS, n_cells=0), 2000) > 0
