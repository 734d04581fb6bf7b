import re
from collections.abc import Callable
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import ATTACK, VERDICTS, Document, alarm, corrected, diagnosis_of, scores_of, write
from snapshots import snapshot

from cellnorm import report
from cellnorm.errors import DataError
from cellnorm.pl._style import levels_of
from cellnorm.report._content import batch_rows, score_table
from cellnorm.report._render import number, percent, plain, render, short


@pytest.fixture(scope="module")
def corrected_once(simulated_once: ad.AnnData) -> ad.AnnData:
    adata = corrected(simulated_once.copy())
    # Layouts of the reports are UMAPs, which take seconds: here one is there already, see test_layouts_are_made.
    adata.obsm["X_umap_cellnorm"] = adata.obsm["X_cellnorm"][:, :2].copy()
    return adata


@pytest.fixture
def adata(corrected_once: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> ad.AnnData:
    monkeypatch.setattr("cellnorm.report._content.layout", lambda x, seed: (np.asarray(x)[:, :2], "UMAP"))
    return corrected_once.copy()


def page(path: Path) -> Document:
    return Document(path.read_text(encoding="utf-8"))


# What the page says -------------------------------------------------------------------------------------------------


HEADLINES = {
    "good": "each kept its own structure",
    "look": "needs your eye",
    "over-corrected": "merged cells that are probably different",
    "under-corrected": "still apart",
}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_the_verdict_comes_first_with_its_reason_and_numbers(adata: ad.AnnData, verdict: str, tmp_path: Path) -> None:
    adata.uns["cellnorm"]["alarm"] = alarm(adata.obs["batch"], verdict)
    found = page(write(tmp_path / "r.html", adata))
    text = found.text
    assert [HEADLINES[v] in text for v in VERDICTS] == [v == verdict for v in VERDICTS]
    places = [
        text.index(part) for part in (HEADLINES[verdict], f"The reason for {verdict}.", "71", "88", "0.08", "0.97")
    ]
    assert max(places) < text.index("By batch") < text.index("Scores Best value")
    marked = "Clusters to look at" in text
    assert marked == (verdict != "good")
    assert ("lab1: 2" in text) == marked


def test_the_page_has_every_part_in_order(adata: ad.AnnData, tmp_path: Path) -> None:
    source = write(tmp_path / "r.html", adata, name="cells.h5ad").read_text()
    ids = re.findall(r'<section id="(\w+)"', source)
    assert ids == ["pictures", "scores", "batches", "diagnosis", "training", "settings", "methods"]
    assert re.findall(r'<li><a href="#(\w+)"', source) == ids
    assert "<title>cells.h5ad – cellnorm correction: good</title>" in source


def test_a_correction_that_was_not_checked_still_has_a_page(adata: ad.AnnData, tmp_path: Path) -> None:
    del adata.uns["cellnorm"]["alarm"]
    text = page(write(tmp_path / "r.html", adata)).text
    assert "This correction was not checked." in text
    n_matched = adata.uns["cellnorm"]["batches"]["n_matched"]
    assert f"lab0 100 {n_matched[0]} lab1 100 {n_matched[1]}" in text
    bare = adata.copy()
    bare.uns["cellnorm"] = {}
    assert "This correction was not checked." in page(write(tmp_path / "bare.html", bare)).text


def test_scores_have_their_values_intervals_and_a_best(adata: ad.AnnData, tmp_path: Path) -> None:
    text = page(write(tmp_path / "r.html", adata)).text
    assert "Total 0.4 batch correction + 0.6 bio conservation 0.312 0.302 to 0.322 0.362 (best) 0.352 to 0.372" in text
    assert "95 % bootstrap" in text.replace("\xa0", " ")
    without = page(write(tmp_path / "s.html", adata, scores=scores_of("X_pca", intervals=False))).text
    assert "bootstrap" not in without
    assert "(best)" not in without  # of one there is no best


def test_diagnosis_and_settings_are_there(adata: ad.AnnData, tmp_path: Path) -> None:
    found = page(write(tmp_path / "r.html", adata, command="cellnorm correct 'a b.h5ad'"))
    for part in ("Correct for it.", "what batch does", "A warning about lab0.", "seems to lack cluster 2", "crossed"):
        assert part in found.text
    for part in ("cellnorm correct 'a b.h5ad'", "n_steps 20", "random_state 0", "device cpu", "torch", "layer not set"):
        assert part in found.text
    assert "Which columns" not in page(write(tmp_path / "s.html", adata, diagnosis={})).text


def test_methods_are_those_of_this_run(adata: ad.AnnData, tmp_path: Path) -> None:
    text = page(write(tmp_path / "r.html", adata)).text
    methods = text[text.index("To paste") :]
    for part in ("300 cells from 3 batches (batch)", "5 latent dimensions", "for 20 steps", "seed was 0", "log(1 + x)"):
        assert part in methods
    body, references = methods.split(" References ")
    assert not re.search(r"[a-z)\]]\.[A-Z\d]", body)  # sentences are apart
    cited = [int(n) for n in re.findall(r"\[(\d+)\]", body)]
    assert sorted(set(cited)) == list(range(1, max(cited) + 1))
    assert list(dict.fromkeys(cited)) == sorted(set(cited))  # numbered in the order of the text
    assert references.count("(20") + references.count("version") == max(cited)
    assert references.count("Korsunsky") == 1  # of the kinds of cells, and of LISI
    assert "at most 100 kinds of cells" in body
    assert "Büttner et al." not in body  # no kBET among these scores


def test_methods_name_several_columns(adata: ad.AnnData, tmp_path: Path) -> None:
    assert "sums of the effects" not in page(write(tmp_path / "r.html", adata)).text
    adata.uns["cellnorm"]["batch_key"] = np.array(["batch", "cell_type"], dtype=object)
    text = page(write(tmp_path / "s.html", adata, batch_key=["batch", "cell_type"])).text
    assert "Batches are the combinations of batch, cell_type that occur" in text
    assert "(batch × cell_type)" in text


@pytest.mark.parametrize(
    ("strength", "methods", "headline"),
    [
        (1.0, "The correction was used at full strength, as chosen from the variance among like cells", "are mixed"),
        (0.4, "the share 0.40 was used, the rest of the embedding being the principal components, as chosen", "mixed"),
        (0.0, "nothing was used, and the embedding is that of the principal components (strength 0)", "had to be"),
    ],
)
@pytest.mark.parametrize("given", [False, True])
def test_the_strength_is_said(
    adata: ad.AnnData, tmp_path: Path, strength: float, methods: str, headline: str, given: bool
) -> None:
    p = np.nan if given else 0.007
    adata = adata.copy()
    adata.uns["cellnorm"]["strength"] = {"value": strength, "within": p, "p": p, "why": f"strength {strength} because"}
    text = page(write(tmp_path / "r.html", adata)).text
    assert f"{strength} because" in text
    assert headline in text
    assert (methods.replace("as chosen", "as given") if given else methods).split(", as ")[0] in text
    assert ("as given." in text) == given


def test_methods_cite_where_the_kinds_are_from_though_there_is_no_lisi(adata: ad.AnnData, tmp_path: Path) -> None:
    scores = scores_of("X_pca", "X_cellnorm")
    text = page(write(tmp_path / "r.html", adata, scores=scores[~scores.index.str.contains("LISI")])).text
    body, references = text[text.index("To paste") :].split(" References ")
    assert "Korsunsky" in references
    assert re.search(r"as in Harmony \(Korsunsky et al\. \[\d+\]\)", body)
    assert "(LISI)" not in body


def test_methods_say_when_components_were_given(adata: ad.AnnData, tmp_path: Path) -> None:
    info = adata.uns["cellnorm"]
    adata.obsm["X_mine"] = np.random.default_rng(0).normal(size=(adata.n_obs, 6))
    info["matrix_kind"], info["matrix"], info["parameters"]["use_rep"] = "representation", "obsm['X_mine']", "X_mine"
    text = page(write(tmp_path / "r.html", adata)).text
    assert "started from the representation obsm['X_mine']" in text
    assert "log(1 + x)" not in text


def test_alt_texts_say_in_numbers_what_pictures_show(adata: ad.AnnData, tmp_path: Path) -> None:
    adata.obsm["X_umap_cellnorm"] = np.random.default_rng(0).normal(size=(adata.n_obs, 2))
    images = page(write(tmp_path / "r.html", adata)).all("img")
    alts = [image["alt"] or "" for image in images]
    assert len(images) == 4 + 5
    start = r"UMAP of 300 cells after correction, coloured by batch \(3\)\. On average 3\d.% of .*; 33.% would"
    assert re.match(start, alts[1])
    assert all(re.search(r"\d", alt) for alt in alts)
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in images)


# Safe, whatever the data hold ---------------------------------------------------------------------------------------


def hostile(adata: ad.AnnData, name: str) -> dict[str, Any]:
    """Every name in the data becomes `name`: column, batches, types, embedding; the options to write a page so."""
    for column in ("batch", "cell_type"):
        adata.obs[column] = [f"{name}{v}" for v in adata.obs[column].astype(str)]
    adata.obs[name] = adata.obs["batch"]
    info = adata.uns["cellnorm"]
    info["alarm"] = alarm(adata.obs["batch"], "look")
    info["alarm"]["reason"] = name
    info["alarm"]["clusters"]["merged_with"][:] = name
    info["parameters"]["mask_var"] = info["matrix"] = name
    return {
        "batch_key": name, "command": f"cellnorm correct '{name}'", "name": name, "scores": scores_of(name, "X_pca"),
        "diagnosis": {**diagnosis_of(name, f"{name}2"), "recommendation": name, "warnings": [name], "verdict": name},
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", [ATTACK, '"><img src=x onerror=alert(1)>', "</style><b>", "{{ 7 * 7 }}", "' onload='x"]
)
def test_names_are_text(adata: ad.AnnData, name: str, tmp_path: Path) -> None:
    found = page(write(tmp_path / "r.html", adata, **hostile(adata, name)))
    assert found.faults == []
    assert [tag for tag, _ in found.elements if tag == "script"] == []
    assert {key for _, attributes in found.elements for key in attributes if key.startswith("on")} == set()
    assert sum(1 for tag, _ in found.elements if tag == "b") < 40
    assert name in found.text
    assert "49" not in found.texts
    allowed = r"(data:|#|https://doi\.org/10\.)"
    links = [a for _, attributes in found.elements for k, a in attributes.items() if k in ("src", "href")]
    assert [link for link in links if not re.match(allowed, link or "")] == []


def test_what_cannot_be_seen_or_written_is_spelled_out(adata: ad.AnnData, tmp_path: Path) -> None:
    options = {**hostile(adata, "a\x1b[31m\u202e"), "name": "nothing \x00, half a pair \udcff"}
    source = write(tmp_path / "r.html", adata, **options).read_text()
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e]", source)
    assert r"a\x1b[31m\u202elab0" in source
    assert r"nothing \x00, half a pair \udcff" in source


def test_long_names_are_cut(adata: ad.AnnData, tmp_path: Path) -> None:
    options = hostile(adata, "n" * 5000)
    adata.uns["cellnorm"]["alarm"]["reason"] = "Some names are long."  # sentences cut names themselves
    options["diagnosis"].update(recommendation="", warnings=[], verdict="correct")
    for table in ("columns", "confounding"):
        options["diagnosis"][table] = [{**row, "text": ""} for row in options["diagnosis"][table]]
    text = page(write(tmp_path / "r.html", adata, **{**options, "command": "x"})).text
    assert "nnn…nnn" in text
    assert max(len(word) for word in re.findall("n+", text)) <= 60


def test_the_page_asks_for_nothing(adata: ad.AnnData, tmp_path: Path) -> None:
    found = page(write(tmp_path / "r.html", adata))
    policy = next(m["content"] for m in found.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert (policy or "").startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert found.all("script") == found.all("iframe") == found.all("object") == []
    assert not re.search(r"url\(|@import", (tmp_path / "r.html").read_text())


def test_the_page_is_accessible(adata: ad.AnnData, tmp_path: Path) -> None:
    adata.uns["cellnorm"]["alarm"] = alarm(adata.obs["batch"], "look")
    found = page(write(tmp_path / "r.html", adata))
    assert found.faults == []
    assert found.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert max(b - a for a, b in pairwise(levels)) == 1
    assert all(th.get("scope") in ("col", "row", "rowgroup") for th in found.all("th"))
    ids = [a["id"] for _, a in found.elements if a.get("id")]
    assert len(ids) == len(set(ids))
    named = [a["aria-labelledby"] for _, a in found.elements if a.get("aria-labelledby")]
    jumps = [(a["href"] or "")[1:] for a in found.all("a") if (a["href"] or "").startswith("#")]
    assert set(named) | set(jumps) <= set(ids)
    assert found.all("a")[0]["href"] == "#content"


# Where it goes ------------------------------------------------------------------------------------------------------


def test_nothing_is_written_into_adata(adata: ad.AnnData, tmp_path: Path) -> None:
    before = snapshot(adata)
    write(tmp_path / "r.html", adata)
    report.write_evaluation(
        tmp_path / "e.html", adata, batch_key="batch", label_key=None, command="", scores=scores_of("X_pca")
    )
    assert snapshot(adata) == before


def test_the_page_stands_whole_or_not_at_all(
    adata: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "r.html", adata)
    whole = path.read_bytes()
    with pytest.raises(DataError, match="exists"):
        write(path, adata)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DataError, match="cannot be written: the disk is full"):
        write(path, adata, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
    assert path.read_bytes() == whole


def test_targets_that_cannot_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.html").mkdir()
    for name, message in (("a.pdf", "must end in .html"), ("folder.html", "is a folder"), ("no/a.html", "no folder")):
        with pytest.raises(DataError, match=message):
            report.check_report(tmp_path / name, force=True)
    assert report.check_report(tmp_path / "a.html") == tmp_path / "a.html"


def test_without_a_correction_there_is_nothing_to_report(small_adata: ad.AnnData, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"needs uns\['cellnorm'\]"):
        write(tmp_path / "r.html", small_adata)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_type_column_is_said(adata: ad.AnnData, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'kind' was asked for, but the columns of obs are"):
        write(tmp_path / "r.html", adata, label_key="kind")


# Kinds of data ------------------------------------------------------------------------------------------------------


def test_a_file_gives_the_same_page_as_the_memory(adata: ad.AnnData, tmp_path: Path) -> None:
    adata.write_h5ad(tmp_path / "cells.h5ad")
    first, second = (
        Document(write(tmp_path / f"{name}.html", source, name="cells").read_text())
        for name, source in (("memory", adata), ("file", ad.read_h5ad(tmp_path / "cells.h5ad")))
    )
    assert sorted(first.text.split()) == sorted(second.text.split())  # files sort the keys of the settings


def test_layouts_are_made_of_what_was_corrected_and_of_the_result(
    adata: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[np.ndarray] = []

    def layout(x: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
        made.append(np.asarray(x))
        return np.asarray(x)[:, :2], "UMAP"

    monkeypatch.setattr("cellnorm.report._content.layout", layout)
    write(tmp_path / "a.html", adata)
    assert [x.shape for x in made] == [(300, 50)]
    del adata.obsm["X_umap_cellnorm"]
    adata.layers["mine"] = adata.X.copy()
    adata.X = np.full(adata.shape, np.nan)
    adata.uns["cellnorm"]["parameters"]["layer"] = "mine"
    write(tmp_path / "b.html", adata, max_points=90)
    assert [x.shape for x in made[1:]] == [(90, 50), (90, 5)]
    assert "Shown are 90 of 300 cells" in page(tmp_path / "b.html").text


def test_layouts_are_made(corrected_once: ad.AnnData, tmp_path: Path) -> None:
    adata = corrected_once.copy()
    path = write(tmp_path / "r.html", adata, max_points=120)
    assert path.read_text().count("UMAP of 120 cells") == 4
    assert path.stat().st_size < 5e6


def test_a_picture_that_cannot_be_made_is_no_reason_to_fail(adata: ad.AnnData, tmp_path: Path) -> None:
    adata.X = np.full(adata.shape, np.nan)
    text = page(write(tmp_path / "r.html", adata)).text
    assert "A picture is missing: Counts or log-normalised values are needed" in text
    assert "After correction" in text


def test_sixty_batches_have_no_legend(adata: ad.AnnData, tmp_path: Path) -> None:
    adata.obs["donor"] = [f"donor {i % 60}" for i in range(adata.n_obs)]
    adata.uns["cellnorm"]["alarm"] = alarm(adata.obs["donor"], "look")
    found = page(write(tmp_path / "r.html", adata, batch_key="donor", label_key=None))
    assert "60 batches are too many for colours" in found.text
    assert [a for a in found.all("ul") if a.get("class") == "legend"] == []
    assert found.text.index("donor 2 ") < found.text.index("donor 10 ")


def test_cells_without_a_type_are_told_apart(adata: ad.AnnData, tmp_path: Path) -> None:
    assert "without a label" not in page(write(tmp_path / "a.html", adata)).text
    adata.obs.loc[adata.obs_names[:50], "cell_type"] = np.nan
    assert "without a label" in page(write(tmp_path / "b.html", adata)).text


def test_other_keys(small_adata: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellnorm.report._content.layout", lambda x, seed: (np.asarray(x)[:, :2], "UMAP"))
    corrected(small_adata)
    small_adata.uns["foo"], small_adata.obsm["foo"] = small_adata.uns.pop("cellnorm"), small_adata.obsm["X_cellnorm"]
    assert write(tmp_path / "r.html", small_adata, key_added="foo").exists()
    crossed = write(tmp_path / "s.html", small_adata, key_added="foo", batch_key=["batch", "cell_type"])
    assert "12 batches" in page(crossed).text


# Evaluations --------------------------------------------------------------------------------------------------------


def evaluation(path: Path, adata: ad.AnnData, scores: pd.DataFrame, **options: Any) -> str:
    options = {"label_key": "cell_type", **options}
    return page(report.write_evaluation(path, adata, batch_key="batch", command="x", scores=scores, **options)).text


def test_an_evaluation_names_the_best(adata: ad.AnnData, tmp_path: Path) -> None:
    text = evaluation(tmp_path / "a.html", adata, scores_of("X_pca", "X_scVI"))
    assert "X_scVI has the highest total score, 0.36." in text
    assert "X_umap_cellnorm" in text  # the layout that is there
    assert "Methods" not in text
    tied = scores_of("X_pca", intervals=False).assign(X_scVI=lambda t: t["X_pca"])
    assert "No representation stands out" in evaluation(tmp_path / "b.html", adata, tied)
    assert "X_pca has a total score of 0.31." in evaluation(tmp_path / "c.html", adata, scores_of("X_pca"))
    unlabelled = scores_of("X_pca").drop(index=["Total", "cLISI"])
    assert "scored without cell types" in evaluation(tmp_path / "d.html", adata, unlabelled, label_key=None)
    undefined = scores_of("X_pca", "X_scVI", intervals=False)
    undefined.loc["Total"] = np.nan
    assert "No representation stands out" in evaluation(tmp_path / "e.html", adata, undefined)


# Small parts --------------------------------------------------------------------------------------------------------


@given(st.floats(0, 1))
def test_a_share_is_never_rounded_to_all_or_nothing(share: float) -> None:
    shown = percent(share)
    assert (shown == "0\u202f%") == (share == 0)
    assert (shown == "100\u202f%") == (share == 1)


@pytest.mark.parametrize("write_out", [number, percent])
def test_what_is_not_known_is_a_dash(write_out: Callable[[Any], str]) -> None:
    assert [write_out(x) for x in (None, float("nan"), float("inf"), "")] == ["–"] * 4


@given(st.text(max_size=300))
def test_short_names_are_short(name: str) -> None:
    assert len(short(name)) <= 120
    assert short(name) == name or "…" in short(name)


def test_plain_values_hold_no_numpy() -> None:
    value = plain({"a": np.array([1.5]), 2: (np.int64(3), np.array(["x"], dtype=object)), "b": np.bool_(True)})
    assert value == {"a": [1.5], "2": [3, ["x"]], "b": True}
    assert type(value["2"][0]) is int


def test_the_best_of_a_row_depends_on_its_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pd.DataFrame({"a": [0.1, np.nan], "b": [0.9, np.nan]}, index=["Total", "iLISI"])

    def best() -> list[list[bool]]:
        return [[c["best"] for c in row["cells"]] for rows in score_table(table)["groups"].values() for row in rows]

    assert best() == [[False, True], [False, False]]
    monkeypatch.setattr("cellnorm.report._content.direction", lambda metric: -1)
    assert best() == [[True, False], [False, False]]


def test_a_value_lies_in_the_range_of_its_metric() -> None:
    table = pd.DataFrame({"a": [0.0, 2.0]}, index=["Distances kept", "iLISI"])  # from -1 to 1; from 0 to 1
    rows = [rows[0] for rows in score_table(table)["groups"].values()]
    assert {row["name"]: row["cells"][0]["track"][0] for row in rows} == {"Distances kept": 50.0, "iLISI": 100.0}


def test_what_needs_a_look_comes_first() -> None:
    verdicts = ["good", "look", "under-corrected", "over-corrected"]
    info = {"alarm": {"batches": {"name": ["b10", "b9", "b2", "b1"], "verdict": verdicts}}}
    rows = batch_rows(info, levels_of(["b10", "b9", "b2", "b1"]))
    assert [row["name"] for row in rows] == ["b1", "b2", "b9", "b10"]
    assert [row["n_cells"] for row in rows] == [1, 1, 1, 1]
    assert len({row["color"] for row in rows}) == 4


def test_templates_are_part_of_the_package() -> None:
    names = {entry.name for entry in (files("cellnorm") / "templates").iterdir()}
    assert {"report.html", "report.css"} <= names
    sources = [(files("cellnorm") / "templates" / name).read_text() for name in names]
    used = set(re.findall(r'include "([\w.]+)"', "".join(sources)))
    assert used | {"report.html"} == names


def test_a_template_that_lacks_a_value_is_a_bug() -> None:
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError):
        render({})
