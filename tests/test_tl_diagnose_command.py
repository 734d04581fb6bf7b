"""The recommended command means in a shell what it says."""

import shlex
import subprocess

from hypothesis import given
from hypothesis import strategies as st

from cellnorm.tl._diagnose_command import shell_command


@given(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1, max_size=12))
def test_the_command_is_read_by_a_shell_as_it_was_meant(name: str) -> None:
    command = shell_command("cells.h5ad", [name], None).replace("cellnorm correct", "printf '%s|'")
    words = subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout.decode().split("|")
    value = "|".join(words[1:-1])
    assert words[0] == "cells.h5ad"
    assert value in (f"--batch-key|{name}", f"--batch-key={name}")
    assert command.isprintable()


def test_the_command_has_all_that_was_asked() -> None:
    command = shell_command("-odd.h5ad", ["donor", "-x"], "my counts")
    assert shlex.split(command)[2:] == [
        "./-odd.h5ad",
        "--batch-key",
        "donor",
        "--batch-key=-x",
        "--layer",
        "my counts",
    ]
