"""The rows of the paper's ablation tables and their published numbers.

Source: PISR (CVPR 2022), supplement, Tables B.1, B.2 and B.3: Cityscapes val, Panoptic-DeepLab host. Another
host and other data give other numbers; what can be compared is the order of the rows and the sign of the
gains. Δ is as printed: the sum of the gains in the three columns over the host without PISR. In two rows
(cosine with matrix product, γ 0.8) the print differs from that sum by more than rounding explains.
"""

from typing import NamedTuple

METRICS = ("PQ", "mIoU", "iIoU")


class PaperRow(NamedTuple):
    """A row: its title in the paper, its numbers in the order of METRICS, and the printed Δ."""

    title: str
    values: tuple[float, float, float]
    delta: float | None = None


HOST = PaperRow("Without PISR", (59.9, 78.5, 62.5))
DEFAULT = (62.2, 80.2, 64.4)

# Table -> name of the configuration in configs/ablations -> row.
TABLES: dict[str, dict[str, PaperRow]] = {
    "Table B.1: reweighting": {
        "baseline": HOST,
        "b1_explicit_2": PaperRow("Default, 2 hidden layers", DEFAULT),
        "b1_explicit_4": PaperRow("Default, 4 hidden layers", (61.5, 79.4, 63.7)),
        "b1_implicit_2": PaperRow("Implicit, 2 hidden layers", (61.2, 79.0, 63.3)),
        "b1_separate_2": PaperRow("Separate, 2 hidden layers", (62.0, 80.1, 64.2)),
    },
    "Table B.2: relation functions": {
        "baseline": HOST,
        "b2_cosine_matmul": PaperRow("f1 cosine similarity, f2 matrix product", (61.4, 79.3, 63.5), 3.2),
        "b2_matmul_cosine": PaperRow("f1 matrix product, f2 cosine similarity", (61.4, 80.0, 64.0)),
        "b2_l2_l2": PaperRow("f1 L2 norm, f2 L2 norm", (61.7, 79.7, 63.9)),
        "b2_matmul_l2": PaperRow("f1 matrix product, f2 L2 norm", (62.1, 79.9, 64.1)),
        "b2_matmul_matmul": PaperRow("f1 matrix product, f2 matrix product", DEFAULT),
    },
    "Table B.3: weight γ of the first prediction's loss": {
        "baseline": HOST,
        "b3_gamma_0.0": PaperRow("γ 0.0", (61.9, 79.5, 63.4)),
        "b3_gamma_0.2": PaperRow("γ 0.2", (61.9, 79.9, 63.7)),
        "b3_gamma_0.5": PaperRow("γ 0.5", DEFAULT),
        "b3_gamma_0.8": PaperRow("γ 0.8", (61.5, 79.3, 63.5), 3.6),
    },
}
ROWS: dict[str, PaperRow] = {name: row for table in TABLES.values() for name, row in table.items()}


def delta(row: PaperRow) -> float:
    """The printed Δ, or the sum of the gains where the print agrees with it."""
    if row.delta is not None:
        return row.delta
    return sum(value - host for value, host in zip(row.values, HOST.values, strict=True))
