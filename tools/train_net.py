"""Train or evaluate a model.

    python tools/train_net.py --config-file configs/ade20k/maskformer_r50_pisr.yaml --num-gpus 4
    python tools/train_net.py --config-file configs/toy/maskformer_tiny.yaml SOLVER.MAX_ITER 200
    python tools/train_net.py --config-file F --resume
    python tools/train_net.py --config-file F --eval-only MODEL.WEIGHTS output/model_final.pth

Everything goes to OUTPUT_DIR: log.txt, config.yaml, metrics.json (a line every 20 iterations), TensorBoard
events, checkpoints, and inference/DATASET/ with the metrics of each evaluation. Without a GPU it trains on
the CPU.
"""

import argparse
import sys
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

import _path  # noqa: F401  (puts the repository's root on sys.path)
from mask_former.checkpoint import Checkpointer
from mask_former.errors import InputError, run_cli
from mask_former.prediction import build_blank_model
from mask_former.trainer import Trainer
from tools.project import project_config, require_writable


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen configuration of the command line; loggers, seed and output folder are ready."""
    if not args.config_file:
        raise InputError(
            "--config-file is missing; for a first try: --config-file configs/toy/maskformer_tiny.yaml"
        )
    setup_logger(name="tools")
    cfg = project_config(args.config_file, args.opts)
    cfg.freeze()
    require_writable(cfg.OUTPUT_DIR)
    default_setup(cfg, args)
    for package in ("mask_former", "pisr_maskformer"):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=package)
    return cfg


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    """Train, or evaluate with --eval-only; returns the results of the evaluation, if there was one."""
    cfg = setup(args)
    if args.eval_only:
        return evaluate(cfg, args.resume)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def evaluate(cfg: CfgNode, last_checkpoint: bool) -> dict[str, Any]:
    """Results of MODEL.WEIGHTS, or of the last checkpoint in OUTPUT_DIR, on DATASETS.TEST."""
    if not cfg.MODEL.WEIGHTS and not last_checkpoint:
        raise InputError("--eval-only needs weights: add MODEL.WEIGHTS FILE (or --resume for the run's last)")
    model = build_blank_model(cfg)
    checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, complete=True)
    if last_checkpoint and not checkpointer.has_checkpoint():
        raise InputError(
            f"--resume: {cfg.OUTPUT_DIR} holds no checkpoint; set OUTPUT_DIR to the run's folder"
        )
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=last_checkpoint)
    return Trainer.test(cfg, model)


def cli() -> None:
    args = default_argument_parser(epilog=__doc__).parse_args()
    if args.num_gpus > 1 and torch.cuda.device_count() < args.num_gpus:
        raise InputError(
            f"--num-gpus {args.num_gpus}, but {torch.cuda.device_count()} are visible; ask for fewer"
        )
    launch(
        main,
        max(args.num_gpus, 1),
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


if __name__ == "__main__":
    sys.exit(run_cli(cli))
