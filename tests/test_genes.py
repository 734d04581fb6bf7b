"""Genes are found by name, whatever their order; names of another kind are refused with a hint."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellnorm.errors import DataError
from cellnorm.genes import MIN_SHARE, GeneMatch, match_genes

SYMBOLS = [f"Gene{i}" for i in range(20)]
ENSEMBL = [f"ENSG{i:011d}" for i in range(20)]
names = st.lists(st.text("abAB.1 ", min_size=1, max_size=3), min_size=1, max_size=12)


@given(names, st.integers(0, 2**32 - 1))
def test_every_gene_is_found_in_any_order(wanted: list[str], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(wanted))
    weight = np.random.default_rng(seed).random(len(wanted))
    match = match_genes(wanted, [wanted[i] for i in order] + ["other"], weight=weight)
    assert match.share == 1
    assert match.found.all()
    assert sorted(match.positions) == list(range(len(wanted)))
    assert [wanted[order[p]].strip() for p in match.positions] == [name.strip() for name in wanted]


@given(names, names)
def test_what_is_found_has_the_name_and_no_column_is_used_twice(wanted: list[str], found: list[str]) -> None:
    try:
        match = match_genes(wanted, found)
    except DataError:
        return
    used = match.positions[match.found]
    assert len(set(used.tolist())) == len(used)
    for name, place in zip(wanted, match.positions, strict=True):
        if place >= 0:
            assert found[place].strip().casefold() == name.strip().casefold()


def test_what_is_missing_says_so() -> None:
    match = match_genes(["a", "b", "c"], ["c", "x", "a"])
    assert match.positions.tolist() == [2, -1, 0]
    assert match.found.tolist() == [True, False, True]
    assert match.share == pytest.approx(2 / 3)
    assert match.note == ""


def test_the_first_of_genes_named_alike_is_taken() -> None:
    assert match_genes(["a", "b"], ["b", "a", "a", "b"]).positions.tolist() == [1, 0]
    assert match_genes(["a", "a", "b"], ["a", "b", "a"]).positions.tolist() == [0, 2, 1]
    assert match_genes(["a", "a"], ["a"]).positions.tolist() == [0, -1]


@pytest.mark.parametrize(("ours", "theirs"), [("", ".7"), (".2", ".13"), (".2", "")])
def test_versions_of_ensembl_numbers_do_not_count(ours: str, theirs: str) -> None:
    match = match_genes([n + ours for n in ENSEMBL], [n + theirs for n in reversed(ENSEMBL)])
    assert match.positions.tolist() == list(range(20))[::-1]
    assert match.note == "20 without the version of their Ensembl number"


def test_a_number_behind_a_symbol_is_no_version() -> None:
    match = match_genes(["RP11-34P13.7", *SYMBOLS], ["RP11-34P13.8", "RP11-34P13", *SYMBOLS])
    assert match.positions[0] == -1


def test_the_two_copies_of_a_gene_on_x_and_y_stay_apart() -> None:
    wanted = [*ENSEMBL, f"{ENSEMBL[3]}_PAR_Y"]
    match = match_genes(wanted, [f"{ENSEMBL[3]}.1_PAR_Y", *(f"{n}.1" for n in ENSEMBL)])
    assert match.positions.tolist() == [*range(1, 21), 0]


def test_capitals_do_not_count_once_most_genes_are_found() -> None:
    match = match_genes([*SYMBOLS, "C1orf112"], [*SYMBOLS, "C1ORF112"])
    assert match.positions[-1] == 20
    assert match.note == "1 without regard to capitals"


def test_capitals_count_where_two_genes_could_be_meant() -> None:
    assert match_genes([*SYMBOLS, "abc"], [*SYMBOLS, "ABC", "Abc"]).positions[-1] == -1
    assert match_genes([*SYMBOLS, "abc", "aBc"], [*SYMBOLS, "ABC"]).positions[-2:].tolist() == [-1, -1]
    assert match_genes([*SYMBOLS, "abc"], [*SYMBOLS, "ABC", "abc"]).positions[-1] == 21


def test_the_names_that_find_most_genes_are_taken() -> None:
    match = match_genes(ENSEMBL, SYMBOLS, others={"var['gene_ids']": ENSEMBL[::-1], "var['length']": range(20)})
    assert match.positions.tolist() == list(range(20))[::-1]
    assert match.note == "names taken from var['gene_ids']"
    assert match_genes(ENSEMBL, ENSEMBL, others={"var['gene_ids']": ENSEMBL[::-1]}).note == ""


def test_the_weight_decides_what_is_enough() -> None:
    weight = np.where(np.arange(20) < 2, 10.0, 0.1)
    assert match_genes(SYMBOLS, SYMBOLS[:2], weight=weight).share == pytest.approx(20 / 21.8)
    with pytest.raises(DataError, match=r"18 of the model's 20 genes, 8% of what it sees, are in the file"):
        match_genes(SYMBOLS, SYMBOLS[2:], weight=weight)


def test_the_limit_is_as_stated() -> None:
    n_least = round(20 * MIN_SHARE)
    assert isinstance(match_genes(SYMBOLS, SYMBOLS[:n_least]), GeneMatch)
    with pytest.raises(DataError, match=f"{n_least - 1} of the model's 20 genes"):
        match_genes(SYMBOLS, SYMBOLS[: n_least - 1])


@pytest.mark.parametrize(
    ("wanted", "found", "hint"),
    [
        (SYMBOLS, ENSEMBL, "the model has gene symbols, the file Ensembl numbers"),
        (ENSEMBL, SYMBOLS, "the model has Ensembl numbers, the file gene symbols"),
        (ENSEMBL, [n.replace("ENSG", "ENSMUSG") for n in ENSEMBL], "different species"),
        ([n.upper() for n in SYMBOLS], SYMBOLS, "capitals alone, as human"),
        (SYMBOLS, [n.lower() for n in SYMBOLS], "capitals alone"),
        (SYMBOLS, list(range(20)), "plain numbers are no gene names"),
        (SYMBOLS, [f"GRCh38_{n}" for n in SYMBOLS], "start with a genome, as in 'GRCh38_Gene0'"),
        (SYMBOLS, [f"hg19___{n}" for n in SYMBOLS], "start with a genome"),
        (SYMBOLS, ["x", "y"], "another species, or the file holds a part"),
        (SYMBOLS, [], "another species, or the file holds a part"),
        (SYMBOLS, ["\x1b[2J" * 50], "another species"),
    ],
)
def test_names_of_another_kind_are_refused_with_a_hint(wanted: list[str], found: list[str], hint: str) -> None:
    with pytest.raises(DataError, match=hint) as caught:
        match_genes(wanted, found)
    assert "0 of the model's 20 genes, 0% of what it sees, are in the file; at least 30% are needed" in str(
        caught.value
    )
    assert "\x1b" not in str(caught.value)
