"""A result is complete or not there, and nothing but its own name is ever touched."""

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellnorm.errors import DataError
from cellnorm.output import check_target, default_output, reason, replacing, shown, stem


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def _store(path: Path, text: str = "") -> Path:
    path.mkdir()
    (path / ".zgroup").write_text(text)
    return path


def _dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("lab/cells.h5ad", "lab/cells.cellnorm.h5ad"),
        ("cells.zarr", "cells.cellnorm.zarr"),
        ("cells.zarr/", "cells.cellnorm.zarr"),
        ("filtered_feature_bc_matrix.h5", "filtered_feature_bc_matrix.cellnorm.h5ad"),
        ("lab/filtered", "lab/filtered.cellnorm.h5ad"),
        ("GSM1.rep2.h5ad", "GSM1.rep2.cellnorm.h5ad"),
        ("CELLS.H5AD", "CELLS.cellnorm.h5ad"),
        (".h5ad", ".h5ad.cellnorm.h5ad"),
    ],
)
def test_the_result_lies_beside_its_input(path: str, expected: str) -> None:
    assert default_output(path) == Path(expected)


def test_the_result_of_the_current_folder_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "filtered").mkdir()
    monkeypatch.chdir(tmp_path / "filtered")
    assert default_output(".") == tmp_path / "filtered.cellnorm.h5ad"


@given(
    name=st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1).filter(
        lambda n: n not in (".", "..")
    )
)
def test_the_default_never_is_the_input(name: str) -> None:
    output = default_output(name)
    assert output != Path(name)
    assert output.suffix in (".h5ad", ".zarr")
    assert output.name.startswith(stem(name))


@given(text=st.text(min_size=1, max_size=300))
def test_a_path_is_shown_in_one_short_printable_line(text: str) -> None:
    assert shown(text).isprintable()
    if len(text) > 120 and text[-50:].isascii() and text[-50:].isalnum():
        assert text[-50:] in shown(text)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "permission denied"),
        (ValueError("first line\nsecond"), "first line"),
        (KeyError(), "KeyError"),
        (ValueError("\x1b[31mred"), "\\x1b[31mred"),
        (ValueError("x" * 1000), "x" * 150),
    ],
)
def test_a_reason_is_short(error: Exception, expected: str) -> None:
    assert reason(error) == expected


def _same(path: Path) -> tuple[Path, Path]:
    path.touch()
    return path, path


def _link_to_input(path: Path) -> tuple[Path, Path]:
    path.touch()
    link = path.with_name("link.h5ad")
    link.symlink_to(path)
    return path, link


def _second_name(path: Path) -> tuple[Path, Path]:
    path.touch()
    path.with_name("same.h5ad").hardlink_to(path)
    return path, path.with_name("same.h5ad")


def _inside(path: Path) -> tuple[Path, Path]:
    path.mkdir()
    return path, path / "out.h5ad"


def _around(path: Path) -> tuple[Path, Path]:
    store = _store(path.with_name("out.zarr"))
    inner = store / "in.h5ad"
    inner.touch()
    return inner, store


HARMFUL: list[Callable[[Path], tuple[Path, Path]]] = [_same, _link_to_input, _second_name, _inside, _around]


@pytest.mark.parametrize("arrange", HARMFUL)
def test_an_output_that_would_change_the_input_is_refused(
    tmp_path: Path, arrange: Callable[[Path], tuple[Path, Path]]
) -> None:
    source, target = arrange(tmp_path / "in.h5ad")
    with pytest.raises(DataError, match="would change the input"):
        check_target(target, [source], force=True)


def test_existing_results_need_force(tmp_path: Path) -> None:
    for target in (tmp_path / "a.h5ad", _store(tmp_path / "b.zarr"), tmp_path / "dangling.h5ad"):
        if target.name == "dangling.h5ad":
            target.symlink_to(tmp_path / "nowhere")
        elif target.suffix == ".h5ad":
            target.touch()
        with pytest.raises(DataError, match=r"exists.*--force"):
            check_target(target)
        check_target(target, force=True)


def test_force_never_replaces_what_no_result_would_be(tmp_path: Path) -> None:
    (tmp_path / "photos.zarr").mkdir()
    (tmp_path / "photos.zarr" / "cat.png").touch()
    (tmp_path / "folder.h5ad").mkdir()
    (tmp_path / "file.zarr").touch()
    for name in ("photos.zarr", "folder.h5ad", "file.zarr"):
        with pytest.raises(DataError, match="is not replaced"):
            check_target(tmp_path / name, force=True)


@pytest.mark.parametrize("name", ["a.csv", "a", "a.h5", "a.h5ad.gz"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"must end in \.h5ad or \.zarr"):
        check_target(tmp_path / name)


def test_a_folder_that_cannot_take_the_result_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="There is no folder"):
        check_target(tmp_path / "missing" / "a.h5ad")
    with pytest.raises(DataError, match="There is no folder"):
        check_target(tmp_path / "file" / "a.h5ad")
    if Path("/proc/self").is_dir():  # where even root cannot write
        with pytest.raises(DataError, match="cannot be written"):
            check_target("/proc/self/a.h5ad")
    with pytest.raises(DataError, match="cannot be written: file name too long"):
        check_target(tmp_path / ("n" * 251 + ".h5ad"))


def test_a_missing_input_is_named_before_its_folder_is_blamed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        check_target(tmp_path / "missing" / "a.cellnorm.h5ad", [tmp_path / "missing" / "a.h5ad"])


def test_a_check_leaves_nothing(tmp_path: Path) -> None:
    check_target(tmp_path / "a.h5ad")
    assert _names(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("stop", [None, ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [False, True])
def test_a_block_that_fails_leaves_everything_as_it_was(
    tmp_path: Path, kind: str, stop: type[BaseException] | None, before: bool
) -> None:
    target = tmp_path / "a.x"

    def make(path: Path, text: str) -> None:
        if kind == "folder":
            _store(path, text)
        else:
            path.write_text(text)

    def content() -> str:
        return (target / ".zgroup" if kind == "folder" else target).read_text()

    if before:
        make(target, "old")
    with pytest.raises(stop) if stop else contextlib.nullcontext(), replacing(target) as temporary:
        make(temporary, "new")
        if stop:
            raise stop
    assert _names(tmp_path) == (["a.x"] if before or not stop else [])
    if before or not stop:
        assert content() == ("new" if not stop else "old")


def test_a_folder_comes_back_if_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, replace = _store(tmp_path / "a.zarr", "old"), os.replace

    def fails(source: Path, destination: Path) -> None:
        if source.name.endswith(".tmp"):
            raise OSError(errno.EIO, "Input/output error")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="Input/output"), replacing(target) as temporary:
        _store(temporary, "new")
    assert (target / ".zgroup").read_text() == "old"
    assert _names(tmp_path) == ["a.zarr"]


def test_only_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    dead, alive = _dead_pid(), os.getppid()
    stale = [f".a.h5ad.{dead}.tmp", f".a.h5ad.{dead}.old", f".a.h5ad.{os.getpid()}.tmp", f".a.h5ad.{10**30}.tmp"]
    kept = [f".a.h5ad.{alive}.tmp", f".b.h5ad.{dead}.tmp", ".a.h5ad.tmp", f"a.h5ad.{dead}.tmp", ".aXh5ad.1.tmp"]
    for name in stale[:-1] + kept:
        (tmp_path / name).touch()
    _store(tmp_path / stale[-1])
    with replacing(tmp_path / "a.h5ad") as temporary:
        temporary.touch()
    assert _names(tmp_path) == sorted([*kept, "a.h5ad"])


def test_removing_follows_no_links(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "a").touch()
    (tmp_path / f".a.h5ad.{_dead_pid()}.tmp").symlink_to(precious)
    (tmp_path / "a.zarr").symlink_to(precious)
    for name in ("a.h5ad", "a.zarr"):
        with replacing(tmp_path / name) as temporary:
            _store(temporary)
    assert _names(precious) == ["a"]
    assert _names(tmp_path) == ["a.h5ad", "a.zarr", "precious"]
