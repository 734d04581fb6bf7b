"""How the command line talks: its bars and its one-line messages."""

import pytest

from cellnorm import console


class Clock:
    """A clock for tqdm that goes on when told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("seconds", [0.5, 5.0])
def test_a_bar_stays_if_its_stage_took_over_a_second(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: float
) -> None:
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    draw = console._bars(True)
    for done in range(11):
        draw("train", done, 10, 1.0 / (done + 1))
        clock.now += seconds / 10
    draw("encode", 1, 2, None)
    draw("", 0, 0, None)  # what is unfinished is wiped away
    shown = capsys.readouterr().err
    last = [line.split("\r")[-1].strip() for line in shown.split("\n")]
    if seconds > 1:
        assert "train" in last[0]
        assert "100%" in last[0]
        assert "loss 0.0909" in last[0]
        assert last[1:] == [""]
    else:
        assert last == [""]


def test_no_bars_where_they_are_not_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    console._bars(False)("train", 1, 2, 0.5)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain é 細胞", "plain é 細胞"),
        ("two\nlines\tand\u2028more", "two lines and more"),
        ("\x1b[31mred\x07\x9b", "\\x1b[31mred\\x07\\x9b"),
        ("\u202eright to left\udcff", "\\u202eright to left\\udcff"),
    ],
)
def test_messages_are_one_line_of_printable_characters(text: str, expected: str) -> None:
    assert console.plain(text) == expected


def test_long_messages_keep_both_ends() -> None:
    line = console.plain("start" + "x" * 100_000 + "end")
    assert len(line) < 2000
    assert line.startswith("start")
    assert line.endswith("end")
