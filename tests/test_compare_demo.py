"""The demo ends with the page: its commands are ones that the tools take."""

from pathlib import Path

import pytest

from tools import compare, demo, visualize


@pytest.fixture
def commands(monkeypatch):
    """What the demo would run, instead of running it."""
    given = []
    monkeypatch.setattr(demo, "step", lambda command, log, environment: given.append(command))
    return given


def test_the_demo_compares_its_models_and_looks_inside(commands, tmp_path):
    old = tmp_path / demo.COMPARISON / "index.html"
    old.parent.mkdir()
    old.touch()
    demo.compare(tmp_path, {}, tmp_path / "datasets")
    first, second = commands
    assert not old.exists(), "models of an earlier demo are not compared again"

    args = compare.parse_arguments(first[1:])
    assert args.input == "toy_val" and Path(args.output) == tmp_path / demo.COMPARISON
    for side, model in zip((args.baseline, args.pisr), demo.MODELS, strict=True):
        assert side == [model.config, str(tmp_path / model.name / "model_final.pth")]
    args = visualize.parse_arguments(second[1:])
    assert args.command == "encodings" and args.config_file == demo.MODELS[1].config
    assert not (tmp_path / "datasets").is_relative_to(args.output), "what lies below the output is no input"


def test_the_report_names_the_page(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "results", lambda folder: {"PQ": 1.0, "mIoU": 2.0, "mask AP": 3.0})
    demo.report(tmp_path, 1.0)
    assert f"{tmp_path}/{demo.COMPARISON}/index.html" in capsys.readouterr().out
