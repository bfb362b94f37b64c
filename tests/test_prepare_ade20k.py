import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from mask_former.atomic_write import UNFINISHED
from mask_former.data.ade20k import THING_CLASSES, load_ade20k_panoptic
from mask_former.data.ade20k_journal import only_run, read_journal
from mask_former.data.id_map import read_class_map, read_id_map, write_id_map
from mask_former.errors import InputError, run_cli
from tests.real_data import real_data
from tools import ade20k_check, prepare_ade20k

WALL, PERSON, CAR = 0, 12, 20
SCENE = np.array([[1, 1, 1, 1, 0], [13, 13, 21, 21, 0], [13, 13, 21, 3, 3]], np.uint8)
# (category, instance): persons are 4, cars 9; one car pixel has no instance; person 2 hides all of class 3
INSTANCE = [
    [(0, 0), (9, 1), (0, 0), (0, 0), (0, 0)],
    [(4, 1), (4, 1), (9, 1), (0, 0), (0, 0)],
    [(4, 1), (4, 1), (9, 1), (4, 2), (4, 2)],
]
IDS = np.array([[1, 277, 1, 1, 0], [269, 269, 277, 0, 0], [269, 269, 277, 525, 525]])


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    """Two training images with instances, one validation image without."""
    folder = tmp_path / "ADEChallengeData2016"
    instance = np.array([[(*pixel, 0) for pixel in row] for row in INSTANCE])
    for name, split, scene in (
        ("a", "training", SCENE),
        ("b", "training", SCENE * 0),
        ("c", "validation", SCENE),
    ):
        save(folder / "images" / split / f"{name}.jpg", np.zeros((3, 5, 3)))
        save(folder / "annotations" / split / f"{name}.png", scene)
        if split == "training":
            save(folder / "annotations_instance" / split / f"{name}.png", instance * (name == "a"))
    return folder


def run(*arguments) -> int:
    return prepare_ade20k.main([*map(str, arguments), "--workers", "1"])


def stamps(folder) -> dict[str, tuple[int, int]]:
    """Which file each PNG is, and when it was written."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*.png"))
    }


def tree(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_labels_by_hand(root, caplog):
    assert run(root) == 0
    np.testing.assert_array_equal(read_id_map(root / "ade20k_panoptic_train/a.png"), IDS)
    np.testing.assert_array_equal(
        read_class_map(root / "annotations_detectron2/training/a.png"),
        [[0, 0, 0, 0, 255], [12, 12, 20, 20, 255], [12, 12, 20, 2, 2]],
    )
    content = json.loads((root / "ade20k_panoptic_train.json").read_text())
    assert content["images"][0] == {"id": "a", "file_name": "a.jpg", "height": 3, "width": 5}
    assert content["annotations"][0] == {
        "image_id": "a",
        "file_name": "a.png",
        "segments_info": [
            # the wall lost a pixel to the car; class 2, hidden by person 2, is not listed
            {"id": 1, "category_id": WALL, "iscrowd": 0, "area": 3, "bbox": [0, 0, 4, 1]},
            {"id": 269, "category_id": PERSON, "iscrowd": 0, "area": 4, "bbox": [0, 1, 2, 2]},
            {"id": 277, "category_id": CAR, "iscrowd": 0, "area": 3, "bbox": [1, 0, 2, 3]},
            {"id": 525, "category_id": PERSON, "iscrowd": 0, "area": 2, "bbox": [3, 2, 2, 1]},
        ],
    }
    assert content["annotations"][1]["segments_info"] == []  # an image of nothing but void is kept
    assert len(content["categories"]) == 150 and sum(c["isthing"] for c in content["categories"]) == 100
    assert set(content["categories"][0]) == {"id", "name", "isthing", "color"}
    assert "train: 2 images, while the whole data set has 20210" in caplog.text


def test_what_is_made_can_be_loaded(root):
    run(root)
    records = load_ade20k_panoptic(root, "train")
    assert [record["image_id"] for record in records] == ["a", "b"]
    assert all(os.path.isfile(record["sem_seg_file_name"]) for record in records)


def test_a_split_without_instances_gets_semantic_labels_and_a_warning(root, caplog):
    assert run(root, "--splits", "val") == 0
    assert (root / "annotations_detectron2/validation/c.png").is_file()
    assert not (root / "ade20k_panoptic_val.json").exists() and not (root / "ade20k_panoptic_val").exists()
    assert f"no panoptic labels for this split, only semantic ones, because {root}" in caplog.text
    with pytest.raises(InputError, match="ade20k_panoptic_val.* is missing"):
        load_ade20k_panoptic(root, "val")


def test_a_second_run_and_more_processes_write_the_same(root):
    run(root)
    first, written = tree(root), stamps(root)
    assert prepare_ade20k.main([str(root), "--workers", "3"]) == 0
    assert tree(root) == first and stamps(root) == written  # not even written again
    for path in root.rglob("*"):
        if path.is_file() and str(path.relative_to(root)).startswith(("ade20k", "prepare", "annotations_de")):
            path.unlink()
    assert prepare_ade20k.main([str(root), "--workers", "3"]) == 0
    assert tree(root) == first
    assert not [name for name in first if "/." in name or name.startswith(".")]  # no temporary files


def test_another_output_leaves_the_source_alone_and_links_its_images(root, tmp_path):
    before, output = tree(root), tmp_path / "made" / "ADEChallengeData2016"
    assert run(root, "--output", output) == run(root, "--output", output) == 0
    assert tree(root) == before
    assert (output / "images").resolve() == (root / "images").resolve()
    assert len(load_ade20k_panoptic(output, "train")) == 2


def test_an_output_with_other_images_is_refused(root, tmp_path):
    (tmp_path / "other" / "images").mkdir(parents=True)
    with pytest.raises(InputError, match="holds other images than"):
        run(root, "--output", tmp_path / "other")


def test_a_folder_marked_read_only_is_not_written_even_by_the_superuser(root):
    before = tree(root)
    root.chmod(0o555)
    try:
        with pytest.raises(InputError, match="is marked read-only; name another folder by --output"):
            run(root)
    finally:
        root.chmod(0o755)
    assert tree(root) == before


def test_an_old_json_does_not_outlive_a_run_that_failed(root):
    run(root)
    save(root / "annotations_instance/training/b.png", np.full((3, 5, 3), 101))
    with pytest.raises(InputError, match=r"b\.png: instance category 101"):
        run(root)
    assert not (root / "ade20k_panoptic_train.json").exists()


def test_a_missing_label_is_named(root):
    (root / "annotations_instance/training/b.png").unlink()
    with pytest.raises(
        InputError, match=r"annotations_instance/training/b\.png: missing, as for 1 of 2 images"
    ):
        run(root)


def test_sizes_that_disagree_are_refused(root):
    save(root / "annotations/training/a.png", SCENE.T)
    with pytest.raises(
        InputError, match=r"annotations/training/a\.png: size \(5, 3\) is not its image's \(3, 5\)"
    ):
        run(root)


def test_nothing_to_prepare_is_a_failure(tmp_path, caplog):
    assert run(tmp_path) == 1
    assert "images/training is missing" in caplog.text and "nothing was prepared" in caplog.text
    (tmp_path / "images" / "training").mkdir(parents=True)
    (tmp_path / "annotations" / "training").mkdir(parents=True)
    assert run_cli(lambda: run(tmp_path)) == 2  # no image in it


def test_a_changed_source_or_label_is_made_again_and_nothing_else(root):
    run(root)
    first, written = tree(root), stamps(root)
    made = "ade20k_panoptic_train/b.png", "annotations_detectron2/training/b.png"
    (root / made[0]).write_bytes(first["ade20k_panoptic_train/a.png"])  # damaged
    run(root)
    assert tree(root) == first
    (root / made[1]).unlink()  # lost
    run(root)
    assert tree(root) == first
    assert {name for name, stamp in stamps(root).items() if stamp != written[name]} == set(made)

    times = os.stat(root / "annotations/training/b.png")
    save(root / "annotations/training/b.png", np.full((3, 5), 1))
    os.utime(root / "annotations/training/b.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    run(root)
    assert (read_id_map(root / made[0]) == 1).all()  # noticed, whatever its time
    content = json.loads((root / "ade20k_panoptic_train.json").read_text())
    assert [segment["area"] for segment in content["annotations"][1]["segments_info"]] == [15]
    changed = {name for name, data in tree(root).items() if data != first[name]}
    expected = {
        *made,
        "annotations/training/b.png",
        "ade20k_panoptic_train.json",
        "prepare_ade20k_train.jsonl",
    }
    assert changed == expected


def test_labels_of_instances_that_are_gone_since_are_kept(root):
    run(root)
    first = tree(root)
    for name in "ab":
        (root / f"annotations_instance/training/{name}.png").unlink()
    (root / "annotations_instance/training").rmdir()
    run(root)
    assert {**first, **tree(root)} == first and len(tree(root)) == len(first) - 2


def test_instances_that_come_later_are_taken_up(root):
    run(root, "--splits", "val")
    instance = np.array([[(*pixel, 0) for pixel in row] for row in INSTANCE])
    save(root / "annotations_instance/validation/c.png", instance)
    run(root, "--splits", "val")
    np.testing.assert_array_equal(read_id_map(root / "ade20k_panoptic_val/c.png"), IDS)
    assert assert_instances_are_the_panoptic_things(root, "val") == 3


def test_a_line_cut_short_does_not_spoil_the_next(root, monkeypatch):
    run(root)
    journal = root / "prepare_ade20k_train.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-40])  # the end of b's
    with monkeypatch.context() as patch:
        patch.setattr(prepare_ade20k, "finish", lambda *_: None)  # stopped before the end
        run(root, "--splits", "train")
    assert list(read_journal(journal)) == ["a", "b"] and journal.read_bytes() == whole


def test_leftovers_of_a_killed_run_are_removed_and_other_files_kept(root):
    run(root)
    first = tree(root)
    for name in (".ade20k_panoptic_train.json", "ade20k_panoptic_train/.a.png"):
        (root / f"{name}{UNFINISHED}0a_1b2c3").write_bytes(b"half")
    (root / ".mine.png").write_bytes(b"mine")
    with (root / "prepare_ade20k_train.jsonl").open("ab") as journal:
        journal.write(b'{"name": "a", "heig')
    run(root)
    assert tree(root) == {**first, ".mine.png": b"mine"}


def test_two_runs_do_not_write_at_once(root, monkeypatch):
    monkeypatch.setattr("mask_former.data.ade20k_journal.LOCK_PATIENCE", 0.2)
    with only_run(root), pytest.raises(InputError, match="another run is writing here; wait"):
        run(root)


def test_what_the_disk_lost_does_not_get_into_the_json(root, monkeypatch):
    conversion = prepare_ade20k.convert_image.__module__
    monkeypatch.setattr(
        f"{conversion}.write_id_map", lambda path, ids: write_id_map(path, ids * (ids != 269))
    )
    with pytest.raises(InputError, match=r"train/a\.png: reads back otherwise than it was written"):
        run(root)
    assert not (root / "ade20k_panoptic_train.json").exists()


def test_a_full_disk_is_told_in_a_line_and_what_is_done_is_kept(root, monkeypatch, capsys):
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(prepare_ade20k, "write_if_changed", full)
        assert run_cli(lambda: run(root, "--splits", "train")) == 2
    assert "No space left on device); mend that or name a folder by --output" in capsys.readouterr().err
    written = stamps(root)
    assert run(root, "--splits", "train") == 0 and stamps(root) == written


def test_no_worker_is_no_choice(root):
    with pytest.raises(InputError, match="--workers 0: use at least 1"):
        prepare_ade20k.main([str(root), "--workers", "0"])


def assert_instances_are_the_panoptic_things(folder, split="train") -> int:
    """Every mask of the instance JSON is a segment of the PNG, and no thing is left out; their number."""
    panoptic = json.loads((folder / f"ade20k_panoptic_{split}.json").read_text())
    coco = COCO(folder / f"ade20k_instance_{split}.json")
    assert list(coco.imgs) == [image["id"] for image in panoptic["images"]]
    assert sorted(coco.cats) == list(THING_CLASSES)
    assert all(coco.cats[c["id"]] == c for c in panoptic["categories"] if c["isthing"])
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
    for annotation in panoptic["annotations"]:
        ids = read_id_map(folder / f"ade20k_panoptic_{split}" / annotation["file_name"])
        segments = [s for s in annotation["segments_info"] if s["category_id"] in THING_CLASSES]
        found = coco.loadAnns(coco.getAnnIds(imgIds=[annotation["image_id"]]))
        for instance, segment in zip(found, segments, strict=True):
            np.testing.assert_array_equal(coco.annToMask(instance), ids == segment["id"])
            assert {**segment, "id": instance["id"]}.items() <= instance.items()  # class, area, box
    return len(coco.anns)


def test_the_instance_json_is_coco_and_agrees_with_the_panoptic_labels(root):
    run(root)
    assert assert_instances_are_the_panoptic_things(root) == 3
    coco = COCO(root / "ade20k_instance_train.json")
    car = coco.loadAnns(coco.getAnnIds(catIds=[CAR]))
    assert [(a["image_id"], a["area"], a["bbox"], a["iscrowd"]) for a in car] == [("a", 3, [1, 0, 2, 3], 0)]
    np.testing.assert_array_equal(coco.annToMask(car[0]), IDS == 277)


def test_check_names_the_first_missing_file_and_writes_nothing(root, capsys):
    before = tree(root)
    assert run(root, "--check") == 1
    shown = capsys.readouterr().out
    assert f"partly       2 of 20210  {root}/images/training" in shown
    assert f"missing      0 of  2000  {root}/annotations_instance/validation" in shown
    assert f"\n  {root}/images/training/ADE_train_00000001.jpg (and 20209 more): no such file\n" in shown
    assert f"{root}/annotations_instance/validation: no such folder, and so none of its 2000 files" in shown
    assert f"not yet                  {root}/ade20k_instance_train.json" in shown
    assert "annotations_instance.tar" in shown and "ADEChallengeData2016.zip" in shown
    assert tree(root) == before


@pytest.fixture
def complete(root, monkeypatch):
    """`root` as if the whole data set had its two training images and one for validation."""
    names = {"train": ["a", "b"], "val": ["c"]}
    monkeypatch.setattr(ade20k_check, "expected_names", lambda split: names[split.name])
    return root


def test_check_tells_what_is_whole(complete, capsys):
    def checked() -> tuple[int, str]:
        capsys.readouterr()
        return run(complete, "--check", "--splits", "train"), capsys.readouterr().out

    assert checked()[0] == 0  # nothing made yet is no fault
    run(complete, "--splits", "train")
    code, shown = checked()
    assert code == 0 and "not yet" not in shown and "missing" not in shown
    label = complete / "annotations_detectron2/training/b.png"
    label.unlink()
    code, shown = checked()
    assert code == 1 and f"{label}: labels not made, or not of the files that are there now; run" in shown
    run(complete, "--splits", "train")
    (complete / "ade20k_instance_train.json").write_text("{}")
    save(complete / "ade20k_panoptic_train/z.png", IDS)
    code, shown = checked()
    assert code == 1 and f"{complete}/ade20k_panoptic_train/z.png: a label without an image" in shown
    (complete / "ade20k_panoptic_train/z.png").unlink()
    code, shown = checked()
    assert code == 1 and "ade20k_instance_train.json: does not tell of the PNGs that are there" in shown
    (complete / "prepare_ade20k_train.jsonl").unlink()  # as made by another tool
    assert "unknown" in checked()[1]


def many_images(folder: Path, count: int) -> Path:
    """Training images of stripes, some of them things, no two alike."""
    rng = np.random.default_rng(0)
    for number in range(count):
        name = f"ADE_train_{number + 1:08d}.png"
        classes = np.repeat(rng.integers(0, 151, 16), 16)
        things = [THING_CLASSES.index(c - 1) + 1 if c - 1 in THING_CLASSES else 0 for c in classes]
        scene = np.broadcast_to(classes, (256, 256))
        instance_row = np.stack([things, np.repeat(range(1, 17), 16), 0 * classes], 1)
        save(folder / "images/training" / name.replace("png", "jpg"), np.zeros((256, 256, 3)))
        save(folder / "annotations/training" / name, scene)
        instances = np.broadcast_to(instance_row, (256, 256, 3))
        save(folder / "annotations_instance/training" / name, instances)
    return folder


def processes_of(session: int) -> list[int]:
    """The processes, dead ones apart, of a session; its number is that of the process that began it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, its = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:4]
            except OSError:
                continue
            if int(its) == session and state != "Z":
                found.append(int(entry.name))
    return found


def kill_when(command: list[str], ready, whole_group: bool) -> None:
    """Start the tool, kill it -9 as soon as `ready()`, and see that no process of it goes on."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not ready():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        if whole_group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        assert process.wait() == -signal.SIGKILL
        while left := processes_of(process.pid):
            assert time.monotonic() < deadline, left
            time.sleep(0.01)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes under /proc")
def test_a_run_killed_again_and_again_ends_as_an_undisturbed_one(tmp_path):
    count = 120
    source = many_images(tmp_path / "source", count)
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    assert run(source, "--output", undisturbed, "--splits", "train") == 0
    journal = killed / "prepare_ade20k_train.jsonl"

    def lines() -> int:
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    command = [sys.executable, prepare_ade20k.__file__, str(source), "--output", str(killed)]
    command += ["--splits", "train", "--workers", "2"]
    labels = killed / "annotations_detectron2/training"
    moments = [
        (lambda: labels.is_dir() and any(labels.iterdir()), True),  # the first file is being written
        (lambda: lines() >= 10, True),
        (lambda: lines() >= 60, False),  # the workers are left to themselves
        (lambda: lines() == count, True),  # while the JSON files are made
    ]
    kept: dict[str, tuple[int, int]] = {}
    for ready, whole_group in moments:
        kill_when(command, ready, whole_group)
        assert not (killed / "ade20k_panoptic_train.json").exists() or lines() == count
        written = stamps(killed)
        assert {name: written[name] for name in kept} == kept  # what was whole was not made again
        whole_lines = journal.read_bytes().split(b"\n")[:-1]
        done = [json.loads(line)["name"] for line in whole_lines]
        kept = {name: stamp for name, stamp in written.items() if Path(name).stem in done}
        assert len(kept) == 2 * len(done)
    assert len(kept) == 2 * count
    assert run(source, "--output", killed, "--splits", "train") == 0
    assert tree(killed) == tree(undisturbed) and stamps(killed) == kept
    assert assert_instances_are_the_panoptic_things(killed) > 500


def test_the_real_sample(tmp_path):
    source = real_data("ade20k_sample", "ADEChallengeData2016")
    assert run(source, "--output", tmp_path / "made") == 0
    records = load_ade20k_panoptic(tmp_path / "made", "train")
    things = [segment for record in records for segment in record["segments_info"] if segment["isthing"]]
    assert len(records) == 3 and len(things) == 66
    assert assert_instances_are_the_panoptic_things(tmp_path / "made") == 66
    for record in records:
        scene = read_class_map(source / "annotations" / "training" / f"{record['image_id']}.png")
        ids = read_id_map(record["pan_seg_file_name"])
        for segment in record["segments_info"]:
            mask = ids == segment["id"]
            assert mask.sum() == segment["area"] > 0
            assert (scene[mask] == segment["category_id"] + 1).all()  # here the two annotations agree
        assert set(np.unique(ids)) - {0} == {segment["id"] for segment in record["segments_info"]}
