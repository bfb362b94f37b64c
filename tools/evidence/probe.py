"""One trained PISR model, evaluated three ways: does it use the relations, and does it gain by them?

    python -m tools.evidence.probe --config-file configs/toy/maskformer_tiny_pisr.yaml \
        --weights output/toy_pisr/model_final.pth --output output/toy_pisr/probe

final     as it is
initial   the first prediction of the same model
swapped   the relations come from another image: each gets the encodings of the image before it

`probe.json` in the output folder has the metrics of each, as training has them in metrics.json, and under
"diagnosis" the numbers of tools/evidence/diagnosis.py. `KEY VALUE` pairs at the end change keys of the
configuration.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils.logger import setup_logger
from torch import nn

from mask_former.checkpoint import load_weights
from mask_former.data import build_mapper, dataset_records
from mask_former.errors import InputError, run_cli
from mask_former.evaluation.metrics_file import write_json
from mask_former.evaluation.run import evaluate
from mask_former.prediction import build_blank_model
from pisr_maskformer.encodings import PanopticEncodings
from pisr_maskformer.hosts.maskformer import PISRTransformerPredictor
from tools.evidence.diagnosis import DIAGNOSIS, diagnose
from tools.project import project_config, require_writable

PROBE_FILE = "probe.json"


def predictor_of(model: nn.Module) -> PISRTransformerPredictor:
    """The model's predictor; InputError when it has no PISR, or one that does not look at encodings."""
    found = [module for module in model.modules() if isinstance(module, PISRTransformerPredictor)]
    if not found:
        raise InputError("the model has no PISR: there is one prediction, and nothing to swap; name another")
    return found[0]


@contextmanager
def first_prediction(model: nn.Module) -> Iterator[None]:
    """Inference uses the first prediction."""
    predictor = predictor_of(model)
    before, predictor.infers_final = predictor.infers_final, False
    try:
        yield
    finally:
        predictor.infers_final = before


@contextmanager
def swapped_encodings(model: nn.Module, prime: Callable[[], Any]) -> Iterator[None]:
    """Every forward relates its pixels to the encodings of the forward before; `prime` runs the first one.

    Batches must have one size, as the evaluation's have: one image each.
    """
    kept: list[PanopticEncodings] = []

    def swap(module: nn.Module, given: Any, encoded: PanopticEncodings) -> PanopticEncodings:
        kept.append(encoded)
        return kept.pop(0) if len(kept) > 1 else encoded

    handle = predictor_of(model).pisr.encoder.register_forward_hook(swap)
    try:
        prime()
        yield
    finally:
        handle.remove()


def probe(cfg: CfgNode, model: nn.Module, output: Path) -> dict[str, dict[str, float]]:
    """Flat metrics ("panoptic_seg/PQ") of each way; each evaluation's files go below `output`/WAY."""
    if len(cfg.DATASETS.TEST) != 1:
        raise InputError(f"DATASETS.TEST has {len(cfg.DATASETS.TEST)} data sets; a probe needs one: name it")
    model.eval()
    ways: dict[str, AbstractContextManager[None]] = {
        "final": nullcontext(),
        "initial": first_prediction(model),
    }
    if predictor_of(model).pisr.uses_encodings:

        @torch.no_grad()
        def prime() -> None:
            records = dataset_records(cfg.DATASETS.TEST[0])
            model([build_mapper(cfg, is_train=False)(records[-1])])

        ways["swapped"] = swapped_encodings(model, prime)
    found = {}
    for way, changed in ways.items():
        mine = cfg.clone()
        mine.defrost()
        mine.OUTPUT_DIR = str(output / way)
        with changed:
            found[way] = dict(flatten_results_dict(evaluate(mine, model)))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", required=True, help="the trained model")
    parser.add_argument("--output", required=True, type=Path, help="folder of probe.json and the evaluations")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="keys of the configuration")
    args = parser.parse_args(arguments)
    cfg = project_config(args.config_file, args.opts)
    output = require_writable(args.output)
    for package in ("detectron2", "mask_former", "pisr_maskformer"):
        setup_logger(str(output), name=package)
    model = build_blank_model(cfg)
    predictor = predictor_of(model)
    if not predictor.infers_final:
        raise InputError("MODEL.PISR.INFERENCE_STAGE is 'initial', and a probe wants both; set it to 'final'")
    load_weights(model, args.weights, complete=True)
    # The shorter part first: what fails there loses no evaluation.
    diagnosis = diagnose(cfg, model, predictor)
    found = probe(cfg, model, output)
    write_json({**found, DIAGNOSIS: diagnosis}, output / PROBE_FILE)
    names = [
        name
        for name in ("panoptic_seg/PQ", "sem_seg/mIoU", "segm/AP", "context/accuracy")
        if name in found["final"]
    ]
    print(f"{'':10}" + "".join(f"{name.split('/')[-1]:>10}" for name in names))
    for way, metrics in found.items():
        print(f"{way:10}" + "".join(f"{metrics[name]:10.2f}" for name in names))
    print("".join(f"\n{name:20}{value:10.4f}" for name, value in diagnosis.items()))


if __name__ == "__main__":
    sys.exit(run_cli(main))
