"""Names of slices for people: of many axes only the values that tell rows apart."""

from __future__ import annotations

from collections.abc import Sequence


def short_names(names: Sequence[str], width: int) -> tuple[list[str], str]:
    """Shorten slice names (values joined by commas) of which some are longer than `width`, and say how.

    Values that are the same in all names go first; if that is not enough, the few values stay that tell the names
    apart. Names that fit come back as they are, with an empty note.
    """
    parts = [name.split(",") for name in names]
    n_values = len(parts[0]) if parts else 0
    if all(len(name) <= width for name in names) or any(len(p) != n_values for p in parts) or len(names) < 2:
        return list(names), ""
    columns = list(zip(*parts, strict=True))
    chosen = [i for i, column in enumerate(columns) if len(set(column)) > 1]
    if any(len(",".join(p[i] for i in chosen)) > width for p in parts):
        chosen = _telling_apart(columns, chosen)
    if len(chosen) in (0, n_values):
        return list(names), ""
    numbers = [str(i + 1) for i in chosen]
    said = f"values {', '.join(numbers[:-1])} and {numbers[-1]}" if len(chosen) > 1 else f"value {numbers[0]}"
    labels = [",".join(p[i] for i in chosen) for p in parts]
    return labels, f"slices by {said} of {n_values}, in the order of the axes: what tells these rows apart"


def _telling_apart(columns: Sequence[Sequence[str]], among: Sequence[int]) -> list[int]:
    """Choose few columns whose values tell all rows apart that `among` does, greedily; ascending."""
    chosen: list[int] = []
    keys: list[tuple[str, ...]] = [()] * len(columns[0])
    n_apart = len(set(zip(*(columns[i] for i in among), strict=True)))
    while len(set(keys)) < n_apart:
        grown = {i: [(*key, value) for key, value in zip(keys, columns[i], strict=True)] for i in among}
        best = max(among, key=lambda i: (len(set(grown[i])), -i))
        keys = grown[best]
        chosen.append(best)
    return sorted(chosen)
