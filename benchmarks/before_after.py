"""Draw the README's figure: data/demo.h5ad before and after correction, by laboratory and by cell type.

python benchmarks/before_after.py [--output benchmarks/before_after.png]
"""

import argparse
import warnings
from pathlib import Path

import anndata as ad
import matplotlib
import numpy as np
import scanpy as sc

import cellnorm as cn

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # the backend has to be chosen first

DEMO = Path(__file__).parent.parent / "data" / "demo.h5ad"
COLUMNS = {"batch": "by laboratory", "cell_type": "by cell type"}


def layouts(adata: ad.AnnData) -> dict[str, np.ndarray]:
    """UMAP coordinates before and after correction, each (n_cells, 2)."""
    cn.pp.prepare(adata, "batch")
    sc.pp.neighbors(adata, use_rep="X_pca")
    sc.tl.umap(adata, random_state=0)
    cn.tl.correct(adata, "batch")
    cn.tl.umap(adata)
    return {"before": adata.obsm["X_umap"], "after": adata.obsm["X_umap_cellnorm"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".png"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    adata = ad.read_h5ad(DEMO)
    pictures = layouts(adata)
    fig, axes = plt.subplots(1, 4, figsize=(11, 2.9), layout="constrained")
    for ax, (column, when) in zip(axes, [(c, w) for c in COLUMNS for w in pictures], strict=True):
        order = np.random.default_rng(0).permutation(adata.n_obs)
        labels = adata.obs[column].astype("category")
        # Okabe and Ito: eight colours that colour-blind readers tell apart
        palette = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"]
        colors = np.array(palette)[labels.cat.codes.to_numpy()]
        ax.scatter(*pictures[when][order].T, c=colors[order], s=3, linewidths=0, rasterized=True)
        ax.set(title=f"{when}, {COLUMNS[column]}", xticks=[], yticks=[], frame_on=False)
        if when == "after":
            for name, color in zip(labels.cat.categories, palette, strict=False):
                ax.scatter([], [], c=color, s=14, label=name)
            ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8, handletextpad=0)
    fig.savefig(args.output, dpi=110)
    print(args.output)


if __name__ == "__main__":
    main()
