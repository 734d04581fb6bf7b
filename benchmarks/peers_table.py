"""Tables of `peers.py`: means and intervals over seeds, as text, CSV and Markdown."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from peers_methods import LEFT_OUT, METHODS
from peers_scores import TRUTH
from scipy.stats import t

SUMS = ["Bio conservation", "Batch correction", "Total"]
BIOLOGY = ["Leiden NMI", "Leiden ARI", "Silhouette label", "cLISI", "Isolated labels"]
MIXING = ["BRAS", "iLISI", "KBET", "Graph connectivity", "PCR comparison"]
METRICS = [*BIOLOGY, *MIXING, *SUMS, *TRUTH]
COLUMNS = [
    "set", "method", "seed", "version", "date", "cores", "python",
    "seconds", "imports", "whole", "cpu", "peak", "failed",
]  # fmt: skip
OURS = "cellnorm"
BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"


def runs_of(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row for each run; `failed` is empty where it went well. Methods in the order of METHODS, sets by name."""
    rows = [{**{k: v for k, v in r.items() if k != "scores"}, **r.get("scores", {})} for r in records]
    runs = pd.DataFrame(rows).reindex(columns=[*COLUMNS, *METRICS])
    runs["failed"] = runs["failed"].fillna("")
    runs["peak"] = runs["peak"] / 1e6
    order = {name: i for i, name in enumerate(METHODS)}
    return runs.sort_values(["set", "method", "seed"], key=lambda c: c.map(order) if c.name == "method" else c)


def half_width(values: Iterable[float]) -> float:
    """Half of Student's 95 % interval of the mean; nan for one value, which has none."""
    known = np.fromiter(values, float)
    known = known[~np.isnan(known)]
    if len(known) < 2:
        return float("nan")
    return float(t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known)))


def means(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each set and method: means over the seeds that went well, and how many and why others did not."""
    rows = []
    for (of, method), group in runs.groupby(["set", "method"], sort=False):
        well = group[group["failed"] == ""]
        why = "; ".join(dict.fromkeys(group["failed"][group["failed"] != ""]))
        row = {"set": of, "method": method, "version": group["version"].iloc[-1], "runs": len(group)}
        row |= {"failed runs": len(group) - len(well), "why": why, **well[METRICS].mean()}
        row |= {"Total, half of 95 % interval": half_width(well["Total"])}
        row |= {
            "seconds": well["seconds"].mean(),
            "whole": well["whole"].mean(),
            "cpu": well["cpu"].mean(),
            "peak, MB": well["peak"].max(),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def overall(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each method: its mean over its sets, and ours over the same sets, so that a failure helps nobody."""
    table = means(runs)
    totals = table.pivot(index="set", columns="method", values="Total")
    rows = []
    for method in [m for m in METHODS if m in totals]:
        own = table[(table["method"] == method) & (table["failed runs"] < table["runs"])]
        theirs = totals[method].dropna()
        by_seed = runs[(runs["method"] == method) & (runs["failed"] == "")].pivot(
            index="set", columns="seed", values="Total"
        )
        complete = by_seed.dropna(axis=1) if len(by_seed) == len(theirs) else by_seed.iloc[:, :0]
        ours = totals.loc[theirs.index, OURS] if OURS in totals else pd.Series(np.nan, theirs.index)
        both = ours.notna()
        rows.append(
            {
                "method": method,
                "sets": len(own),
                "Total": theirs.mean(),
                "±": half_width(complete.mean()),
                "cellnorm there": ours[both].mean(),
                "lead": (ours - theirs)[both].mean(),
                "ahead on": f"{(ours > theirs)[both].sum()} of {both.sum()}" if method != OURS and both.any() else "",
                **{name: own[name].mean() for name in ("Bio conservation", "Batch correction")},
                "seconds": own["seconds"].median(),
                "seconds, most": own["seconds"].max(),
                "peak, MB": own["peak, MB"].max(),
            }
        )
    return pd.DataFrame(rows).set_index("method")


def in_common(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the sets on which all methods have a total, without methods that have one on less than half of them."""
    totals = table.pivot(index="set", columns="method", values="Total").dropna(axis=1, how="all")
    few = totals.columns[totals.notna().mean() < 0.5]
    sets = totals.drop(columns=few).dropna().index
    return table[table["set"].isin(sets) & ~table["method"].isin(few)]


def number(value: float, digits: int = 3) -> str:
    """In the style of the other tables: .812."""
    if pd.isna(value):
        return ""
    shown = f"{value:.{digits}f}"
    return shown.replace("0.", ".", 1) if shown.lstrip("-").startswith("0.") else shown


def with_interval(value: float, half: float) -> str:
    return number(value) + ("" if pd.isna(half) or pd.isna(value) else f" ± {number(half)}")


def text(runs: pd.DataFrame) -> str:
    """Everything for a terminal: a block for each set, then the methods over all sets, then what failed."""
    table, parts = means(runs), []
    for of, block in table.groupby("set", sort=False):
        shown = block.set_index("method")[[*METRICS, "seconds", "peak, MB"]].dropna(axis=1, how="all")
        shown.insert(0, "Total ±", [with_interval(*v) for v in block[["Total", "Total, half of 95 % interval"]].values])
        parts.append(f"{of}\n{shown.round(3).to_string(na_rep='')}")
    parts.append(f"all sets (±: 95 % over seeds)\n{overall(runs).round(3).to_string(na_rep='')}")
    return "\n\n".join([*parts, *failures(table)])


def failures(table: pd.DataFrame) -> list[str]:
    """A line for each set and method of which a run failed."""
    bad = table[table["failed runs"] > 0].to_dict("records")
    return [f"{r['method']} on {r['set']}: {r['failed runs']} of {r['runs']} failed: {r['why']}" for r in bad]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def totals_table(table: pd.DataFrame) -> str:
    """Sets by methods; the best of a set is bold, a failure says so."""
    methods = [m for m in METHODS if table.loc[table["method"] == m, "Total"].notna().any()]
    rows = []
    for of, block in table.groupby("set", sort=False):
        block = block.set_index("method").reindex(methods)
        best = block["Total"].idxmax() if block["Total"].notna().any() else None
        cells = []
        for method, row in block.iterrows():
            shown = with_interval(row["Total"], row["Total, half of 95 % interval"])
            cells.append(f"**{shown}**" if method == best else shown or ("failed" if row["failed runs"] > 0 else ""))
        rows.append([str(of), *cells])
    return markdown(["total", *methods], rows)


def overall_table(runs: pd.DataFrame) -> str:
    head = ["", "sets", "total", "biology", "mixing", "cellnorm there", "cellnorm ahead on", "seconds", "most", "MB"]
    rows = [
        [
            str(method), str(row["sets"]), with_interval(row["Total"], row["±"]),
            number(row["Bio conservation"]), number(row["Batch correction"]),
            "" if method == OURS else with_interval(row["cellnorm there"], float("nan")), str(row["ahead on"]),
            *(number(row[name], 1 if row[name] >= 1 else 2) for name in ("seconds", "seconds, most")),
            number(row["peak, MB"], 0),
        ]
        for method, row in overall(runs).iterrows()
    ]  # fmt: skip
    return markdown(head, rows)


def metrics_table(table: pd.DataFrame) -> str:
    """Means of every metric."""
    mean = table.groupby("method", sort=False)[[*BIOLOGY, *MIXING]].mean().dropna(how="all")
    return markdown(["", *mean.columns], [[str(m), *map(number, row)] for m, row in mean.iterrows()])


def truth_table(table: pd.DataFrame) -> str:
    block = table[table[list(TRUTH)].notna().any(axis=1)]
    rows = [[str(r["set"]), str(r["method"]), *(number(r[name]) for name in TRUTH)] for _, r in block.iterrows()]
    if not rows:
        return "No set with designed proportions."
    return markdown(["", "", "all pairs", "pairs of different batches"], rows)


def settings_table(runs: pd.DataFrame) -> str:
    latest = runs[runs["version"] != ""].groupby("method")["version"].last()
    rows = [[m, METHODS[m].package, latest[m], METHODS[m].settings] for m in METHODS if m in latest]
    return markdown(["", "package", "version", "settings"], rows)


def generated(runs: pd.DataFrame) -> str:
    """What stands between the marks of the README."""
    table = means(runs)
    common = in_common(table)
    compared = list(common["set"].unique())
    few = sorted(set(table.dropna(subset="Total")["method"]) - set(common["method"]))
    without = f", without {', '.join(few)}, which did less than half of the sets" if few else ""
    said = [f"- {line}" for line in failures(table)] + [f"- {m}: left out, {why}" for m, why in LEFT_OUT.items()]
    dates, seeds = sorted(set(runs["date"].dropna())), int(runs["seed"].max()) + 1
    cores, python = (" or ".join(sorted({str(v) for v in runs[of].dropna()})) for of in ("cores", "python"))
    parts = [
        f"Seeds: {seeds}; {cores} cores, no GPU, Python {python}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}.",
        totals_table(table),
        "![Totals of each method on each set](peers_totals.png)",
        "Over the sets that a method did, with cellnorm's total over the same sets (seconds: median, most; MB: most):",
        overall_table(runs),
        f"![Mean total against seconds, on {len(compared)} sets](peers_speed.png)",
        f"Every metric, means over the {len(compared)} sets that all methods did ({', '.join(compared)}){without}; "
        "for each set: [peers.csv](peers.csv).",
        metrics_table(common),
        "Continuous truth: Spearman correlation of distances in the embedding with those of the designed proportions.",
        truth_table(table),
        "Failures and what was left out:",
        "\n".join(said),
        "Settings:",
        settings_table(runs),
    ]
    return "\n\n".join(parts)


def write_readme(runs: pd.DataFrame, readme: Path) -> None:
    """Put the tables between the marks of the README, and the table of all sets beside it."""
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{readme.name} has no place for the tables: it has to hold {BEGIN} and {END}")
    readme.write_text(f"{before}{BEGIN}\n\n{generated(runs)}\n\n{END}{after}")
    means(runs).to_csv(readme.with_name("peers.csv"), index=False, float_format="%.4f")
