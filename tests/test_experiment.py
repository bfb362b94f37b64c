"""Plans and the experiment tool: what a plan may say, and a real run that is stopped and goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from mask_former.data.id_map import read_id_map, write_id_map
from mask_former.errors import InputError
from tests.toy_run import TINY, render
from tools import experiment
from tools.evidence.jobs import Launch, jobs_of, prepare_command
from tools.evidence.merge_categories import main as merge_categories
from tools.evidence.merge_categories import merged_categories, merged_segments, most_frequent
from tools.evidence.paper import ROWS as PAPER_ROWS
from tools.evidence.plan import read_plan
from tools.project import read_config

REPOSITORY = Path(__file__).resolve().parent.parent
PLANS = sorted((REPOSITORY / "plans").glob("*.yaml"))
TOY = "configs/toy/maskformer_tiny.yaml"
SMALL = {key: yaml.safe_load(value) for key, value in TINY.items()} | {"INPUT.MIN_SIZE_TRAIN": [64]}


def write_plan(folder: Path, **content) -> Path:
    path = folder / "trial.yaml"
    given = {"root": str(folder / "runs"), "config": TOY, "rows": {"baseline": None, "pisr": None}} | content
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    return path


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_plan_of_the_project_can_be_run(path):
    plan = read_plan(path)
    assert plan.root.is_relative_to(REPOSITORY / "output/experiments")
    jobs = jobs_of(plan)
    assert len(jobs) == len(plan.seeds) * len(plan.trained) == len({job.folder for job in jobs})
    assert {name for table in plan.tables for name in (*table.rows, table.baseline)} <= set(plan.rows)
    used = {name for table in plan.tables for name in table.rows}
    building = {row.of or row.weights_of for row in plan.rows.values()}
    assert set(plan.rows) <= used | building, "no row is trained for nothing"
    for name in plan.probed:
        (first,) = [row for row in plan.trained if row.name == name]
        assert "_pisr" in first.config.stem, "only PISR models have stages"


def test_the_small_plans_have_three_seeds_and_the_papers_rows():
    small = [read_plan(path) for path in PLANS if not path.stem.startswith("ade20k")]
    assert len(small) == 13 and all(len(plan.seeds) >= 3 for plan in small)
    for name in ("toy_ablations", "ade20k_ablations"):
        rows = set(read_plan(REPOSITORY / f"plans/{name}.yaml").rows)
        assert set(PAPER_ROWS) <= rows


def test_plans_that_share_a_root_agree_on_the_rows_that_they_share():
    """The same folder must mean the same training in every plan."""
    meant: dict[Path, tuple] = {}
    for path in PLANS:
        plan = read_plan(path)
        for row in plan.trained:
            now = (row.config, tuple(plan.overrides(row, 0)))
            assert meant.setdefault(plan.folder(row.name, 0), now) == now, f"{path.name}: {row.name}"
    assert len(meant) < sum(len(read_plan(path).trained) for path in PLANS), "some are shared"


def test_what_a_run_gets(tmp_path):
    rows = {
        "a": {"set": {"SOLVER.BASE_LR": 0.5}},
        "b": {"weights_of": "a"},
        "c": {"of": "b", "stage": "initial"},
    }
    tables = [{"title": "T", "rows": ["a", "c"], "metrics": ["PQ", "context boat/cart"]}]
    path = write_plan(
        tmp_path,
        rows=rows,
        seeds=[3],
        set={"SOLVER.BASE_LR": 1.0, "SOLVER.MAX_ITER": 7},
        tables=tables,
        prepare=["tool.py", "{datasets}/toy", "{root}/x"],
        datasets=str(tmp_path / "data"),
    )
    plan = read_plan(path)
    first, second = jobs_of(plan)
    assert first.overrides == ("SOLVER.BASE_LR", "0.5", "SOLVER.MAX_ITER", "7", "SEED", "3")
    weights = str(tmp_path / "runs/a_seed3/model_final.pth")
    assert second.overrides[-2:] == ("MODEL.WEIGHTS", weights) and second.after == first.folder
    assert second.probed and not first.probed and first.max_iter == 7
    assert first.is_ready() and not second.is_ready()
    command = first.command("train", Launch("slurm", 4, ("--partition", "gpu")))
    assert command[1] == "slurm/launch.py" and command[command.index("--gpus") + 1] == "4"
    assert command[command.index("--") - 2 : command.index("--")] == ["--partition", "gpu"]
    assert list(prepare_command(plan))[2:] == [f"{tmp_path}/data/toy", f"{tmp_path}/runs/x"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"rows": {}}, "rows must name at least one row"),
        ({"seeds": [0, 0]}, "one seed twice"),
        ({"seeds": ["a"]}, "list of whole numbers"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"rows": {"a": {"of": "b"}}}, "row a: a row that is measured has"),
        ({"rows": {"a": {"of": "b", "stage": "initial"}}}, "'b' is no row to build on"),
        (
            {"rows": {"a": None, "b": {"of": "a", "stage": "middle"}}},
            "stage 'middle' is none of final, initial",
        ),
        ({"rows": {"a": {"config": "configs/none.yaml"}}}, "no configuration 'configs/none.yaml'"),
        ({"tables": [{"rows": ["c"]}]}, "table 1: 'c' is no row"),
        ({"tables": [{"metrics": ["F1"]}]}, "table 1: 'F1' is no metric"),
        ({"seeds": [0, 1], "tables": [{"seeds": [1, 2]}]}, "table 1: its seeds .* must be a list of some"),
        ({"seeds": [0, 1], "tables": [{"seeds": 1}]}, "table 1: its seeds 1 must be a list of some"),
        ({"set": {"OUTPUT_DIR": "x"}}, "OUTPUT_DIR is the plan's business"),
        ({"set": {"SOLVER.MAXITER": 1}}, "MAXITER"),
    ],
)
def test_what_a_plan_may_not_say(tmp_path, content, said):
    with pytest.raises(InputError, match=said) as error:
        jobs_of(read_plan(write_plan(tmp_path, **content)))
    assert "\n" not in str(error.value)


def test_some_rows_of_a_plan_need_what_they_are_made_from(tmp_path):
    rows = {
        "a": None,
        "b": {"weights_of": "a"},
        "c": {"of": "b", "stage": "final"},
        "d": None,
    }
    plan = read_plan(write_plan(tmp_path, rows=rows, seeds=[0, 1]))
    assert [job.name for job in jobs_of(plan, ["c"])] == ["a_seed0", "b_seed0", "a_seed1", "b_seed1"]
    assert [job.name for job in jobs_of(plan, ["d"])] == ["d_seed0", "d_seed1"]
    assert len(jobs_of(plan)) == 6
    with pytest.raises(InputError, match="the plan trial has no row 'e'; use: a, b, c, d"):
        jobs_of(plan, ["e"])


def test_half_of_another_run_is_not_gone_on_with(tmp_path):
    """The folder of a run that was trained by another schedule is refused, not resumed to another end."""
    plan = read_plan(write_plan(tmp_path, seeds=[0], set={"SOLVER.MAX_ITER": 10}))
    (job, _) = jobs_of(plan)
    job.folder.mkdir(parents=True)
    (job.folder / "config.yaml").write_text(read_config(job.config, job.overrides).dump())
    assert len(jobs_of(plan)) == 2
    older = yaml.safe_load((job.folder / "config.yaml").read_text())
    del older["SOLVER"]["ADAM_EPS"]  # from before there was such a key
    (job.folder / "config.yaml").write_text(yaml.safe_dump(older))
    assert len(jobs_of(plan)) == 2
    other = read_plan(write_plan(tmp_path, seeds=[0], set={"SOLVER.MAX_ITER": 20}))
    with pytest.raises(InputError, match="holds a run with SOLVER.MAX_ITER 10, and the plan says 20"):
        jobs_of(other)


def test_runs_are_known_again_when_the_project_has_moved(tmp_path):
    rows = {"a": None, "b": {"weights_of": "a"}}
    plan = read_plan(write_plan(tmp_path, rows=rows, seeds=[0]))
    (_, job) = jobs_of(plan)
    job.folder.mkdir(parents=True)
    elsewhere = ["MODEL.WEIGHTS", "/old/place/runs/a_seed0/model_final.pth"]
    (job.folder / "config.yaml").write_text(read_config(job.config, [*job.overrides, *elsewhere]).dump())
    assert len(jobs_of(plan)) == 2
    elsewhere[1] = "/old/place/runs/c_seed0/model_final.pth"
    (job.folder / "config.yaml").write_text(read_config(job.config, [*job.overrides, *elsewhere]).dump())
    with pytest.raises(InputError, match="holds a run with MODEL.WEIGHTS /old/place/runs/c_seed0"):
        jobs_of(plan)


def test_super_categories_by_hand():
    categories = [
        {"id": 2, "name": "car", "supercategory": "vehicle", "isthing": 1},
        {"id": 5, "name": "bus", "supercategory": "vehicle", "isthing": 1},
        {"id": 9, "name": "sand", "supercategory": "ground", "isthing": 0},
        {"id": 7, "name": "road", "supercategory": "ground", "isthing": 0},
    ]
    merged, new_of = merged_categories(categories)
    assert [(c["id"], c["name"], c["isthing"]) for c in merged] == [(1, "vehicle", 1), (2, "ground", 0)]
    assert new_of == {2: 1, 5: 1, 7: 2, 9: 2}
    ids = np.array([[10, 11], [20, 21]], np.int32)
    segments = [{"id": i, "category_id": c} for i, c in ((10, 2), (11, 5), (20, 7), (21, 9))]
    new, kept = merged_segments(ids, segments, new_of, {1})
    assert new.tolist() == [[10, 11], [20, 20]] and ids[1, 1] == 21, "things stay apart, stuff becomes one"
    assert [(s["id"], s["category_id"]) for s in kept] == [(10, 1), (11, 1), (20, 2)]

    annotations = [{"segments_info": [{"category_id": c} for c in some]} for some in ([2, 2, 2, 7], [9])]
    left, new_of = most_frequent(merged, new_of, annotations, 1)
    assert [(c["id"], c["name"]) for c in left] == [(1, "ground")], "in two images, vehicles in one"
    assert new_of == {2: None, 5: None, 7: 1, 9: 1}
    new, kept = merged_segments(ids, segments, new_of, set())
    assert new.tolist() == [[0, 0], [20, 20]], "what has no class is void"
    assert [(s["id"], s["category_id"]) for s in kept] == [(20, 1)]


def write_split(folder: Path, split: str, categories: list[dict], used: list[int]) -> None:
    """One image with a segment of each category in `used`."""
    segments = [{"id": number, "category_id": c} for number, c in enumerate(used, start=1)]
    annotation = {"image_id": 1, "file_name": "1.png", "segments_info": segments}
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 1, "width": len(used)}],
        "annotations": [annotation],
        "categories": categories,
    }
    (folder / f"panoptic_{split}").mkdir(parents=True)
    write_id_map(folder / f"panoptic_{split}" / "1.png", np.arange(1, len(used) + 1, dtype=np.int32)[None])
    (folder / f"panoptic_{split}.json").write_text(json.dumps(content))


def test_two_splits_get_the_most_frequent_classes_of_the_first(tmp_path, capsys):
    source, output = tmp_path / "coco", tmp_path / "merged"
    categories = [
        {"id": 1, "name": "car", "supercategory": "vehicle", "isthing": 1},
        {"id": 2, "name": "sand", "supercategory": "ground", "isthing": 0},
    ]
    write_split(source, "train", categories, [2])
    write_split(source, "val", categories, [1, 2])
    both = [str(source), str(output), "train", "val"]
    merge_categories([*both, "--most-frequent", "1"])
    assert "1 classes: ground" in capsys.readouterr().out
    val = json.loads((output / "panoptic_val.json").read_text())
    assert [s["category_id"] for s in val["annotations"][0]["segments_info"]] == [1]
    assert read_id_map(output / "panoptic_val" / "1.png").tolist() == [[0, 2]]
    with pytest.raises(InputError, match="has other classes already"):
        merge_categories(both)
    with pytest.raises(InputError, match="--most-frequent 2: the images have 1 super-categories only"):
        merge_categories([*both, "--most-frequent", "2"])

    write_split(source, "other", categories[::-1], [1])
    with pytest.raises(InputError, match="panoptic_other.json: has other categories than the first split"):
        merge_categories([str(source), str(tmp_path / "new"), "train", "other"])
    write_split(source, "unknown", categories, [1, 9])
    with pytest.raises(InputError, match="1.png has a segment of the category 9, which the file"):
        merge_categories([str(source), str(tmp_path / "new"), "train", "unknown"])


def test_arguments_of_the_launcher_come_after_two_dashes(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(experiment, "run", lambda plan, args, launch: given.append((args, launch)) or 0)
    path = write_plan(tmp_path)
    experiment.main([str(path), "--executor", "slurm", "--rows", "pisr", "--", "--partition", "gpu"])
    ((args, launch),) = given
    assert (args.rows, launch) == (["pisr"], ("--partition", "gpu"))
    with pytest.raises(InputError, match="--tables shows every row"):
        experiment.main([str(path), "--tables", "--rows", "pisr"])


@pytest.mark.slow
def test_an_estimate_measures_every_row_and_leaves_no_run(tmp_path, capfd):
    rows = {"baseline": None, "pisr": {"config": "configs/toy/maskformer_tiny_pisr.yaml"}}
    content = {"seeds": [0, 1], "set": SMALL | {"SOLVER.MAX_ITER": 7200}, "datasets": str(render(tmp_path))}
    path = write_plan(tmp_path, rows=rows, **content)
    assert experiment.main([str(path), "--estimate", "--iterations", "6", "--jobs", "2"]) == 0
    lines = [line.split() for line in capfd.readouterr().out.splitlines()]
    found = {words[0]: [float(word) for word in words[1:]] for words in lines if words and words[0] in rows}
    total = 0.0
    for seconds, iterations, hours, memory, left, all_hours in (found["baseline"], found["pisr"]):
        assert (iterations, left) == (7200, 2)
        assert hours == pytest.approx(2 * seconds, rel=0.02, abs=0.01)
        assert all_hours == pytest.approx(2 * hours, abs=0.02) and memory > 100
        total += all_hours
    ((said, half),) = [(float(words[0]), float(words[5])) for words in lines if "left," in words]
    assert said == pytest.approx(total, abs=0.1) and half == pytest.approx(total / 2, abs=0.1)
    assert list((tmp_path / "runs").rglob("metrics.json")) == []

    broken = write_plan(tmp_path, rows={"none": {"set": {"DATASETS.TRAIN": ["toy_none"]}}}, **content)
    with pytest.raises(InputError, match="none_seed0 cannot be measured: .*toy_none"):
        experiment.main([str(broken), "--estimate", "--iterations", "6"])


def processes_naming(text: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if text.encode() in command and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


@pytest.mark.slow
def test_stopped_it_goes_on_and_ends_with_the_tables(tmp_path):
    """The real tool on rendered scenes: a PISR model is trained, stopped half-way, trained on, and probed."""
    small = SMALL | {"SOLVER.MAX_ITER": 40, "LOG.PERIOD": 1, "SOLVER.CHECKPOINT_PERIOD": 100}
    row = {"config": "configs/toy/maskformer_tiny_pisr.yaml"}
    path = write_plan(
        tmp_path,
        rows={"pisr": row, "swapped": {"of": "pisr", "stage": "swapped"}},
        seeds=[5],
        set=small,
        datasets=str(render(tmp_path / "data")),
    )
    run = tmp_path / "runs/pisr_seed5"
    command = [sys.executable, "tools/experiment.py", str(path)]
    first = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (run / "metrics.json").exists() or len((run / "metrics.json").read_bytes().splitlines()) < 3:
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert first.wait(120) == 143
    assert processes_naming(str(run)) == []
    second = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=400)
    assert second.returncode == 0, second.stderr[-2000:]
    starts = [start["start_iteration"] for start in json.loads((run / "run.json").read_text())["starts"]]
    assert starts[0] == 0 and len(starts) == 2 and 0 < starts[1] < 40, "it saved when it was stopped"
    assert "| pisr | 5 |" in second.stdout and "| swapped | 5 |" in second.stdout
    diagnosis = json.loads((run / "probe/probe.json").read_text())["diagnosis"]
    assert 0 < diagnosis["relation varies"] < 1 and 0 < diagnosis["gradient share"] < 1
    assert f"| relation varies | {diagnosis['relation varies']:.3f} |" in second.stdout
    assert (tmp_path / "runs/tables/trial/tables.svg").is_file()
