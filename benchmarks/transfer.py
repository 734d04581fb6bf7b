"""Print how well labels are transferred to a batch, and whether cells of a type that the reference lacks are noticed.

    python benchmarks/transfer.py --data FOLDER [SET ...] [--models FOLDER]

FOLDER holds .h5ad files with obs['batch'] and obs['cell_type']. Each row leaves a batch out of the reference; where a
type is named, that type as well, while the batch keeps its cells. Types with fewer than eight cells in the reference,
which no majority of fifteen can name, count as neither known nor new. With --models, models are kept in that folder and
used again.

accuracy, F1 (macro) and ECE (expected calibration error, ten bins) are of known cells, called unknown or not. "found at
10 %": share of new cells below the threshold on the method's confidence that loses a tenth of the known; confidence is
the match of cellnorm, and the share of votes or the probability of the others. "unknown" and "lost": shares of the new
and of the known cells that cellnorm calls unknown with its own thresholds, the same for all sets. "AUC": of the match.
"radius": median change of expression, relative to its length, within which a label cannot change. The constants in
cellnorm/transfer were chosen by such tables; what they say of new data is a little
optimistic.
"""

import argparse
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import MaxAbsScaler

import cellnorm as cn
from cellnorm.pp import log_expression
from cellnorm.stability import label_radius, reach_of
from cellnorm.transfer import LabelTransfer, Support

Labels = NDArray[np.object_]
# Batch to map, and types to leave out of the reference one at a time.
JOBS = {
    "pbmc_3tech_small": [("3pv2", ["B", "Mono_CD14", "Mono_CD16", "NK"]), ("5p", ["B", "T_CD8"])],
    "mouse_lung_immune": [("round3_20160313", ["B cells", "NK cells", "Neutrophils", "T cells"])],
    "mixology_5cl_6batches": [("10x", ["H1975", "H2228", "HCC827"]), ("CELseq2_5cl_p3", ["A549", "H838"])],
    "pancreas_5batches": [
        ("Grun_CELseq", ["ductal", "delta", "alpha"]),
        ("BaronHuman4_inDrop", ["beta", "gamma", "activated_stellate"]),
    ],
    "pancreas_7batches_fewgenes": [("Grun_CELseq", ["ductal", "beta"])],
    "pbmc_8batches": [
        ("10x_3p_v1_sorted", ["B", "NK"]),
        ("10x_5p", ["CD14 Mono", "CD16 Mono"]),
        ("10x_3p_v3", ["NK", "T"]),
    ],
    "kang_8donors": [
        ("1015", ["B cells", "NK cells", "FCGR3A+ Monocytes"]),
        ("1488", ["CD14+ Monocytes", "Dendritic cells"]),
    ],
}
LEAST_CELLS = 8
MAX_REGRESSION = 3000  # cells of the reference from which the regression learns


def calibration_error(probability: NDArray[Any], right: NDArray[np.bool_], bins: int = 10) -> float:
    """Mean difference of probability and share of right answers (Naeini et al. 2015)."""
    which = np.minimum((probability * bins).astype(int), bins - 1)
    gaps = [abs(probability[which == b].mean() - right[which == b].mean()) * (which == b).mean() for b in set(which)]
    return float(np.sum(gaps))


def voted(reference: NDArray[Any], kinds: Labels, query: NDArray[Any]) -> tuple[Labels, NDArray[Any]]:
    """Labels and shares of the votes of the fifteen nearest."""
    shares = KNeighborsClassifier(15, algorithm="brute").fit(reference, kinds.astype(str))
    found = shares.predict_proba(query)
    return shares.classes_.astype(object)[found.argmax(1)], found.max(1)


def peers(model: cn.CellNorm, ref: Any, query: Any, batch: Labels, kinds: Labels) -> Iterator[tuple[str, Labels, Any]]:
    """Labels and confidence by other ways; the reference comes first in `batch`."""
    import harmonypy

    pcs = np.concatenate([model._features(ref), model._features(query)])
    n = ref.shape[0]
    yield "kNN on PCs", *voted(pcs[:n], kinds, pcs[n:])
    harmony = harmonypy.run_harmony(pcs, pd.DataFrame({"batch": batch.astype(str)}), "batch", verbose=False)
    z = np.asarray(harmony.Z_corr)
    z = z if z.shape == pcs.shape else z.T
    yield "kNN on Harmony", *voted(z[:n], kinds, z[n:])
    chosen = np.random.default_rng(0).permutation(n)[:MAX_REGRESSION]
    scale = MaxAbsScaler().fit(ref[chosen])
    regression = LogisticRegression(max_iter=300).fit(scale.transform(ref[chosen]), kinds[chosen].astype(str))
    found = regression.predict_proba(scale.transform(query))
    yield "regression", regression.classes_.astype(object)[found.argmax(1)], found.max(1)


def fitted(folder: Path | None, name: str, x: Any, batch: Labels) -> cn.CellNorm:
    """A model of the reference, from the folder if it is there."""
    path = None if folder is None else folder / re.sub(r"[^\w.+-]", "_", name)
    if path is not None and path.exists():
        return cn.CellNorm.load(path, device="cpu")
    model = cn.CellNorm(device="cpu").fit(x, batch)
    if path is not None:
        model.save(path)
    return model


def rows(adata: ad.AnnData, name: str, out: str, left: str | None, folder: Path | None) -> Iterator[dict[str, object]]:
    """One row for each method."""
    batch = adata.obs["batch"].astype(str).to_numpy(object)
    kinds = adata.obs["cell_type"].astype(str).to_numpy(object)
    own = batch == out
    ref = ~own if left is None else ~own & (kinds != left)
    genes = log_expression(adata[ref].copy(), batch[ref])[1]
    x = log_expression(adata, batch, mask_var=np.isin(adata.var_names.to_numpy(object), genes))[0]
    truth, (names, counts) = kinds[own], np.unique(kinds[ref].astype(str), return_counts=True)
    known, new = np.isin(truth.astype(str), names[counts >= LEAST_CELLS]), truth == left
    model = fitted(folder, f"{name}__{out}__{left}", x[ref], batch[ref]).add_batch(x[own], out)

    def row(method: str, labels: Labels, probability: NDArray[Any], confidence: NDArray[Any]) -> dict[str, object]:
        right = labels[known] == truth[known]
        f1 = f1_score(
            truth[known].astype(str),
            labels[known].astype(str),
            average="macro",
            labels=np.unique(truth[known].astype(str)),
            zero_division=0,
        )
        line: dict[str, object] = {"set": name, "batch": out, "left out": left or "-", "method": method}
        line |= {"accuracy": right.mean(), "F1": f1, "ECE": calibration_error(probability[known], right)}
        if new.any():
            line["found at 10 %"] = (confidence[new] < np.quantile(confidence[known], 0.1)).mean()
        return line

    net, z = model.net_, model.transform(x[own], np.full(own.sum(), out, object))
    seen, new_code = model.sketch_batch_, len(model.batches_) - 1
    shift, pcs = net.shift.cpu().numpy(), model._features(x[own]) / model.scale_
    z_ref = model.reference_embedding()
    match = Support.fit(model.sketch_ - shift[seen], z_ref, seen).score(pcs - shift[new_code], z)
    transfer = LabelTransfer.fit(z_ref, seen, kinds[ref][model.sketch_cells_])
    found = transfer.predict(z, match)
    reach = reach_of(net, pcs, np.full(len(z), new_code), float(model.scale_))
    length = np.sqrt(np.asarray(x[own].multiply(x[own]).sum(1)).ravel())
    radius = label_radius(z, transfer.z, transfer.labels, transfer.k, reach) / np.maximum(length, 1e-9)
    line = row("cellnorm", found.labels, found.probability, match)
    line |= {"lost": (~found.known[known]).mean(), "radius": np.median(radius[found.known])}
    if new.any():
        both = known | new
        line |= {"unknown": (~found.known[new]).mean(), "AUC": roc_auc_score(known[both], match[both])}
    yield line
    for method, labels, confidence in peers(model, x[ref], x[own], np.append(batch[ref], batch[own]), kinds[ref]):
        yield row(method, labels, confidence, confidence)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", help=f"sets to look at (default: {', '.join(JOBS)})")
    parser.add_argument("--data", type=Path, required=True, help="folder of .h5ad files")
    parser.add_argument("--models", type=Path, help="folder where models are kept")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if args.models:
        args.models.mkdir(parents=True, exist_ok=True)
    table = []
    for name in args.sets or JOBS:
        adata = ad.read_h5ad(args.data / f"{name}.h5ad")
        for out, types in JOBS[name]:
            for left in [None, *types]:
                for line in rows(adata, name, out, left, args.models):
                    table.append(line)
                    shown = {k: f"{v:.3f}" if isinstance(v, float) else v for k, v in line.items()}
                    print(*(f"{k} {v}" if k not in ("set", "method") else v for k, v in shown.items()), flush=True)
    frame = pd.DataFrame(table)
    numbers = [c for c in frame.columns if c not in ("set", "batch", "left out", "method")]
    for what, part in (("batches", frame[frame["left out"] == "-"]), ("types", frame[frame["left out"] != "-"])):
        print(f"\nMeans over sets, {what} left out")
        print(part.groupby(["set", "method"])[numbers].mean().round(3).to_string())
        print(part.groupby("method")[numbers].mean().round(3).to_string())


if __name__ == "__main__":
    main()
