"""The PISR configurations: what they change, and that every ablation row trains."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from mask_former.config import load_config
from mask_former.optimizer import build_optimizer, learning_rates
from mask_former.training.process_group import leaving_the_group
from pisr_maskformer import PISRSettings, add_pisr_config
from pisr_maskformer.hosts.maskformer import PISRTransformerPredictor, TwoStageSetCriterion
from tests.tiny import resnet, tiny_model
from tests.tiny_pisr import CONFIGS, batch, overrides, tiny_pisr

ROWS = sorted((CONFIGS / "ablations").glob("*.yaml"))
COMPLETE = sorted(
    path
    for path in CONFIGS.rglob("*.yaml")
    if path.name != "base.yaml" and path.parent.name != "backbones"  # parts that others name in _BASE_
)
PISR = {
    "MODEL.MASK_FORMER.PREDICTOR_NAME": "PISRTransformerPredictor",
    "MODEL.MASK_FORMER.CRITERION_NAME": "TwoStageSetCriterion",
}


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_every_ablation_row_trains(path):
    """A step in which every parameter has a part: what DDP asks for without find_unused_parameters."""
    model = tiny_pisr(path=path)
    losses = model(batch())
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("path", COMPLETE, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_configuration_builds_the_model_that_it_names(path):
    """Every part of it but its size and its backbone's kind, which may need a file of weights."""
    cfg = load_config(path, extend=[add_pisr_config])
    changes = resnet(18)
    if cfg.DATASETS.TRAIN[0].startswith("ade20k"):  # its classes are known without its files
        changes |= {f"DATASETS.{use}": cfg.DATASETS[use] for use in ("TRAIN", "TEST")}
        changes["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] = 150
        assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 150
    model = tiny_pisr(changes, path=path)
    predictor = model.sem_seg_head.predictor
    has_pisr = path.parent.name == "ablations" and path.stem != "baseline" or "_pisr" in path.stem
    assert isinstance(predictor, PISRTransformerPredictor) == has_pisr
    assert isinstance(model.criterion, TwoStageSetCriterion) == has_pisr
    assert predictor.class_embed.out_features == model.criterion.num_classes + 1
    if has_pisr:
        assert predictor.pisr.encoder.num_instances == cfg.MODEL.PISR.NUM_INSTANCES
        assert model.criterion.two_stage.gamma == cfg.MODEL.PISR.INITIAL_LOSS_WEIGHT
        pisr = cfg.MODEL.PISR
        assert predictor.pisr.uses_encodings == (pisr.RELATION == "attention" and pisr.FEEDBACK != "none")


def test_every_file_is_among_the_complete_ones_or_a_part_of_them():
    parts = {path.name for path in set(CONFIGS.rglob("*.yaml")) - set(COMPLETE)}
    assert parts == {"base.yaml", "lite0.yaml"}
    assert sum("_pisr" in path.stem for path in COMPLETE) == 8


def test_pisrs_own_parameters_may_learn_faster():
    changes = {"SOLVER.BASE_LR": 0.01, "SOLVER.BACKBONE_MULTIPLIER": 0.5, "SOLVER.PISR_MULTIPLIER": 3.0}
    model = tiny_pisr(path=CONFIGS / "toy" / "maskformer_tiny_pisr.yaml")
    cfg = load_config(CONFIGS / "toy" / "maskformer_tiny_pisr.yaml", extend=[add_pisr_config])
    cfg.merge_from_list(overrides(changes))
    optimizer = build_optimizer(cfg, model)
    expected = {"lr": 0.01, "lr_backbone": 0.005, "lr_pisr": 0.03}
    assert learning_rates(optimizer) == pytest.approx(expected)
    fast = {id(p) for group in optimizer.param_groups if group["part"] == "pisr" for p in group["params"]}
    assert fast == {id(p) for p in model.sem_seg_head.predictor.pisr.parameters()}


def test_a_rate_for_a_part_that_is_not_there_is_told(caplog):
    cfg = load_config(CONFIGS / "toy" / "maskformer_tiny.yaml", extend=[add_pisr_config])
    cfg.merge_from_list(overrides({"SOLVER.PISR_MULTIPLIER": 3.0}))
    optimizer = build_optimizer(cfg, tiny_model())
    assert "SOLVER.PISR_MULTIPLIER has no effect" in caplog.text
    assert {group["part"] for group in optimizer.param_groups} == {"head", "backbone"}


@leaving_the_group()
def train_in_parallel(rank, meeting_place):
    """One of two processes: two steps of DDP on an image of its own; process 0's has no ground truth."""
    torch.distributed.init_process_group("gloo", init_method=meeting_place, rank=rank, world_size=2)
    for row in ("b1_explicit_2", "b3_gamma_0.0", "control_constant", "control_no_feedback"):
        model = tiny_pisr(path=CONFIGS / "ablations" / f"{row}.yaml")
        parallel = DistributedDataParallel(model)
        for _ in range(2):  # DDP refuses the second step if a parameter had no part in the first
            model.zero_grad(set_to_none=True)
            sum(parallel(batch()[rank : rank + 1]).values()).backward()
        sizes = torch.stack([parameter.grad.norm() for parameter in model.parameters()])
        both = [torch.zeros_like(sizes) for _ in range(2)]
        torch.distributed.all_gather(both, sizes)
        assert torch.equal(both[0], both[1]) and sizes.isfinite().all() and sizes.any()


@pytest.mark.slow
def test_two_processes_train_without_find_unused_parameters(tmp_path):
    torch.multiprocessing.spawn(train_in_parallel, (f"file://{tmp_path}/meet",), nprocs=2)


def test_ablation_rows_are_those_of_the_tables_and_short():
    names = {path.stem for path in ROWS}
    assert names >= {"baseline", "b1_explicit_2", "b1_explicit_4", "b1_implicit_2", "b1_separate_2"}
    assert names >= {"b2_cosine_matmul", "b2_matmul_cosine", "b2_l2_l2", "b2_matmul_l2", "b2_matmul_matmul"}
    assert names >= {f"b3_gamma_{gamma}" for gamma in (0.0, 0.2, 0.5, 0.8)}
    assert all(3 <= len(path.read_text().splitlines()) <= 6 for path in ROWS)


@pytest.mark.parametrize("name", ["r50_pisr", "r101_pisr", "r50_pisr_lr1e-4", "r101_pisr_lr1e-4"])
def test_pisr_configurations_differ_from_their_baselines_in_pisr_alone(name):
    def load(stem):
        return load_config(CONFIGS / "ade20k" / f"maskformer_{stem}.yaml", extend=[add_pisr_config])

    pisr, baseline = load(name), load(name.replace("_pisr", ""))
    assert pisr.OUTPUT_DIR != baseline.OUTPUT_DIR
    baseline.merge_from_list(overrides(PISR | {"OUTPUT_DIR": pisr.OUTPUT_DIR}))
    assert pisr == baseline
    assert pisr.MODEL.PISR.NUM_INSTANCES == PISRSettings().num_instances == 50
