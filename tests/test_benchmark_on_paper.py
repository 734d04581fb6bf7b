"""The table on paper: slopes of a straight line are found again, and the workers share what is theirs."""

from pathlib import Path

import on_paper
import pytest

TABLE = """2 cores, load 0.1, Python 3.11.7, zarr

| streamed | 10,000 cells | 100,000 cells | 1,000,000 cells | exponent to 100,000 | exponent to 1,000,000 |
| --- | --- | --- | --- | --- | --- |
| GB on disk | 0.02 | 0.20 | 2.00 |  |  |
| survey, s | 7.0 | 12.0 | 102.0 | 0.2 | 0.9 |
| train, s | 21.0 | 20.0 | 19.0 |  |  |
| whole command, s | 60.0 | 70.0 | 180.0 | 0.1 | 0.4 |
| peak memory, GB | 0.9 | 1.0 | 1.9 |  |  |

| in memory | 10,000 cells | 100,000 cells | exponent to 100,000 |
| --- | --- | --- | --- |
| GB on disk | 9.00 | 9.00 |  |
"""


def test_a_line_through_the_two_largest_sizes() -> None:
    lines = on_paper.read_lines(TABLE)
    assert list(lines) == ["GB on disk", "survey", "train", "whole command", "peak memory"]
    assert lines["survey"] == pytest.approx((2.0, 1e-4))
    assert lines["GB on disk"] == pytest.approx((0.0, 2e-6))
    assert lines["train"] == pytest.approx((19.0, 0.0))  # what grows less is no gain for more cells


def test_workers_share_what_is_theirs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path(tmp_path, "scale.md").write_text(TABLE)
    on_paper.main([str(tmp_path / "scale.md"), "--cells", "100000000", "--workers", "50"])
    shown = dict(line.strip("| ").rsplit(" | ", 1) for line in capsys.readouterr().out.splitlines()[2:])
    assert shown["survey | 100.0 s a million cells, 50 at once"] == "202 s"  # 2 s + 10,000 s / 50
    assert shown["components | 200 B a cell"] == "20 GB"
    assert shown["covariances | 32 MB a part, 64 parts"] == "2.05 GB"
    assert shown["memory of the client, mapped files in it | 1 kB a cell"] == "101 GB"
    on_paper.main([str(tmp_path / "scale.md"), "--workers", "1000"])  # more than there are parts
    assert "100.0 s a million cells, 64 at once" in capsys.readouterr().out


def test_one_size_has_no_slope() -> None:
    with pytest.raises(SystemExit, match="two sizes"):
        on_paper.read_lines("| streamed | 10,000 cells |\n| --- | --- |\n| survey, s | 7.0 |\n")
