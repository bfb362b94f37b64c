"""Train or evaluate a model.

    python tools/train_net.py --config-file configs/ade20k/maskformer_r50_pisr.yaml --num-gpus 4
    python tools/train_net.py --config-file configs/toy/maskformer_tiny.yaml SOLVER.MAX_ITER 200
    python tools/train_net.py --config-file F --resume
    python tools/train_net.py --config-file F --eval-only MODEL.WEIGHTS output/model_final.pth
    python tools/train_net.py --config-file F --auto-scale SOLVER.IMS_PER_BATCH 8 SOLVER.ACCUMULATION_STEPS 4

Everything goes to OUTPUT_DIR: log.txt, config.yaml, run.json and provenance/ (what made the run),
metrics.json (a row every LOG.PERIOD iterations), TensorBoard events, checkpoints, and inference/DATASET/ with
the metrics of each evaluation. A run that was stopped, however that was, goes on by --resume. Without a GPU
it trains on the CPU.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, launch
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.logger import setup_logger
from tabulate import tabulate

import _path  # noqa: F401  (puts the repository's root on sys.path)
from mask_former.errors import InputError, run_cli
from mask_former.evaluation.run import evaluate
from mask_former.machine import usable_cores
from mask_former.prediction import build_blank_model
from mask_former.trainer import Trainer
from mask_former.training.checkpointer import Checkpointer
from mask_former.training.lease import Claim, nothing_to_lose, owned
from mask_former.training.process_group import leaving_the_group
from mask_former.training.profiling import ProfileHook
from mask_former.training.scaling import RULES, scale_to_batch
from mask_former.training.stopping import StopRequest
from tools.project import project_config, read_config, require_writable

FREE_PORT = "auto"  # as detectron2's launch() calls it


def parser() -> argparse.ArgumentParser:
    """detectron2's arguments and this tool's own."""
    arguments = default_argument_parser(epilog=__doc__)
    arguments.set_defaults(dist_url=FREE_PORT)  # not one port for all runs of a user
    arguments.add_argument(
        "--num-processes",
        type=int,
        default=0,
        help="processes on this machine (default: --num-gpus); several on a CPU work together by gloo",
    )
    arguments.add_argument(
        "--overwrite", action="store_true", help="start anew where OUTPUT_DIR holds a run: it is deleted"
    )
    arguments.add_argument(
        "--profile",
        action="store_true",
        help="profile three iterations after the first five, into OUTPUT_DIR/profile; the run goes on",
    )
    arguments.add_argument(
        "--auto-scale",
        action="store_true",
        help="scale learning rate and schedule of the config file from its SOLVER.IMS_PER_BATCH to the one "
        "given on the command line; keys given there stay",
    )
    arguments.add_argument(
        "--lr-rule",
        choices=sorted(RULES),
        default="linear",
        help="with --auto-scale: the learning rate follows the batch, or its root (default: %(default)s)",
    )
    return arguments


def configuration(args: argparse.Namespace) -> tuple[CfgNode, str]:
    """The frozen configuration of the command line, and a table of what --auto-scale changed, or ""."""
    if args.overwrite and (args.resume or args.eval_only):
        raise InputError(
            "--overwrite deletes the run that --resume or --eval-only would use; give one of them"
        )
    if args.profile and args.eval_only:
        raise InputError("--profile looks at training, and --eval-only does not train; give one of them")
    if args.num_processes < 0:
        raise InputError(f"--num-processes {args.num_processes}: use at least 1, or 0 for --num-gpus")
    if not args.config_file:
        raise InputError(
            "--config-file is missing; for a first try: --config-file configs/toy/maskformer_tiny.yaml"
        )
    cfg = project_config(args.config_file, args.opts)
    scaled = ""
    if args.auto_scale:
        recipe_batch = read_config(args.config_file).SOLVER.IMS_PER_BATCH
        changes = scale_to_batch(cfg, recipe_batch, args.lr_rule, fixed=set(args.opts[::2]))
        title = (
            f"--auto-scale --lr-rule {args.lr_rule}: batch {recipe_batch} -> {cfg.SOLVER.IMS_PER_BATCH} "
            f"in {cfg.SOLVER.ACCUMULATION_STEPS} micro-batch(es) a process"
        )
        table = tabulate(changes, headers=("key", "recipe", "this run"), disable_numparse=True)
        scaled = f"{title}\n{table if changes else 'nothing to scale'}"
    cfg.freeze()
    return cfg, scaled


def start_log(cfg: CfgNode, args: argparse.Namespace, scaled: str) -> None:
    """Loggers into OUTPUT_DIR, and what this run is."""
    for package in ("detectron2", "fvcore", "mask_former", "pisr_maskformer", "tools"):
        logger = setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=package)
    logger.info("process %d of %d\n%s", comm.get_rank(), comm.get_world_size(), collect_env_info())
    logger.info("command line: %s", args)
    if scaled:
        logger.info("%s", scaled)
    logger.info("configuration:\n%s", cfg.dump())


@leaving_the_group()
def main(args: argparse.Namespace, stop: StopRequest | None = None, claim: Claim | None = None) -> Any:
    """Train, or evaluate with --eval-only; returns the results of the evaluation, if there was one.

    `claim`: of a copy of a scheduler's job. RunStopped when `stop` asked for it and the run is saved.
    The process group that there is, if any, is left in the end.
    """
    cfg, scaled = configuration(args)
    folder = require_writable(cfg.OUTPUT_DIR)
    share_cores(cfg)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not args.eval_only
    with owned(folder, claim) if comm.is_main_process() else nullcontext(nothing_to_lose) as fence:
        comm.synchronize()  # nobody writes before the main process may
        if not args.eval_only:
            prepare_folder(cfg, args)
        start_log(cfg, args, scaled)
        if args.eval_only:
            return evaluate_checkpoint(cfg, args.resume)
        trainer = Trainer(cfg, stop=stop, fence=fence)
        trainer.resume_or_load(resume=args.resume)
        if args.profile and comm.is_main_process():
            trainer.register_hooks([ProfileHook(cfg.OUTPUT_DIR)])
        return trainer.train(overwrite=args.overwrite)


def prepare_folder(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Nothing of an earlier run is mixed with a new one, nor overwritten unless that is asked for.

    (Then Trainer.train deletes it, when all is ready.)
    """
    if not comm.is_main_process():
        return
    checkpointer = Checkpointer(torch.nn.Module(), cfg.OUTPUT_DIR)
    checkpointer.clean()
    if not (args.resume or args.overwrite) and checkpointer.has_checkpoint():
        raise InputError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR} holds a run ({checkpointer.candidates()[0].name}): go on with it "
            "by --resume, delete it by --overwrite, or set another OUTPUT_DIR"
        )


def share_cores(cfg: CfgNode) -> None:
    """Processes that compute on the CPU share its cores, instead of each starting a thread on every one."""
    processes = comm.get_local_size()
    if cfg.MODEL.DEVICE == "cpu" and processes > 1:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), usable_cores() // processes)))


def evaluate_checkpoint(cfg: CfgNode, last_checkpoint: bool) -> Any:
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
    return evaluate(cfg, model)


def cli(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    if args.num_gpus > 1 and torch.cuda.device_count() < args.num_gpus:
        raise InputError(
            f"--num-gpus {args.num_gpus}, but {torch.cuda.device_count()} are visible; ask for fewer"
        )
    if args.num_machines > 1 and args.dist_url == FREE_PORT:
        raise InputError(
            f"--num-machines {args.num_machines} needs --dist-url tcp://HOST:PORT, a free port of the first "
            "machine, the same on all; on Slurm use slurm/launch.py"
        )
    launch(
        main,
        args.num_processes or max(args.num_gpus, 1),
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


if __name__ == "__main__":
    sys.exit(run_cli(cli))
