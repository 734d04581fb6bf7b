"""Whatever happens to the two files of a model, it is told; never another error, and never another model."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from saved import fitted, make_folder, make_original, reseal  # noqa: F401 - fixtures

from cellnorm import CellNorm, DataError
from cellnorm.checkpoint import fingerprint, save
from cellnorm.checkpoint._file import CONFIG, FORMAT, VERSION, WEIGHTS, looks_like, read, sealed

DEFAULTS = CellNorm().get_params()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that the examples of a property share."""
    return tmp_path_factory.mktemp("scratch")


def put(original: Path, scratch: Path, name: str, content: bytes) -> Path:
    """The model with other bytes in one file."""
    for each in (CONFIG, WEIGHTS):
        (scratch / each).write_bytes(content if each == name else (original / each).read_bytes())
    return scratch


def test_what_is_written_is_read(original: Path) -> None:
    config, arrays = read(original, DEFAULTS)
    text, weights = sealed({k: v for k, v in config.items() if k not in ("weights", "checksum")}, arrays, DEFAULTS)
    assert (text, weights) == ((original / CONFIG).read_bytes(), (original / WEIGHTS).read_bytes())
    assert (config["format"], config["format_version"]) == (FORMAT, VERSION)
    assert all(values.flags.writeable for values in arrays.values())


@given(name=st.sampled_from([CONFIG, WEIGHTS]), place=st.floats(0, 1, exclude_max=True), flipped=st.integers(1, 255))
@settings(max_examples=80)
def test_no_byte_can_be_changed(original: Path, scratch: Path, name: str, place: float, flipped: int) -> None:
    content = bytearray((original / name).read_bytes())
    content[int(place * len(content))] ^= flipped
    with pytest.raises(DataError) as caught:
        read(put(original, scratch, name, bytes(content)), DEFAULTS)
    assert str(caught.value).isprintable()


def test_no_byte_of_the_first_lines_can_be_changed(original: Path, scratch: Path) -> None:
    content = (original / CONFIG).read_bytes()
    for place in range(120):
        for flipped in (1, 128):
            broken = content[:place] + bytes([content[place] ^ flipped]) + content[place + 1 :]
            with pytest.raises(DataError):
                read(put(original, scratch, CONFIG, broken), DEFAULTS)


@given(name=st.sampled_from([CONFIG, WEIGHTS]), place=st.floats(0, 1, exclude_max=True))
@settings(max_examples=60)
@example(name=CONFIG, place=0.0)
@example(name=WEIGHTS, place=0.0)
@example(name=CONFIG, place=1 - 1e-9)
@example(name=WEIGHTS, place=1 - 1e-9)
def test_no_file_can_be_cut(original: Path, scratch: Path, name: str, place: float) -> None:
    content = (original / name).read_bytes()
    with pytest.raises(DataError):
        read(put(original, scratch, name, content[: int(place * len(content))]), DEFAULTS)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("more", [b"\n", b" ", b"\0", b"{}", b"x" * 10_000])
def test_nothing_can_be_added(folder: Path, name: str, more: bytes) -> None:
    (folder / name).write_bytes((folder / name).read_bytes() + more)
    with pytest.raises(DataError, match=f"{name} is damaged or was edited"):
        read(folder, DEFAULTS)


@given(place=st.floats(0, 1, exclude_max=True), flipped=st.integers(1, 255))
@settings(max_examples=80)
def test_weights_with_a_checksum_that_fits_are_weights_or_refused(
    original: Path, scratch: Path, place: float, flipped: int
) -> None:
    content = bytearray((original / WEIGHTS).read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    content[int(place * (header + 64))] ^= flipped
    put(original, scratch, WEIGHTS, bytes(content))
    reseal(scratch, content=bytes(content))
    try:
        _, arrays = read(scratch, DEFAULTS)
    except DataError:
        return
    assert set(arrays) == set(read(original, DEFAULTS)[1])


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_both_files_are_needed(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"it holds no {name}"):
        read(folder, DEFAULTS)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "loop"])
def test_what_is_no_file_does_no_harm(folder: Path, name: str, kind: str) -> None:
    path = folder / name
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    with pytest.raises(DataError, match=r"is no file|cannot be read"):
        read(folder, DEFAULTS)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_huge_file_is_not_read(folder: Path, name: str) -> None:
    with open(folder / name, "rb+") as file:
        file.truncate(10**12)  # takes no room on the disk
    with pytest.raises(DataError, match="it has 1000000000000 bytes, more than"):
        read(folder, DEFAULTS)


def test_a_link_to_a_file_is_read(folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS).rename(tmp_path / "elsewhere")
    (folder / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    assert read(folder, DEFAULTS)[0]["format"] == FORMAT


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 10_000,
        b"\xff\xfe",
        b'{"format": NaN}',
        b'{"format": 1e999}',
        b'{"format": "\\ud800"}',
        b"\xef\xbb\xbf{}",
    ],
)
def test_a_config_that_is_none(folder: Path, content: bytes) -> None:
    (folder / CONFIG).write_bytes(content)
    with pytest.raises(DataError):
        read(folder, DEFAULTS)


def test_a_newer_format_says_so(folder: Path) -> None:
    reseal(folder, lambda c: c.update(format_version=VERSION + 1, novelty=True))
    with pytest.raises(DataError, match=rf"of format {VERSION + 1}, .* reads format {VERSION}\. Update cellnorm"):
        read(folder, DEFAULTS)


def test_an_older_format_says_so(folder: Path) -> None:
    reseal(folder, lambda c: c.update(format_version=VERSION - 1))
    with pytest.raises(DataError, match=rf"of format {VERSION - 1}, .* reads format {VERSION}\. Fit and save it again"):
        read(folder, DEFAULTS)


@pytest.mark.parametrize("found", [0, -1, True, 1.0, "1", None, [], 10**400])
def test_a_format_that_never_was(folder: Path, found: Any) -> None:
    reseal(folder, lambda c: c.update(format_version=found))
    with pytest.raises(DataError) as caught:
        read(folder, DEFAULTS)
    assert len(str(caught.value)) < 300


def test_a_config_that_says_the_same_in_other_words_was_edited(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_bytes())
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(DataError, match="its checksum is not that of its content"):
        read(folder, DEFAULTS)


def test_a_key_cannot_be_given_twice(folder: Path) -> None:
    text = (folder / CONFIG).read_bytes()
    (folder / CONFIG).write_bytes(text.replace(b'"n_latent": 3', b'"n_latent": 4,\n  "n_latent": 3', 1))
    with pytest.raises(DataError, match="its checksum is not that of its content"):
        read(folder, DEFAULTS)


def test_what_looks_like_a_model(folder: Path, tmp_path: Path) -> None:
    assert looks_like(folder)
    (folder / WEIGHTS).unlink()
    assert looks_like(folder)
    (folder / "mine.txt").touch()
    assert not looks_like(folder)
    assert not looks_like(tmp_path)
    assert not looks_like(tmp_path / "nothing")


def test_two_models_do_not_mix(original: Path, scratch: Path, tmp_path: Path) -> None:
    save(fitted(None), tmp_path / "other")
    assert fingerprint(fitted()) != fingerprint(fitted(None))
    with pytest.raises(DataError, match=WEIGHTS):
        read(put(original, scratch, WEIGHTS, (tmp_path / "other" / WEIGHTS).read_bytes()), DEFAULTS)
