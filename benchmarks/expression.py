"""Corrected expression: what of the batches goes, and what of the biology stays, beside scanpy's ComBat.

    python benchmarks/expression.py --data FOLDER                 all sets of the folder (.h5ad with batch, cell_type)
    python benchmarks/expression.py --data FOLDER pancreas kang   those whose names start so
    python benchmarks/expression.py --data FOLDER --new           also: the largest batch left out, and mapped

Columns, of genes found in more than 2 % of the cells (types are used for these scores alone):
  removed      share of the variance between batches within types that is gone, all genes together, less what sampling
               explains before and after: 1 is ideal, above 1 noise was taken too; of all genes, and of the model's own
  r, least r   log fold changes between each two types within a batch, before against after: mean and least correlation
  slope        how large they are after, as a multiple of before
  agree        correlation of log fold changes between batches after (before: in the line of the input)
  HVG          share of each batch's 500 (at most a quarter of all) most variable genes that are still among them
  cycle        correlation of S and G2M scores within batches, before against after
  s, MB        seconds of the correction of the expression alone, and peak memory of its process above the data
Each method runs in a process of its own, on the whole set.
"""

# Nothing heavy here: a child's peak memory begins with its parent's, so the parent has to stay small.
import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

METHODS = ("input", "combat", "corrected", "sparse", "denoised")
COLUMNS = ("removed", "of model", "r", "least r", "slope", "agree", "HVG", "cycle", "s", "MB")
LEAST, FOUND, N_HVG = 20, 0.02, 500
# Tirosh et al. 2016, Science 352:189: genes of S and of G2/M.
S = """MCM5 PCNA TYMS FEN1 MCM2 MCM4 RRM1 UNG GINS2 MCM6 CDCA7 DTL PRIM1 UHRF1 MLF1IP HELLS RFC2 RPA2 NASP RAD51AP1 GMNN
WDR76 SLBP CCNE2 UBR7 POLD3 MSH2 ATAD2 RAD51 RRM2 CDC45 CDC6 EXO1 TIPIN DSCC1 BLM CASP8AP2 USP1 CLSPN POLA1 CHAF1B BRIP1
E2F8"""
G2M = """HMGB2 CDK1 NUSAP1 UBE2C BIRC5 TPX2 TOP2A NDC80 CKS2 NUF2 CKS1B MKI67 TMPO CENPF TACC3 FAM64A SMC4 CCNB2 CKAP2L
CKAP2 AURKB BUB1 KIF11 ANP32E TUBB4B GTSE1 KIF20B HJURP CDCA3 HN1 CDC20 TTK CDC25C KIF2C RANGAP1 NCAPD2 DLGAP5 CDCA2
CDCA8 ECT2 KIF23 HMMR AURKA PSRC1 ANLN LBR CKAP5 CENPE CTCF NEK2 G2E3 GAS2L3 CBX5 CENPA"""


# What runs in processes of its own -------------------------------------------------------------------------------


def prepare(file: str, folder: str, left_out: str = "") -> dict[str, Any]:
    """Train on a set (or on all batches but the largest) and write the embedded cells and the model."""
    import anndata as ad

    import cellnorm as cn

    adata = ad.read_h5ad(file)
    counts = adata.obs["batch"].astype(str).value_counts()
    out = adata.obs["batch"].astype(str) == counts.index[0] if left_out else adata.obs["batch"].isna()
    reference, query = adata[~out.to_numpy()].copy(), adata[out.to_numpy()].copy()
    cn.tl.correct(reference, "batch", save_model=f"{folder}/model")
    reference.write_h5ad(f"{folder}/cells.h5ad")
    if left_out:
        cn.tl.embed(query, f"{folder}/model", "batch", save_model=f"{folder}/grown")
        query.write_h5ad(f"{folder}/query.h5ad")
    return {"batch": str(counts.index[0])}


def log(adata: Any) -> Any:
    """The log-normalised matrix that the corrections start from, dense."""
    import numpy as np

    from cellnorm.tl._expression_input import read_matrix

    names = np.asarray(adata.var_names.astype(str), dtype=object)
    return read_matrix(adata, None, names).log(slice(None)).toarray()


def combat(adata: Any, x: Any) -> Any:
    import anndata as ad
    import scanpy as sc

    varies = x.std(axis=0) > 0
    out = x.copy()
    other = ad.AnnData(x[:, varies], obs=adata.obs[["batch"]].astype(str).astype("category"))
    out[:, varies] = sc.pp.combat(other, key="batch", inplace=False)
    return out


def measure(folder: str, method: str) -> dict[str, Any]:
    """Correct by one method, and score it."""
    import warnings

    import anndata as ad

    import cellnorm as cn

    warnings.filterwarnings("ignore")
    correct = cn.tl.expression  # imports what it needs
    adata = ad.read_h5ad(f"{folder}/cells.h5ad")
    before: Any = log(adata) if method in ("input", "combat") else None
    idle, start = peak(), time.perf_counter()
    if before is not None:
        after = before if method == "input" else combat(adata, before)
    else:
        kind = "denoised" if method == "denoised" else "corrected"
        correct(adata, f"{folder}/model", kind=kind, sparse=method == "sparse")
        after = adata.layers["cellnorm"]
    used = {"s": time.perf_counter() - start, "MB": peak() - idle}
    after, before = after.toarray() if hasattr(after, "toarray") else after, log(adata) if before is None else before
    return {**scores(adata, before, after), **used}


def measure_new(folder: str) -> dict[str, Any]:
    """A batch that was left out: alone, and beside the cells of the reference."""
    import warnings

    import anndata as ad
    import numpy as np

    import cellnorm as cn

    warnings.filterwarnings("ignore")
    cells, query = ad.read_h5ad(f"{folder}/cells.h5ad"), ad.read_h5ad(f"{folder}/query.h5ad")
    both = ad.concat([cells, query])
    both.uns = cells.uns
    before = np.concatenate([log(cells), log(query)])
    cn.tl.expression(cells, f"{folder}/model")
    found = {}
    for name, reference in (("alone", None), ("with reference", cells)):
        cn.tl.expression(query, f"{folder}/grown", reference=reference)
        found[name] = scores(both, before, np.concatenate([cells.layers["cellnorm"], query.layers["cellnorm"]]))
    return found


def peak() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / 1e6 if sys.platform == "darwin" else used / 1e3


# Scores ----------------------------------------------------------------------------------------------------------


def scores(adata: Any, before: Any, after: Any) -> dict[str, float]:
    import numpy as np

    batch, kind = (adata.obs[column].astype(str).to_numpy() for column in ("batch", "cell_type"))
    genes = (before > 0).mean(axis=0) > FOUND
    own = genes & np.isin(adata.var_names.astype(str), adata.uns["cellnorm"]["genes"])
    groups = {
        (b, k): rows
        for b in np.unique(batch)
        for k in np.unique(kind)
        if len(rows := np.flatnonzero((batch == b) & (kind == k))) >= LEAST
    }
    spread = [between(x, groups) for x in (before, after)]
    means = [{key: x[rows][:, genes].mean(axis=0) for key, rows in groups.items()} for x in (before, after)]
    changes = [dict(fold_changes(m)) for m in means]
    r = [np.corrcoef(changes[0][key], changes[1][key])[0, 1] for key in changes[0]]
    slope = [changes[0][key] @ changes[1][key] / (changes[0][key] @ changes[0][key]) for key in changes[0]]
    agree = [
        np.corrcoef(changes[1][b, k, j], changes[1][c, k, j])[0, 1]
        for (b, k, j), (c, *same) in itertools.combinations(changes[1], 2)
        if (k, j) == tuple(same) and b != c
    ]
    return {
        "removed": float(1 - spread[1][genes].sum() / spread[0][genes].sum()),
        "of model": float(1 - spread[1][own].sum() / spread[0][own].sum()),
        "r": float(np.mean(r)),
        "least r": float(np.min(r)),
        "slope": float(np.mean(slope)),
        "agree": float(np.mean(agree)) if agree else float("nan"),
        "HVG": hvg_overlap(before[:, genes], after[:, genes], batch),
        "cycle": cycle(before, after, batch, adata.var_names),
    }


def between(x: Any, groups: dict[tuple[str, str], Any]) -> Any:
    """Sum of squares between batches within types per gene, less what sampling explains (analysis of variance)."""
    import numpy as np

    found = np.zeros(x.shape[1])
    for kind in {k for _, k in groups}:
        parts = [x[rows] for (_, k), rows in groups.items() if k == kind]
        if len(parts) > 1:
            n = np.array([len(part) for part in parts])[:, None]
            means = np.stack([part.mean(axis=0, dtype=np.float64) for part in parts])
            inside = sum(np.square(part - m).sum(axis=0) for part, m in zip(parts, means, strict=True)) / (n - 1).sum()
            centre = (n * means).sum(axis=0) / n.sum()
            found += (n * np.square(means - centre)).sum(axis=0) - (len(parts) - 1) * inside
    return found


def fold_changes(means: dict[tuple[str, str], Any]) -> Iterator[tuple[tuple[str, str, str], Any]]:
    """(batch, one type, another) and their log fold changes."""
    for (b, k), (c, j) in itertools.combinations(sorted(means), 2):
        if b == c:
            yield (b, k, j), means[b, k] - means[c, j]


def hvg_overlap(before: Any, after: Any, batch: Any) -> float:
    import numpy as np

    n_genes = min(N_HVG, before.shape[1] // 4)
    found = []
    for b in np.unique(batch):
        if (batch == b).sum() >= LEAST:
            chosen = [most_variable(np.maximum(x[batch == b], 0), n_genes) for x in (before, after)]
            found.append(len(chosen[0] & chosen[1]) / n_genes)
    return float(np.mean(found))


def most_variable(x: Any, n_genes: int) -> set[str]:
    import anndata as ad
    import scanpy as sc

    adata = ad.AnnData(x)
    sc.pp.highly_variable_genes(adata, flavor="seurat", n_top_genes=n_genes)
    return set(adata.var_names[adata.var["highly_variable"]])


def cycle(before: Any, after: Any, batch: Any, names: Any) -> float:
    """Mean correlation of the scores of S and G2M within batches; NaN where fewer than 10 of the genes are there."""
    import anndata as ad
    import numpy as np
    import scanpy as sc

    upper = names.astype(str).str.upper()
    first = ~upper.duplicated()
    s, g2m = ([g for g in genes.split() if g in set(upper)] for genes in (S, G2M))
    if min(len(s), len(g2m)) < 10:
        return float("nan")
    found = []
    for b in np.unique(batch):
        rows = batch == b
        if rows.sum() >= LEAST:
            both = [ad.AnnData(x[rows][:, first]) for x in (before, after)]
            for one in both:
                one.var_names = upper[first]
                sc.tl.score_genes_cell_cycle(one, s_genes=s, g2m_genes=g2m)
            found += [np.corrcoef(both[0].obs[c], both[1].obs[c])[0, 1] for c in ("S_score", "G2M_score")]
    return float(np.nanmean(found))


# The parent ------------------------------------------------------------------------------------------------------


def run(*args: str) -> Any:
    """What a worker answers, on the last line that it prints."""
    ran = subprocess.run([sys.executable, __file__, "--worker", *args], capture_output=True, text=True, check=False)
    if ran.returncode:
        print(f"{args} ended with {ran.returncode}: {ran.stderr[-500:]}", file=sys.stderr)
        return None
    return json.loads(ran.stdout.splitlines()[-1])


def line(name: str, found: dict[str, float]) -> str:
    cells = [f"{found.get(c, float('nan')):9.{1 if c == 's' else 0 if c == 'MB' else 3}f}" for c in COLUMNS]
    return f"  {name:<20}" + "".join(cell.replace("nan", "  -") for cell in cells)


def mean_line(name: str, rows: list[dict[str, float]]) -> str:
    kept = {c: [row[c] for row in rows if row.get(c) == row.get(c) is not None] for c in COLUMNS}
    return line(name, {c: sum(values) / len(values) for c, values in kept.items() if values})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("sets", nargs="*")
    parser.add_argument("--new", action="store_true", help="also leave the largest batch out, and map it")
    args = parser.parse_args()
    files = [f for f in sorted(args.data.glob("*.h5ad")) if not args.sets or f.stem.startswith(tuple(args.sets))]
    total: dict[str, list[dict[str, float]]] = {}
    print(" " * 22 + "".join(f"{c:>9}" for c in COLUMNS))
    for file in files:
        print(file.stem, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            ready = run("prepare", str(file), folder)
            for method in METHODS if ready else ():
                if found := run("measure", folder, method):
                    total.setdefault(method, []).append(found)
                    print(line(method, found), flush=True)
        if args.new:
            with tempfile.TemporaryDirectory() as folder:
                ready = run("prepare", str(file), folder, "left out")
                for name, found in ((ready and run("measure_new", folder)) or {}).items():
                    total.setdefault(f"new {name}", []).append(found)
                    print(line(f"new {name}", found), flush=True)
    print("mean")
    for method, rows in total.items():
        print(mean_line(method, rows))
    return 0


WORKERS: dict[str, Any] = {"prepare": prepare, "measure": measure, "measure_new": measure_new}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(WORKERS[sys.argv[2]](*sys.argv[3:])))
    else:
        sys.exit(main())
