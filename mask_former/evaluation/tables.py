"""Results as text for the log: a summary line, and one row a class."""

from collections.abc import Mapping, Sequence

import numpy as np
from tabulate import tabulate

ABSENT = "absent"


def summary_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """One row per name, the same columns in each; nan (nothing to average over) reads "absent"."""
    columns = list(next(iter(rows.values())))
    cells = [[name, *(_cell(values[column]) for column in columns)] for name, values in rows.items()]
    return _table(["", *columns], cells)


def class_table(names: Sequence[str], columns: Mapping[str, np.ndarray]) -> str:
    """One row per class; `columns` maps a heading to C values. Classes with nan in all are listed below.

    Integer columns (counts) stay integers and do not keep an otherwise absent class in the table.
    """
    measures = [values for values in columns.values() if np.issubdtype(np.asarray(values).dtype, np.floating)]
    absent = np.all(np.isnan(np.stack(measures)), axis=0)
    cells = [
        [name, *(_cell(values[index]) for values in columns.values())]
        for index, name in enumerate(names)
        if not absent[index]
    ]
    text = _table(["class", *columns], cells)
    if absent.any():
        listed = ", ".join(name for name, gone in zip(names, absent, strict=True) if gone)
        text += f"\nnot present, left out of the means ({int(absent.sum())}): {listed}"
    return text


def _table(headers: list[str], cells: list[list[str]]) -> str:
    align = ("left", *("right" for _ in headers[1:]))
    return tabulate(
        cells, headers=headers, tablefmt="pipe", disable_numparse=True, colalign=align if cells else None
    )


def _cell(value: float) -> str:
    if isinstance(value, (int, np.integer)):
        return str(value)
    return ABSENT if np.isnan(value) else f"{value:.3f}"
