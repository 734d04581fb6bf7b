"""The two files of a saved model, written so that they can be read again and read so that nothing in them is trusted.

Reading goes from the cheap to the dear: format and version, a checksum over config.json, its keys, types and sizes, the
length and the checksum of the weights, then name, type, shape and values of every array. No memory is taken because a
file asks for it. A checksum tells damage, not intent: whoever can write a folder can make another valid model of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as to_bytes

from cellnorm.checkpoint._check import Arrays, Config, complaints, faults
from cellnorm.errors import DataError
from cellnorm.output import reason

__all__ = ["CONFIG", "FORMAT", "VERSION", "WEIGHTS", "looks_like", "read", "sealed"]

FORMAT, VERSION = "cellnorm-model", 3
CONFIG, WEIGHTS = "config.json", "weights.safetensors"
MOST_CONFIG = 2**26  # bytes, far above any real one; below what would trouble a machine that is asked to read it
TYPES = {"F32": np.float32, "F64": np.float64, "I32": np.int32, "I64": np.int64}


def sealed(config: Config, arrays: Arrays, defaults: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """The bytes of both files, checked as they will be when they are read.

    Parameters
    ----------
    config
        All keys of the format but `weights` and `checksum`.
    arrays
        Weights by name.
    defaults
        Parameters of the estimator with their defaults, which tell the types.

    Raises
    ------
    DataError
        What could not be read again, as a batch whose name holds a control character.
    """
    weights = to_bytes({name: np.ascontiguousarray(values) for name, values in arrays.items()})
    config = {**config, "weights": {"bytes": len(weights), "sha256": _sha256(weights)}, "checksum": ""}
    complaint = next(complaints(config, defaults), None) or next(faults(config, arrays), None)
    if complaint:
        raise DataError(f"The model cannot be saved: {complaint}. Change this and fit again.")
    text = _rendered({**config, "checksum": _checksum(config)})
    if len(text) > MOST_CONFIG:
        raise DataError(f"The model cannot be saved: its names take {len(text)} bytes. Use shorter ones and fit again.")
    return text, weights


def read(folder: Path, defaults: Mapping[str, Any]) -> tuple[Config, Arrays]:
    """The config and the arrays of a saved model, both checked.

    Parameters
    ----------
    folder
        Where both files are.
    defaults
        As for `sealed`.

    Raises
    ------
    DataError
        A file is missing or of another kind, format or version, or not as it was written.
    """
    config = _parsed(_content(folder / CONFIG, MOST_CONFIG))
    if complaint := next(complaints(config, defaults), None):
        raise _damaged(CONFIG, complaint)
    content = _content(folder / WEIGHTS, config["weights"]["bytes"], config["weights"]["sha256"])
    try:
        entries = deserialize(content)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise _damaged(WEIGHTS, reason(error)) from None
    if strange := {entry["dtype"] for _, entry in entries} - set(TYPES):
        raise _damaged(WEIGHTS, f"it holds values of type {sorted(strange)[0]}")
    arrays = {name: np.frombuffer(e["data"], TYPES[e["dtype"]]).reshape(e["shape"]).copy() for name, e in entries}
    if fault := next(faults(config, arrays), None):
        raise _damaged(WEIGHTS, fault)
    return config, arrays


def looks_like(folder: Path) -> bool:
    """Whether a folder holds a model, damaged perhaps, and nothing else that would be lost with it."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    try:
        files = set(os.listdir(folder))
        marked = f'"format": "{FORMAT}"'.encode() in _content(folder / CONFIG, MOST_CONFIG)[:100]
    except (DataError, OSError):
        return False
    return marked and files <= {CONFIG, WEIGHTS}


def _content(path: Path, most: int, sha256: str = "") -> bytes:
    """Bytes of a file, no more than `most`, and with the checksum if one is given; pipes and devices are no files."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{path.name} is no file. Give the folder that a model was saved into.")
        if found.st_size > most:
            raise _damaged(path.name, f"it has {found.st_size} bytes, more than the {most} that it may have")
        with open(path, "rb") as file:
            # before any memory is taken
            if sha256 and (found.st_size < most or hashlib.file_digest(file, "sha256").hexdigest() != sha256):
                raise _damaged(path.name, f"its {found.st_size} bytes are not the {most} that were written")
            file.seek(0)
            return file.read(found.st_size)
    except FileNotFoundError:
        raise DataError(f"it holds no {path.name}. Give the folder that a model was saved into.") from None
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {reason(error)}. Check its rights.") from error


def _parsed(content: bytes) -> Config:
    """The config, if it is one of this format and byte for byte as it was written."""
    try:
        config = json.loads(content.decode())
        again = _rendered(config)
    except (ValueError, RecursionError):
        raise _damaged(CONFIG, "it is not JSON as it was written") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise DataError(f"{CONFIG} is not that of a {FORMAT}. Give the folder that a model was saved into.")
    found = config.get("format_version")
    if type(found) is int and found > VERSION:
        raise DataError(f"it is of format {found!r:.20}, and this cellnorm reads format {VERSION}. Update cellnorm.")
    if type(found) is int and 0 < found < VERSION:
        raise DataError(f"it is of format {found}, and this cellnorm reads format {VERSION}. Fit and save it again.")
    if found != VERSION or type(found) is not int:
        raise _damaged(CONFIG, f"there is no format {found!r:.40}")
    if config.get("checksum") != _checksum(config) or again != content:
        raise _damaged(CONFIG, "its checksum is not that of its content")
    return config


def _rendered(config: Any) -> bytes:
    return (json.dumps(config, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _checksum(config: Config) -> str:
    return _sha256(_rendered({k: v for k, v in config.items() if k != "checksum"}))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _damaged(name: str, what: str) -> DataError:
    text = f"{name} is damaged or was edited: {what}. Copy the folder again from where it was made, or save it anew."
    return DataError(text)
