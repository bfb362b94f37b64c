"""A plan: which configurations are trained with which seeds, and the tables that they end in.

    title: Does PISR help where only context tells?
    datasets: output/experiments/data                # optional: $DETECTRON2_DATASETS of the runs
    prepare: [tools/render_toy_scenes.py, "{datasets}/toy", --train, 2000]   # optional, comes before the runs
    config: configs/toy/maskformer_tiny_pisr.yaml    # of every row that names no other
    set: {SOLVER.MAX_ITER: 1000}                     # keys of every row
    seeds: [0, 1, 2]
    rows:
      baseline: {title: MaskFormer, config: configs/toy/maskformer_tiny.yaml}
      pisr: {title: PISR}
      further: {weights_of: baseline, set: {SOLVER.BASE_LR: 0.0001}}   # starts from its run
      first: {of: pisr, stage: initial}              # the same model, measured another way (probe.py)
    tables:
      - {title: All, rows: [baseline, pisr, first], baseline: baseline, metrics: [PQ, mIoU], seeds: [1, 2]}

Paths start at the repository's root; `{root}` in a value is the plan's folder. A title that is not given is
the paper's, for its rows, or the name.
With `stage: final` a row is another one under a second name. `_BASE_` takes over the keys of another file.
Plans with one `root` share the runs of rows that have one name; what is kept of them is each plan's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mask_former.errors import InputError
from mask_former.yaml_config import read_yaml_with_base
from tools._path import ROOT
from tools.evidence.paper import ROWS as PAPER_ROWS
from tools.evidence.results import METRIC_KEYS

FINAL = "final"  # the stage that training evaluates; the others need a probe
STAGES = (FINAL, "initial", "swapped")
PLAN_KEYS = {"title", "root", "datasets", "prepare", "config", "set", "seeds", "rows", "tables"}
ROW_KEYS = {"title", "config", "set", "weights_of", "of", "stage"}
TABLE_KEYS = {"title", "rows", "baseline", "metrics", "seeds"}


@dataclass(frozen=True)
class Row:
    """A row of the tables: a configuration to train, or another row's model measured at another stage."""

    name: str
    title: str
    config: Path | None = None  # of a row that is trained
    overrides: tuple[str, ...] = ()  # KEY VALUE …
    weights_of: str | None = None
    of: str | None = None
    stage: str | None = None


@dataclass(frozen=True)
class TableSpec:
    """A table: its rows, the row that gains are over, its columns and seeds (empty: all that there are)."""

    title: str
    rows: tuple[str, ...]
    baseline: str
    metrics: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A plan file. `root`: where its runs lie."""

    name: str
    title: str
    root: Path
    datasets: Path | None
    prepare: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: Mapping[str, Row]
    tables: tuple[TableSpec, ...]

    @property
    def trained(self) -> list[Row]:
        """The rows that are trained, those that others start from first."""
        rows = [row for row in self.rows.values() if row.of is None]
        return sorted(rows, key=lambda row: row.weights_of is not None)

    @property
    def probed(self) -> set[str]:
        """Names of trained rows whose models are measured at other stages too."""
        return {row.of for row in self.rows.values() if row.of is not None and row.stage != FINAL}

    def needed(self, names: Sequence[str]) -> set[str]:
        """Names of the rows that are trained for the rows `names`: themselves, or what they are made from.

        InputError where the plan has no such row.
        """
        found: set[str] = set()
        left = list(names)
        while left:
            name = left.pop()
            if name not in self.rows:
                raise InputError(f"the plan {self.name} has no row {name!r}; use: {', '.join(self.rows)}")
            row = self.rows[name]
            if row.of is None:
                found.add(name)
            left += [other for other in (row.of, row.weights_of) if other is not None]
        return found

    def folder(self, row: str, seed: int) -> Path:
        return self.root / f"{row}_seed{seed}"

    def overrides(self, row: Row, seed: int) -> list[str]:
        """KEY VALUE pairs of a run."""
        given = [*row.overrides, "SEED", str(seed)]
        if row.weights_of is not None:
            given += ["MODEL.WEIGHTS", str(self.folder(row.weights_of, seed) / "model_final.pth")]
        return given


def read_plan(path: str | Path) -> Plan:
    """The plan in a YAML file; InputError names the file and what does not fit."""
    path = Path(path)
    content = read_yaml_with_base(path)
    _known(content, PLAN_KEYS, str(path))
    seeds = content.get("seeds", [0, 1, 2])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise InputError(f"{path}: seeds must be a list of whole numbers such as [0, 1, 2], not {seeds!r}")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{path}: seeds names one seed twice: {seeds}; each makes one run")
    given = content.get("rows")
    if not isinstance(given, Mapping) or not given:
        raise InputError(f"{path}: rows must name at least one row, such as `pisr: {{}}`")
    root = ROOT / content.get("root", f"output/experiments/{path.stem}")
    rows = {str(name): _row(str(name), entry or {}, content, path, root) for name, entry in given.items()}
    _check_references(rows, path)
    datasets = content.get("datasets")
    prepare = content.get("prepare", [])
    if not isinstance(prepare, list):
        raise InputError(f"{path}: prepare must be a list: a tool of this project and its arguments")
    return Plan(
        name=path.stem,
        title=str(content.get("title", path.stem)),
        root=root,
        datasets=None if datasets is None else ROOT / datasets,
        prepare=tuple(str(word) for word in prepare),
        seeds=tuple(seeds),
        rows=rows,
        tables=_tables(content.get("tables"), rows, seeds, path),
    )


def _known(given: Any, keys: set[str], where: str) -> None:
    if not isinstance(given, Mapping):
        raise InputError(f"{where}: must have keys ({', '.join(sorted(keys))}), not {given!r}")
    unknown = sorted(str(key) for key in set(given) - keys)
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(sorted(keys))}")


def _row(name: str, entry: Any, content: Mapping[str, Any], path: Path, root: Path) -> Row:
    where = f"{path}, row {name}"
    _known(entry, ROW_KEYS, where)
    if ("of" in entry) != ("stage" in entry) or ("of" in entry and set(entry) - {"of", "stage", "title"}):
        raise InputError(f"{where}: a row that is measured has `of: ROW, stage: STAGE` and a title, no more")
    if "of" in entry and entry["stage"] not in STAGES:
        raise InputError(f"{where}: stage {entry['stage']!r} is none of {', '.join(STAGES)}")
    title = str(entry.get("title") or (PAPER_ROWS[name].title if name in PAPER_ROWS else name))
    if "of" in entry:
        return Row(name, title, of=entry["of"], stage=entry["stage"])
    config = entry.get("config", content.get("config"))
    if not isinstance(config, str) or not (ROOT / config).is_file():
        raise InputError(f"{where}: no configuration {config!r} in the repository; name one by `config:`")
    values: dict[str, Any] = {}
    for given in (content.get("set") or {}, entry.get("set") or {}):
        if not isinstance(given, Mapping):
            raise InputError(f"{where}: set must give keys their values, not {given!r}")
        values |= given
    return Row(
        name=name,
        title=title,
        config=ROOT / config,
        overrides=tuple(str(word).replace("{root}", str(root)) for pair in values.items() for word in pair),
        weights_of=entry.get("weights_of"),
    )


def _check_references(rows: Mapping[str, Row], path: Path) -> None:
    trained = [row.name for row in rows.values() if row.of is None]
    fresh = [row.name for row in rows.values() if row.of is None and row.weights_of is None]
    for row in rows.values():
        for other, valid in ((row.of, trained), (row.weights_of, fresh)):
            if other is not None and other not in valid:
                raise InputError(
                    f"{path}, row {row.name}: {other!r} is no row to build on; those are: {', '.join(valid)}"
                )


def _tables(given: Any, rows: Mapping[str, Row], seeds: Sequence[int], path: Path) -> tuple[TableSpec, ...]:
    if given is None:
        return (TableSpec("All rows", tuple(rows), next(iter(rows))),)
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise InputError(f"{path}: tables must be a list of tables, not {given!r}")
    tables = []
    for number, entry in enumerate(given, start=1):
        where = f"{path}, table {number}"
        _known(entry, TABLE_KEYS, where)
        names = tuple(entry.get("rows", rows))
        baseline = entry.get("baseline", names[0] if names else "")
        unknown = [name for name in (*names, baseline) if name not in rows]
        if unknown:
            raise InputError(f"{where}: {unknown[0]!r} is no row; known: {', '.join(rows)}")
        metrics = tuple(entry.get("metrics", ()))
        strange = [name for name in metrics if name.split(" ")[0] not in METRIC_KEYS]
        if strange:
            raise InputError(f"{where}: {strange[0]!r} is no metric; known: {', '.join(METRIC_KEYS)}")
        some = entry.get("seeds", [])
        if not isinstance(some, list) or not set(some) <= set(seeds):
            raise InputError(f"{where}: its seeds {some} must be a list of some of the plan's, {list(seeds)}")
        tables.append(TableSpec(str(entry.get("title", path.stem)), names, baseline, metrics, tuple(some)))
    return tuple(tables)
