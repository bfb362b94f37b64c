"""Configuration files: the official form, inheritance, no code, one line for a file that cannot be used."""

from pathlib import Path

import pytest

from mask_former.config import load_config
from mask_former.errors import InputError

ADE20K = Path(__file__).parents[1] / "configs" / "ade20k"

# In the form official files have: sizes as an expression, tuples as strings.
OFFICIAL_STYLE = """\
_BASE_: Base.yaml
INPUT:
  MIN_SIZE_TRAIN: !!python/object/apply:eval ["[int(x * 0.1 * {size}) for x in range(5, 21)]"]
  CROP:
    SIZE: ({size}, {size})
DATASETS:
  TRAIN: ("ade20k_{task}_train",)
  TEST: ("ade20k_{task}_val",)
"""

CODE = [
    '!!python/object/apply:os.system ["touch {sentinel}"]',
    "!!python/object/apply:eval [\"open('{sentinel}', 'w')\"]",
    "!!python/object/apply:eval [\"[open('{sentinel}', 'w') for x in range(1, 2)]\"]",
    "!!python/object/apply:eval [\"[int(x * 0.1 * 640) for x in range(5, 21)] + [open('{sentinel}', 'w')]\"]",
    '!!python/object/apply:eval ["[int(x * 0.1 * 640) for x in range(5, 21)]", {{}}]',
    '!!python/object/apply:eval [["[int(x * 0.1 * 640) for x in range(5, 21)]"]]',
    '!!python/object/apply:exec ["[int(x * 0.1 * 640) for x in range(5, 21)]"]',
    "!!python/object/apply:eval [!!python/object/apply:open ['{sentinel}', 'w']]",
    "[320, !!python/object/new:os.system ['touch {sentinel}']]",
    "!!python/name:os.system",
    "!!python/tuple [320, 640]",
]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path, overrides: tuple[str, ...] = ()) -> str:
    """The message of the InputError, which is one line of a readable length."""
    with pytest.raises(InputError) as error:
        load_config(path, overrides)
    message = str(error.value)
    assert "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize(
    ("task", "size", "ours"),
    [("panoptic", 640, "maskformer_r50_lr1e-4.yaml"), ("sem_seg", 512, "maskformer_r50_semantic.yaml")],
)
def test_official_form_gives_our_numbers(tmp_path: Path, task: str, size: int, ours: str) -> None:
    write(tmp_path / "Base.yaml", "SOLVER:\n  BASE_LR: 0.0001\n")
    official = load_config(write(tmp_path / "official.yaml", OFFICIAL_STYLE.format(size=size, task=task)))
    expected = load_config(ADE20K / ours)
    for section, key in (
        ("INPUT", "MIN_SIZE_TRAIN"),
        ("DATASETS", "TRAIN"),
        ("DATASETS", "TEST"),
        ("SOLVER", "BASE_LR"),
    ):
        assert official[section][key] == expected[section][key]
    assert list(official.INPUT.CROP.SIZE) == list(expected.INPUT.CROP.SIZE)


@pytest.mark.parametrize("value", CODE)
def test_code_is_refused_and_not_executed(tmp_path: Path, value: str) -> None:
    sentinel = tmp_path / "executed"
    text = f"INPUT:\n  MIN_SIZE_TRAIN: {value.format(sentinel=sentinel)}\n"
    assert "bad.yaml, line 2" in refused(write(tmp_path / "bad.yaml", text))
    assert not sentinel.exists()


def test_later_bases_and_the_file_itself_win(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "SEED: 1\nSOLVER: {MAX_ITER: 10, BASE_LR: 0.5}\n")
    write(tmp_path / "b.yaml", "SEED: 2\nSOLVER: {MAX_ITER: 20}\n")
    cfg = load_config(write(tmp_path / "c.yaml", "_BASE_: [a.yaml, b.yaml]\nSEED: 3\n"))
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (3, 20, 0.5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "MODEL: {MASK_FORMER: {NUM_QUERIES: 5}}",
            "MODEL.MASK_FORMER.NUM_QUERIES; did you mean MODEL.MASK_FORMER.NUM_",
        ),
        ("NUM_OBJECT_QUERIES: 5", "did you mean MODEL.MASK_FORMER.NUM_OBJECT_QUERIES?"),
        ("SEED: {A: 1}", "SEED"),
        ("SEED: abc", "SEED"),
        ("MODEL: 5", "MODEL"),
        ("SOLVER: {BASE_LR: 1}", "20.0"),
        ("OUTPUT_DIR: 2020-12-12", "OUTPUT_DIR"),
        ("OUTPUT_DIR: 2020-13-45", "month"),
        ("SEED: !!int x", "invalid literal"),
        ("SEED: [1", "line 2"),
        ("SEED: 1\nSEED: 2", "line 2: not a configuration we can read: the key SEED stands twice"),
        ("- 1", "must be a mapping of keys, found list"),
        ("", "must be a mapping of keys, found NoneType"),
        ("_BASE_: bad.yaml", "leads back to the file itself"),
        ("_BASE_: gone.yaml", "gone.yaml: No such file or directory; check the path"),
        ("_BASE_: 5", "must be a path or a list of paths, found 5"),
        ("_BASE_: [1]", "must be a path or a list of paths, found [1]"),
        ("SEED: &a [*a]", "SEED"),
        ("MODEL: &a {META_ARCHITECTURE: *a}", "recursion"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path / "bad.yaml", text + "\n")
    message = refused(path)
    assert says in message and str(tmp_path) in message


def test_two_files_that_are_each_others_base(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "_BASE_: b.yaml\n")
    write(tmp_path / "b.yaml", "_BASE_: a.yaml\n")
    assert "leads back" in refused(tmp_path / "a.yaml")


def test_a_file_that_is_missing_a_folder_or_not_text(tmp_path: Path) -> None:
    assert "No such file or directory; check the path" in refused(tmp_path / "gone.yaml")
    assert "Is a directory" in refused(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"SEED: \xff\n")
    assert "utf-8" in refused(tmp_path / "latin.yaml")
