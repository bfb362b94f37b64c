"""Training and evaluation as configured: detectron2's trainer with this project's parts."""

import logging
import math
import os
import time
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer, create_ddp_model, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.solver import LRScheduler
from detectron2.utils import comm
from torch import nn

from mask_former.checkpoint import Checkpointer
from mask_former.data import build_mapper, dataset_records
from mask_former.errors import InputError, is_input_error
from mask_former.evaluation import build_evaluators, write_metrics
from mask_former.optimizer import build_lr_scheduler, build_optimizer

logger = logging.getLogger(__name__)

AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class Trainer(DefaultTrainer):
    """DefaultTrainer with this project's optimiser, schedule, mappers, evaluators and checkpoints."""

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)  # DefaultTrainer's own would build its optimiser step and checkpointer
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self.cfg = cfg
        model = self.build_model(cfg)
        for name in cfg.DATASETS.TEST:  # what evaluation would stumble over at the end stops the run here
            self.build_evaluator(cfg, name)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        self._trainer = build_step(cfg, create_ddp_model(model, broadcast_buffers=False), loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            skip_mismatch=cfg.MODEL.WEIGHTS_SKIP_MISMATCH,
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase]:
        """detectron2's, and the best checkpoint's right after the evaluation it looks at."""
        result: list[HookBase] = super().build_hooks()
        metric = self.cfg.TEST.BEST_METRIC
        if metric and comm.is_main_process():
            after_evaluation = 1 + next(
                i for i, hook in enumerate(result) if isinstance(hook, hooks.EvalHook)
            )
            result.insert(
                after_evaluation, BestCheckpoint(self.cfg.TEST.EVAL_PERIOD, self.checkpointer, metric)
            )
        return result

    def train(self) -> OrderedDict[str, Any] | None:
        """Run to SOLVER.MAX_ITER and return the last evaluation's results, if there was one.

        The loader's worker processes are gone afterwards, whatever happened.
        """
        loop_logger = logging.getLogger("detectron2.engine.train_loop")
        loop_logger.addFilter(not_about_input)
        try:
            super().train()
        finally:
            loop_logger.removeFilter(not_about_input)
            self._trainer._data_loader_iter_obj = None
        return getattr(self, "_last_eval_results", None)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        records = [record for name in cfg.DATASETS.TRAIN for record in dataset_records(name)]
        if not records:
            raise InputError("no training images: DATASETS.TRAIN is empty or its data sets have no images")
        # Its own seed keeps augmentation apart from how many random numbers the model's initialisation took.
        return build_detection_train_loader(
            cfg,
            mapper=build_mapper(cfg, is_train=True),
            dataset=records,
            num_workers=bounded_workers(cfg),
            seed=cfg.SEED + comm.get_rank() if cfg.SEED >= 0 else None,
        )

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return build_detection_test_loader(
            dataset_records(dataset_name),
            mapper=build_mapper(cfg, is_train=False),
            num_workers=bounded_workers(cfg),
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluators(
            cfg, dataset_name, str(evaluation_folder(cfg, dataset_name)), cfg.TEST.KEEP_PREDICTIONS
        )

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None
    ) -> OrderedDict[str, Any]:
        """Evaluate on every data set of DATASETS.TEST; results also go to their folders as metrics.json."""
        if cfg.TEST.AUG.ENABLED:
            logger.warning("TEST.AUG.ENABLED: there is no test-time augmentation here; evaluating without it")
        results = super().test(cfg, model, evaluators)
        if comm.is_main_process():
            for name in cfg.DATASETS.TEST:
                one = results if len(cfg.DATASETS.TEST) == 1 else results[name]
                write_metrics(one, evaluation_folder(cfg, name) / "metrics.json")
        return results


def not_about_input(record: logging.LogRecord) -> bool:
    """False for the traceback that detectron2 logs of bad input, of which the tool tells in one line."""
    return not (record.exc_info and record.exc_info[1] and is_input_error(record.exc_info[1]))


class BestCheckpoint(hooks.BestCheckpointer):
    """model_best.pth holds the model with the highest metric so far, also across a resumed run.

    The checkpoint knows its own metric: the record is taken down before it is saved.
    """

    def state_dict(self) -> dict[str, Any]:
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]

    def _best_checking(self) -> None:
        value, iteration = self.trainer.storage.latest().get(self._val_metric, (math.nan, 0))
        if not math.isfinite(value):
            logger.warning("TEST.BEST_METRIC %s has no value in this evaluation", self._val_metric)
        elif self.best_metric is None or value > self.best_metric:
            self.best_metric, self.best_iter = float(value), iteration
            self._checkpointer.save(self._file_prefix, iteration=iteration)
            logger.info("best %s so far: %.3f; saved as %s.pth", self._val_metric, value, self._file_prefix)


class MixedPrecisionStep(SimpleTrainer):
    """One iteration under autocast, on CPU or GPU; float16 with loss scaling, bfloat16 without."""

    def __init__(
        self, model: nn.Module, loader: Any, optimizer: torch.optim.Optimizer, device: str, dtype: torch.dtype
    ) -> None:
        super().__init__(model, loader, optimizer)
        self.device_type = torch.device(device).type
        self.dtype = dtype
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=dtype == torch.float16)

    def run_step(self) -> None:
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast(self.device_type, dtype=self.dtype):
            losses = self.model(data)
        self.optimizer.zero_grad()
        self.scaler.scale(sum(losses.values())).backward()
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.scaler.step(self.optimizer)  # unscales first, so that clipping sees the true gradients
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.scaler.load_state_dict(state["grad_scaler"])


def build_step(
    cfg: CfgNode, model: nn.Module, loader: Any, optimizer: torch.optim.Optimizer
) -> SimpleTrainer:
    """What one iteration does: plain, or in mixed precision with SOLVER.AMP."""
    if not cfg.SOLVER.AMP.ENABLED:
        return SimpleTrainer(model, loader, optimizer)
    if cfg.SOLVER.AMP.DTYPE not in AMP_DTYPES:
        valid = ", ".join(AMP_DTYPES)
        raise InputError(f"SOLVER.AMP.DTYPE is {cfg.SOLVER.AMP.DTYPE!r}; use one of: {valid}")
    return MixedPrecisionStep(model, loader, optimizer, cfg.MODEL.DEVICE, AMP_DTYPES[cfg.SOLVER.AMP.DTYPE])


def evaluation_folder(cfg: CfgNode, dataset_name: str) -> Path:
    """Where metrics and predictions on a data set go."""
    return Path(cfg.OUTPUT_DIR) / "inference" / dataset_name


def bounded_workers(cfg: CfgNode) -> int:
    """DATALOADER.NUM_WORKERS, but no more than this process's share of the cores it may run on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // comm.get_local_size())
    if share < cfg.DATALOADER.NUM_WORKERS:
        logger.info(
            "%d data-loader workers instead of %d: %d cores", share, cfg.DATALOADER.NUM_WORKERS, cores
        )
    return min(cfg.DATALOADER.NUM_WORKERS, share)
