"""From run folders to tables: what counts as finished, numbers by hand, a document from kept files."""

import csv
import io
import json
import math
import re
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from mask_former.errors import InputError, run_cli
from tools import ablation_table
from tools.evidence.document import NOTHING, rebuilt
from tools.evidence.paired import difference, spread
from tools.evidence.paper import HOST, ROWS, TABLES, delta
from tools.evidence.plan import TableSpec, read_plan
from tools.evidence.results import Result, keep, read_all, read_kept, read_run
from tools.evidence.tables import DELTA, build_table, markdown

REPOSITORY = Path(__file__).resolve().parent.parent


def result(row: str, seed: int, **metrics: float) -> Result:
    return Result(row, seed, 100, metrics)


def write_run(folder: Path, *, done: int = 4, max_iter: int = 4, evaluated: bool = True, **metrics) -> Path:
    """A run's folder as training leaves it; `metrics` with "__" for the slash."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"SOLVER": {"MAX_ITER": max_iter}}))
    rows = [{"iteration": i, "total_loss": 1.0, "pisr/pixel_residual": 0.1 * i} for i in range(done)]
    if evaluated:
        found = {key.replace("__", "/"): value for key, value in metrics.items()}
        rows.append({"iteration": done - 1, **found, "evaluated": len(found)})
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    starts = [{"seed": 7, "time": "2026-01-02T03:04:05", "command": "/a/b/tools/train_net.py --resume"}]
    starts[0] |= {"git": {"revision": "abc", "dirty": False}, "gpus": [], "cpus": 2, "torch": "2"}
    (folder / "run.json").write_text(json.dumps({"starts": starts}))
    return folder


def test_spread_and_paired_difference_by_hand():
    assert spread({0: 1.0, 1: 2.0, 2: 6.0}) == pytest.approx((3.0, math.sqrt(7), 3))
    assert math.isnan(spread({0: 1.0}).deviation) and spread({}) is None
    # gains 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.30265
    found = difference({0: 11.0, 1: 22.0, 2: 33.0, 5: 0.0}, {0: 10.0, 1: 20.0, 2: 30.0})
    half = 4.30265 / math.sqrt(3)
    assert found == pytest.approx((2.0, 2 - half, 2 + half, 3), abs=1e-4) and not found.is_clear
    assert difference({0: 3.0, 1: 3.1}, {0: 1.0, 1: 1.1}).is_clear, "the same gain twice"
    alone = difference({0: 3.0}, {0: 1.0})
    assert (alone.mean, alone.pairs) == (2.0, 1) and math.isnan(alone.low) and not alone.is_clear
    assert difference({0: 3.0}, {1: 1.0}) is None


def test_a_lucky_seed_is_not_a_gain():
    """Seeds differ by 20, the rows by 1 in each of them: the interval is as narrow as the paired gains."""
    results = [result("baseline", s, PQ=20.0 * s) for s in range(3)]
    results += [result("pisr", s, PQ=20.0 * s + 1 + 0.01 * s) for s in range(3)]
    (_, pisr) = build_table(TableSpec("t", ("baseline", "pisr"), "baseline"), results, {}).rows
    assert pisr.values["PQ"].deviation > 19
    assert pisr.gains["PQ"].mean == pytest.approx(1.01) and pisr.gains["PQ"].is_clear


def test_a_table_may_be_of_some_seeds():
    results = [result(row, s, PQ=10.0 * s + gain) for row, gain in (("a", 0), ("b", 1)) for s in range(4)]
    (first, second) = build_table(TableSpec("t", ("a", "b"), "a", seeds=(2, 3)), results, {}).rows
    assert (first.seeds, first.values["PQ"].mean) == ((2, 3), 25)
    assert (second.gains["PQ"].mean, second.gains["PQ"].pairs) == (1, 2)


def test_delta_sums_what_the_paper_sums():
    results = [result("baseline", 0, PQ=10.0, mIoU=20.0, AP=5.0, context=50.0)]
    results += [result("pisr", 0, PQ=12.0, mIoU=21.0, AP=4.5, context=90.0)]
    table = build_table(
        TableSpec("t", ("baseline", "pisr", "none"), "baseline"), results, {"pisr": "With PISR"}
    )
    assert table.rows[1].gains[DELTA].mean == pytest.approx(2 + 1 - 0.5), "not the context accuracy"
    text = markdown(table)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    assert lines[0] == ["row", "seeds", "PQ", "gain in PQ", "mIoU", "gain in mIoU", "AP", "gain in AP"] + [
        "context",
        "gain in context",
        "Δ",
    ]
    assert lines[3] == ["With PISR", "0", "12.00", "+2.00", "21.00", "+1.00", "4.50", "-0.50"] + [
        "90.00",
        "+40.00",
        "+2.50",
    ]
    assert lines[4] == ["none", "not run"] + [""] * 9
    assert "sum of the gains in PQ + mIoU + AP" in text and "paper:" not in text


def test_iiou_takes_the_place_of_ap_where_all_rows_have_it():
    rows = [result("baseline", 0, PQ=1.0, mIoU=1.0, AP=1.0, iIoU=1.0)]
    rows += [result("b1_implicit_2", 0, PQ=2.0, mIoU=2.0, AP=9.0, iIoU=4.0)]
    spec = TableSpec("t", ("baseline", "b1_implicit_2", "b1_explicit_2"), "baseline")
    table = build_table(spec, rows, {})
    assert table.delta_of == ("PQ", "mIoU", "iIoU") and table.rows[1].gains[DELTA].mean == 5
    assert "61.2 / 79.0 / 63.3 (+2.6)" in markdown(table), "the paper's own row beside it"


def test_the_papers_numbers_agree_with_their_printed_sums():
    """Printed Δ of Tables B.1, B.2 and B.3, in their order; two of them differ from the sum, as noted."""
    printed = [0, 5.9, 3.7, 2.6, 5.4, 0, 3.2, 4.5, 4.4, 5.2, 5.9, 0, 3.9, 4.6, 5.9, 3.6]
    rows = [row for table in TABLES.values() for row in table.values()]
    assert [round(delta(row), 1) for row in rows] == printed
    assert sum(row.delta is not None for row in ROWS.values()) == 2 and HOST.values == (59.9, 78.5, 62.5)
    ablations = {path.stem for path in (REPOSITORY / "configs/ablations").glob("*.yaml")}
    assert set(ROWS) <= ablations, "a configuration for every row"


def test_what_a_run_folder_tells(tmp_path):
    run = write_run(
        tmp_path / "pisr_seed3",
        panoptic_seg__PQ=30.5,
        sem_seg__mIoU=None,
        context__accuracy=60.0,
        context__accuracy_boat_cart=70.0,
        **{"context__recall_cabin boat_cabin cart": 80.0},
    )
    (run / "probe").mkdir()
    stages = {"final": {"panoptic_seg/PQ": 30.5}, "swapped": {"panoptic_seg/PQ": 29.0}}
    stages["diagnosis"] = {"relation rank": 1.5}
    (run / "probe/probe.json").write_text(json.dumps(stages))
    found = read_run(run)
    assert (found.row, found.seed, found.iterations) == ("pisr", 3, 4)
    assert found.metrics == {
        "PQ": 30.5,
        "context": 60.0,
        "context boat/cart": 70.0,
        "recall cabin boat/cabin cart": 80.0,
    }, "null is no number"
    assert found.stages == {"swapped": {"PQ": 29.0}} and found.diagnosis == {"relation rank": 1.5}
    assert found.residuals["pixel_residual"] == [(1, 0.0), (2, 0.1), (3, 0.2), (4, pytest.approx(0.3))]
    assert found.made["command"] == "train_net.py --resume", "no path of a machine"
    launch = {
        "config": str(REPOSITORY / "configs/a b.yaml"),
        "overrides": ["SEED", "3", "MODEL.WEIGHTS", "/x/y.pth"],
    }
    (run / "launch.json").write_text(json.dumps(launch))
    assert read_run(run).made["command"] == (
        "tools/train_net.py --config-file 'configs/a b.yaml' SEED 3 MODEL.WEIGHTS y.pth"
    )
    clone = {"config": "/x/clone/configs/toy/maskformer_tiny.yaml"}
    clone["overrides"] = ["MODEL.WEIGHTS", "/x/clone/output/y/z.pth", "DATASETS.ROOT", "/x/data"]
    (run / "launch.json").write_text(json.dumps(clone))
    assert read_run(run).made["command"] == (
        "tools/train_net.py --config-file configs/toy/maskformer_tiny.yaml "
        "MODEL.WEIGHTS output/y/z.pth DATASETS.ROOT data"
    ), "a run of another clone"
    assert (found.made["revision"], found.made["date"]) == ("abc", "2026-01-02")
    found = read_run(run)
    assert read_kept(keep(found, tmp_path / "kept")) == found
    assert (tmp_path / "kept/pisr_3.json").stat().st_size < 3000
    assert read_run(write_run(tmp_path / "no_seed_in_its_name", panoptic_seg__PQ=1.0)).seed == 7


def test_an_unfinished_run_is_named_and_left_out(tmp_path, capsys):
    write_run(tmp_path / "baseline_seed0", panoptic_seg__PQ=10.0)
    write_run(tmp_path / "pisr_seed0", done=2, panoptic_seg__PQ=99.0)  # evaluated half-way
    write_run(tmp_path / "pisr_seed1", evaluated=False)
    _, unfinished = read_all([tmp_path])
    assert unfinished == {
        "pisr_seed0": "unfinished at iteration 2 of 4",
        "pisr_seed1": "unfinished at iteration 4 of 4",
    }
    ablation_table.main([str(tmp_path), "--output", str(tmp_path / "tables")])
    said = capsys.readouterr().out
    assert said == (tmp_path / "tables/tables.md").read_text()
    assert "Left out: pisr_seed0 (unfinished at iteration 2 of 4); pisr_seed1" in said and "99" not in said


def test_the_tool_writes_the_papers_tables(tmp_path, capsys):
    for seed in (0, 1):
        for row, value in (("baseline", 10.0), ("b1_explicit_2", 12.0), ("mine", 1.0)):
            metrics = {"panoptic_seg__PQ": value + seed, "sem_seg__mIoU": 2 * value}
            write_run(tmp_path / "runs" / f"{row}_seed{seed}", **metrics)
    ablation_table.main(
        [str(tmp_path / "runs"), "--output", str(tmp_path / "t"), "--keep", str(tmp_path / "kept")]
    )
    text = capsys.readouterr().out
    assert "Table B.1" in text and "Table B.2" not in text and "### Other rows" in text
    line = next(line for line in text.splitlines() if "Default, 2 hidden" in line)
    assert "12.50 ± 0.71" in line and "+2.00 (+2.00 … +2.00)*" in line and "62.2 / 80.2 / 64.4 (+5.9)" in line
    assert next(line for line in text.splitlines() if "Implicit" in line).split("|")[2].strip() == "not run"
    rows = list(csv.DictReader(io.StringIO((tmp_path / "t/tables.csv").read_text())))
    (mine,) = [row for row in rows if row["row"] == "b1_explicit_2" and row["metric"] == "Δ"]
    assert float(mine["gain"]) == pytest.approx(2 + 4) and mine["pairs"] == "2"
    assert next(row for row in rows if row["row"] == "b1_implicit_2")["paper"] == "61.2"
    picture = ElementTree.fromstring((tmp_path / "t/tables.svg").read_text())
    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "Default, 2 hidden layers" in texts and "Implicit, 2 hidden layers (not run)" in texts
    ablation_table.main([str(tmp_path / "kept"), "--output", str(tmp_path / "again")])
    assert capsys.readouterr().out == text, "the kept files give the same tables"


def write_repository(root: Path) -> Path:
    """A plan and kept results under `root`, as the repository has them."""
    (root / "plans").mkdir()
    config = "configs/toy/maskformer_tiny.yaml"
    rows = {"baseline": {"title": "MaskFormer"}, "pisr": {}, "first": {"of": "pisr", "stage": "initial"}}
    plan = {"title": "A trial", "config": config, "seeds": [0, 1], "rows": rows}
    (root / "plans/trial.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    for seed in (0, 1):
        keep(result("baseline", seed, PQ=10.0), root / "docs/evidence/trial")
        pisr = Result("pisr", seed, 100, {"PQ": 11.0 + seed}, {"initial": {"PQ": 10.5}})
        keep(pisr, root / "docs/evidence/trial")
    return root


def test_a_document_is_rebuilt_from_what_was_kept(tmp_path):
    root = write_repository(tmp_path)
    text = "Before.\n<!-- tables: trial -->\nold\n<!-- end of trial -->\nAfter.\n"
    made = rebuilt(text, root)
    assert made.startswith("Before.\n") and made.endswith("\nAfter.\n") and "old" not in made
    assert "| first | 0, 1 | 10.50 ± 0.00 | +0.50 (+0.50 … +0.50)* |" in made, (
        "another stage of the same model"
    )
    assert "python tools/experiment.py plans/trial.yaml" in made
    assert rebuilt(made, root) == made
    kept = root / "docs/evidence/trial/pisr_1.json"
    kept.write_text(kept.read_text().replace("12.0", "13.0"))
    assert rebuilt(made, root) != made, "a number that changed shows"
    (root / "docs/evidence/trial").rename(root / "docs/evidence/other")
    assert NOTHING in rebuilt(made, root)
    with pytest.raises(InputError, match="lacks its `<!-- end of trial -->`"):
        rebuilt("<!-- tables: trial -->\n", root)


def test_the_tables_of_the_documentation_are_those_of_the_kept_results():
    text = (REPOSITORY / "docs/evidence.md").read_text()
    assert "<!-- tables: " in text
    assert rebuilt(text) == text, "python tools/ablation_table.py --document docs/evidence.md"


def test_the_commands_of_the_kept_results_name_what_the_plans_name():
    kept = sorted((REPOSITORY / "docs/evidence").glob("*/*.json"))
    assert kept
    plans = {path.parent.name for path in kept}
    rows = {name: read_plan(REPOSITORY / f"plans/{name}.yaml") for name in plans}
    for path in kept:
        result, plan = read_kept(path), rows[path.parent.name]
        row = plan.rows[result.row]
        words = shlex.split(result.made["command"])
        assert words[:3] == ["tools/train_net.py", "--config-file", str(row.config.relative_to(REPOSITORY))]
        if row.weights_of:
            run = plan.root.relative_to(REPOSITORY) / f"{row.weights_of}_seed{result.seed}"
            assert words[words.index("MODEL.WEIGHTS") + 1] == f"{run}/model_final.pth"


def test_the_gains_that_the_readme_tells_stand_in_the_documentation():
    gain = re.compile(r"[+-]\d+\.\d\d \([+-]\d+\.\d\d … [+-]\d+\.\d\d\)")
    told = gain.findall((REPOSITORY / "README.md").read_text())
    assert len(told) >= 3
    assert set(told) <= set(gain.findall((REPOSITORY / "docs/evidence.md").read_text()))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: [str(root / "nothing"), "--output", str(root)], "holds neither runs nor results"),
        (lambda root: [str(root)], "name run folders and --output"),
        (lambda root: ["--document", str(root / "none.md")], "cannot be read"),
        (
            lambda root: [str(write_run(root / "a", evaluated=False)), "--output", str(root)],
            "no finished run",
        ),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, make, said):
    assert run_cli(lambda: ablation_table.main(make(tmp_path))) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0]


def test_two_results_of_one_row_and_seed_are_refused(tmp_path):
    for place in ("a", "b"):
        write_run(tmp_path / place / "pisr_seed0", panoptic_seg__PQ=1.0)
    with pytest.raises(InputError, match="a second result of pisr, seed 0"):
        read_all([tmp_path / "a", tmp_path / "b"])
    damaged = tmp_path / "pisr_0.json"
    damaged.write_text("{}")
    with pytest.raises(InputError, match="no result that was kept"):
        read_kept(damaged)
