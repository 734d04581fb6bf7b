"""The genes of a model in a file: found by name, refused with a hint where the names are of another kind."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellnorm.errors import DataError
from cellnorm.labels import listed

__all__ = ["MIN_SHARE", "GeneMatch", "match_genes"]

# Of what the model sees of the expression at least this share must be there; beyond it, guesses would outweigh data.
MIN_SHARE = 0.3
# Names are taken for the same in spite of capitals only if so many match as they stand: then it is the same species.
SAME_SPECIES = 0.5
_ENSEMBL = re.compile(r"(ENS[A-Z]*[GTP]\d{6,})(\.\d+)?(_PAR_Y)?", re.IGNORECASE)


@dataclass(frozen=True)
class GeneMatch:
    """Where the genes of a model are in a file.

    Attributes
    ----------
    positions
        Column of each gene of the model, -1 where it is missing, shape (n_wanted,).
    share
        Share of what the model sees of the expression that is there, 0 to 1.
    note
        How names were matched, for people; empty if by the names as they stand.
    """

    positions: NDArray[np.int64]
    share: float
    note: str

    @property
    def found(self) -> NDArray[np.bool_]:
        """Which of the model's genes are there, shape (n_wanted,)."""
        return np.asarray(self.positions >= 0)


def match_genes(
    wanted: Iterable[Any],
    found: Iterable[Any],
    *,
    weight: NDArray[np.floating] | None = None,
    others: Mapping[str, Iterable[Any]] | None = None,
) -> GeneMatch:
    """Find the genes of a model among those of a file, by name.

    Blanks around names do not count. Genes not found so are looked for without the version of an Ensembl number
    ("ENSG00000141510.18"), and, once half of the genes are found, without regard to capitals where that is unambiguous.
    Of genes that are named alike in the file the first is taken for the model's first, the second for its second.

    Parameters
    ----------
    wanted
        Names of the model's genes.
    found
        Names of the file's genes.
    weight
        How much of what the model sees comes from each of its genes, shape (n_wanted,); None: all alike.
    others
        Further names of the file's genes: what they are called and the names. Those are taken that find most genes.

    Raises
    ------
    DataError
        If less than `MIN_SHARE` of the weight is there: with the numbers, and with a hint where the names look like
        another kind of identifier.

    Examples
    --------
    >>> match = match_genes(["CD3E", "MS4A1"], ["MS4A1", "GNLY", "CD3E "])
    >>> match.positions.tolist(), match.share
    ([2, 0], 1.0)
    """
    names = _clean(wanted)
    weights = np.ones(len(names)) if weight is None else np.asarray(weight, np.float64)
    namings = {"": _clean(found), **{what: _clean(column) for what, column in (others or {}).items()}}
    tried = {what: _matched(names, there) for what, there in namings.items()}
    best = max(tried, key=lambda what: int((tried[what][0] >= 0).sum()))  # the first of equals: the names themselves
    positions, notes = tried[best]
    share = float(weights[positions >= 0].sum() / max(weights.sum(), np.finfo(float).tiny))  # all of them: 1 to the bit
    if share < MIN_SHARE:
        n_found = int((positions >= 0).sum())
        raise DataError(
            f"{n_found} of the model's {len(names)} genes, {share:.0%} of what it sees, are in the file; at least "
            f"{MIN_SHARE:.0%} are needed. The model names genes like {listed(names[:3])}, the file like "
            f"{listed(namings[''][:3])}: {_hint(names, namings[''])}"
        )
    if best:
        notes = [f"names taken from {best}", *notes]
    return GeneMatch(positions, min(share, 1.0), ", ".join(notes))


def _clean(names: Iterable[Any]) -> list[str]:
    return [str(name).strip() for name in names]


def _matched(wanted: list[str], found: list[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Places of the wanted names and what had to be overlooked to find them."""
    positions = np.full(len(wanted), -1, np.int64)
    notes = []
    _fill(positions, wanted, found, lambda name: name)
    if n := _fill(positions, wanted, found, _unversioned):
        notes.append(f"{n} without the version of their Ensembl number")
    if (positions >= 0).mean() >= SAME_SPECIES and (n := _fill(positions, wanted, found, str.casefold, unique=True)):
        notes.append(f"{n} without regard to capitals")
    return positions, notes


def _fill(
    positions: NDArray[np.int64],
    wanted: list[str],
    found: list[str],
    simpler: Callable[[str], str],
    *,
    unique: bool = False,
) -> int:
    """Look for what is missing still, among what is not taken yet, by simpler names; how many were found."""
    missing, taken = np.flatnonzero(positions < 0), set(positions.tolist())
    free = [i for i in range(len(found)) if i not in taken] if len(missing) else []
    asked, there = [simpler(wanted[i]) for i in missing], [simpler(found[i]) for i in free]
    # a name that has a double, here or there, could mean either
    doubles = {name for names in (asked, there) for name, n in Counter(names).items() if n > 1} if unique else set()
    place = dict(zip(_numbered(there), free, strict=True))
    pairs = zip(missing, _numbered(asked), strict=True)
    new = {i: place[name] for i, name in pairs if name in place and name[0] not in doubles}
    positions[list(new)] = list(new.values())
    return len(new)


def _numbered(names: Iterable[str]) -> list[tuple[str, int]]:
    """Each name with how often it came before."""
    before: Counter[str] = Counter()
    pairs = []
    for name in names:
        pairs.append((name, before[name]))
        before[name] += 1
    return pairs


def _unversioned(name: str) -> str:
    """An Ensembl number without its version; any other name as it is ("RP11-34P13.7" ends in no version)."""
    match = _ENSEMBL.fullmatch(name)
    return name if match is None else match[1] + (match[3] or "")


def _hint(wanted: list[str], found: list[str]) -> str:
    """What may be wrong with the names, and what to do."""
    ours, theirs = _kind(wanted), _kind(found)
    if theirs == "plain numbers" and ours != theirs:
        return "plain numbers are no gene names. Put the names of the genes into adata.var_names."
    if ours != theirs:
        return f"the model has {ours}, the file {theirs}. Rename the genes of the file (adata.var_names)."
    if ours == "Ensembl numbers" and _prefix(wanted) != _prefix(found):
        return "these are Ensembl numbers of different species. Use a model of this species."
    if _shared(map(str.casefold, wanted), map(str.casefold, found)) >= MIN_SHARE:
        return (
            "they differ in capitals alone, as human (CD3E) and mouse (Cd3e) symbols do. Use a model of this species; "
            "if it is the same species, write the names alike, as by adata.var_names.str.upper()."
        )
    bare = [re.split(r"_+", name, maxsplit=1)[-1] for name in found]
    if _shared(wanted, bare) >= MIN_SHARE:
        return f"the file's names start with a genome, as in {listed(found[:1])}. Take it off (adata.var_names)."
    return "the model may be of another species, or the file holds a part of the genes only. Give all its genes."


def _shared(wanted: Iterable[str], found: Iterable[str]) -> float:
    names = set(wanted)
    return len(names & set(found)) / max(len(names), 1)


def _kind(names: list[str]) -> str:
    """What most of the names look like."""
    looks = Counter("ensembl" if _ENSEMBL.fullmatch(n) else "number" if n.isdigit() else "symbol" for n in names)
    most = max(looks, key=lambda kind: looks[kind]) if looks else "symbol"
    return {"ensembl": "Ensembl numbers", "number": "plain numbers", "symbol": "gene symbols"}[most]


def _prefix(names: list[str]) -> str:
    """The letters that most Ensembl numbers start with: ENSG for human genes, ENSMUSG for those of the mouse."""
    return Counter(re.sub(r"\d.*", "", name).upper() for name in names).most_common(1)[0][0]
