"""Training as configured: detectron2's loop with this project's data, step, log, checkpoints and evaluation.

A run can be stopped at any moment and goes on by `resume`: from the last whole checkpoint it computes the
same losses on the same images as if it had not been stopped (bit for bit where kernels are deterministic).
"""

import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import verify_results
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import nn

from mask_former.atomic_write import replace_file
from mask_former.data import build_mapper, dataset_records
from mask_former.data.batch_check import check_samples
from mask_former.data.loader import bounded_workers, build_training_loader
from mask_former.errors import InputError, is_input_error
from mask_former.evaluation import build_evaluators
from mask_former.evaluation.run import evaluate, evaluation_folder
from mask_former.optimizer import build_clipping, build_lr_scheduler, build_optimizer, learning_rates
from mask_former.random_state import random_state, set_random_state
from mask_former.training.acceleration import accelerate
from mask_former.training.checkpointer import BEST, Checkpointer
from mask_former.training.divergence import DivergenceGuard
from mask_former.training.faults import disk_full, shut_down, worker_killed
from mask_former.training.hooks import CheckpointHook, EvaluationHook
from mask_former.training.lease import nothing_to_lose
from mask_former.training.log import TrainingLog, peak_memory_mb
from mask_former.training.provenance import data_checksum
from mask_former.training.run_folder import record_start, remove_records, warn_of_changes
from mask_former.training.step import (
    StepResult,
    TrainingStep,
    amp_dtype,
    batch_norms,
    distribute,
)
from mask_former.training.stopping import StopRequest
from mask_former.training.writers import build_writers

logger = logging.getLogger(__name__)

CHECKED_ITERATIONS = 10  # of every start: their batches are looked through on the CPU


class Trainer(TrainerBase):
    """Builds everything from a configuration; then `resume_or_load`, then `train`.

    `model`: the network itself. The run's folder belongs to this process (training.run_lock), or to the main
    one of several, which calls `fence` before it writes (training.lease).
    """

    def __init__(
        self, cfg: CfgNode, *, stop: StopRequest | None = None, fence: Callable[[], None] = nothing_to_lose
    ) -> None:
        super().__init__()
        self.cfg = cfg
        self.stop = stop or StopRequest()
        self.stopping = False  # some process was asked to stop, as of the last step
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        seed_all_rng(self.seed + comm.get_rank())
        self.model: nn.Module = build_model(cfg)
        accelerate(cfg, self.model)
        logger.info("model:\n%s", self.model)
        for name in cfg.DATASETS.TEST:  # what evaluation would stumble over at the end stops the run here
            build_evaluators(cfg, name, str(evaluation_folder(cfg, name)))
        records = {name: dataset_records(name) for name in cfg.DATASETS.TRAIN}
        self.records = [record for one in records.values() for record in one]
        if not self.records:
            raise InputError("no training images: DATASETS.TRAIN is empty or its data sets have no images")
        self.data_checksum = data_checksum(records)
        optimizer = build_optimizer(cfg, self.model)
        self.step = TrainingStep(
            distribute(self.model),
            optimizer,
            build_clipping(cfg),
            amp_dtype=amp_dtype(cfg),
            guard=DivergenceGuard(cfg.OUTPUT_DIR),
            stop=self.stop,
        )
        self.scheduler = build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(
            self.model,
            cfg.OUTPUT_DIR,
            skip_mismatch=cfg.MODEL.WEIGHTS_SKIP_MISMATCH,
            keep=cfg.SOLVER.KEEP_CHECKPOINTS,
            fence=fence,
        )
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.samples_seen = 0
        self.log = TrainingLog(cfg.LOG.PERIOD, self.max_iter, fence=fence)
        self.evaluation: EvaluationHook | None = None
        self.batches: Any = None  # endless iterator of micro-batches, while training

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on with the run in OUTPUT_DIR; without `resume` or a checkpoint, start at MODEL.WEIGHTS."""
        newest = comm.all_gather(self._newest_checkpoint() if resume else "")[0]
        if newest:
            self._load_run(self.checkpointer.load(newest), newest)
        else:
            self.checkpointer.load(self.cfg.MODEL.WEIGHTS, checkpointables=[])

    def _newest_checkpoint(self) -> str:
        return self.checkpointer.get_checkpoint_file() if comm.is_main_process() else ""

    def train(  # type: ignore[override]  # knows where to start
        self, overwrite: bool = False
    ) -> Mapping[str, Any] | None:
        """Run to SOLVER.MAX_ITER; returns the last evaluation's results (main process), if there was one.

        With `overwrite`, a run that OUTPUT_DIR holds is deleted now that this one can start.
        InputError when the data, a loader's worker, the disk or divergence stops it, RunStopped when that was
        asked for. The loader's worker processes are gone afterwards, whatever happened.
        """
        if self.start_iter >= self.max_iter:
            logger.info("iteration %d is reached already: nothing to train", self.max_iter)
        self._begin(overwrite)
        loop_logger = logging.getLogger("detectron2.engine.train_loop")
        loop_logger.addFilter(self._is_worth_a_traceback)
        try:
            super().train(self.start_iter, self.max_iter)
        except (RuntimeError, OSError, EOFError) as error:
            said = self._explain(error)
            if said is None:
                raise
            raise said from error
        finally:
            loop_logger.removeFilter(self._is_worth_a_traceback)
            shut_down(self.batches)
            self.batches = None
            self.log.close()
        results = self.evaluation.results if self.evaluation else {}
        if results and self.cfg.TEST.EXPECTED_RESULTS:
            verify_results(self.cfg, results)
        return results or None

    def _explain(self, error: BaseException) -> InputError | None:
        """What stopped the run, in one line, when it is the machine's fault; None for anything else."""
        return worker_killed(error, self.batches, self.iter) or disk_full(error, self.cfg.OUTPUT_DIR)

    def _is_worth_a_traceback(self, record: logging.LogRecord) -> bool:
        """False for detectron2's record of what the tool tells in one line."""
        error = record.exc_info[1] if record.exc_info else None
        return error is None or not (is_input_error(error) or self._explain(error))

    def _begin(self, overwrite: bool) -> None:
        """What needs to know where the run starts: its data, record, log and hooks."""
        cfg = self.cfg
        self.model.train()
        parts = cfg.SOLVER.ACCUMULATION_STEPS * comm.get_world_size()
        if parts > 1 and any(norm.training for norm in batch_norms(self.model)):
            logger.warning(
                "batch norms that are not frozen see one micro-batch of one process at a time: losses are "
                "not quite those of the whole batch; freeze them, or use GN"
            )
        loader = build_training_loader(
            self.records,
            build_mapper(cfg, is_train=True),
            seed=self.seed,
            batch_size=cfg.SOLVER.IMS_PER_BATCH,
            micro_batches=cfg.SOLVER.ACCUMULATION_STEPS,
            start=self.samples_seen,
            num_workers=bounded_workers(cfg),
            group_by_aspect_ratio=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        )
        if comm.is_main_process():
            if overwrite:
                self.checkpointer.remove_all()
                remove_records(cfg.OUTPUT_DIR)
            with replace_file(Path(cfg.OUTPUT_DIR) / "config.yaml") as file:
                file.write(cfg.dump().encode())
            self.log.writers = build_writers(cfg, self.start_iter)
            record_start(
                cfg.OUTPUT_DIR,
                cfg,
                seed=self.seed,
                world_size=comm.get_world_size(),
                start_iteration=self.start_iter,
                samples_seen=self.samples_seen,
                data_checksum=self.data_checksum,
                command=sys.argv,
            )
            if self.start_iter:
                warn_of_changes(cfg.OUTPUT_DIR)
        self.batches = iter(loader)
        self.build_hooks()

    def build_hooks(self) -> None:
        """The checkpoint of an iteration, after its row in the log (so that no row is ever missing) and
        before its evaluation (which may fail).
        """
        cfg = self.cfg
        if cfg.TEST.PRECISE_BN.ENABLED:
            logger.warning("TEST.PRECISE_BN.ENABLED: batch norms keep their running statistics here")
        evaluation_period = cfg.TEST.EVAL_PERIOD if cfg.DATASETS.TEST else 0
        self.register_hooks([CheckpointHook(cfg.SOLVER.CHECKPOINT_PERIOD, self.save, evaluation_period)])
        if cfg.DATASETS.TEST:
            self.evaluation = EvaluationHook(
                cfg.TEST.EVAL_PERIOD,
                lambda: evaluate(cfg, self.model),
                best_metric=cfg.TEST.BEST_METRIC,
                save_best=self.save_best,
                log=self.log,
                stop=self.stop,
            )
            self.register_hooks([self.evaluation])

    def run_step(self) -> None:
        start = time.perf_counter()
        batch = [next(self.batches) for _ in range(self.cfg.SOLVER.ACCUMULATION_STEPS)]
        data_time = time.perf_counter() - start
        if self.iter - self.start_iter < CHECKED_ITERATIONS:
            for samples in batch:
                check_samples(samples, self.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
        rates = learning_rates(self.step.optimizer)
        with EventStorage(self.iter) as storage:  # of this step: what the model itself puts into the log
            result = self.step(self.iter, batch)
        self.stopping = result.stop
        self.scheduler.step()
        self.samples_seen += self.cfg.SOLVER.IMS_PER_BATCH
        numbers = step_numbers(result) | rates | {"data_time": data_time, "memory_mb": peak_memory_mb()}
        numbers["time"] = time.perf_counter() - start
        self.log.add(self.iter, numbers, self._latest(batch, result, storage))

    def _latest(
        self, batch: list[list[dict[str, Any]]], result: StepResult, storage: EventStorage
    ) -> dict[str, Any]:
        """What a row tells of its own iteration alone: images, the model's own numbers, steps left out."""
        if not self.log.is_due(self.iter):
            return {}
        images = comm.gather([sample["image_id"] for samples in batch for sample in samples])
        own = result.statistics | {name: float(value) for name, (value, _) in storage.latest().items()}
        if self.step.scaler.is_enabled():
            own["loss_scale"] = self.step.scaler.get_scale()
        skipped = self.step.guard.total
        return {**own, "skipped_steps": skipped, "image_ids": [image for one in images for image in one]}

    def save(self, name: str) -> None:
        """Write a checkpoint of this moment; all processes call it together."""
        mine = {"random": random_state(), "window": self.log.window.state_dict()}
        processes = comm.gather(mine)
        if comm.is_main_process():
            self.log.sync()
            self.checkpointer.save(
                name,
                iteration=self.iter,
                **self.step.state_dict(),
                scheduler=self.scheduler.state_dict(),
                data={"samples_seen": self.samples_seen, "seed": self.seed, "checksum": self.data_checksum},
                processes=processes,
            )

    def save_best(self, iteration: int, best: dict[str, Any]) -> None:
        """Write the model, and what makes it the best; for the main process."""
        self.checkpointer.save(BEST, iteration=iteration, best=best)

    def _load_run(self, content: dict[str, Any], path: str) -> None:
        """Take up a run where `save` left it; learning rates and decays are the configuration's."""
        try:
            self.iter = content["iteration"]
            self.start_iter = self.iter + 1
            self.samples_seen, self.seed = content["data"]["samples_seen"], content["data"]["seed"]
            self.step.load_state_dict(content)
            processes = content["processes"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} does not hold a run with SOLVER.OPTIMIZER {self.cfg.SOLVER.OPTIMIZER} and these "
                f"parameters ({' '.join(str(error).split())}); to start from its weights alone, set "
                "MODEL.WEIGHTS to it and OUTPUT_DIR to another folder"
            ) from error
        if self.cfg.SEED not in (self.seed, -1):
            logger.warning("the run goes on with its seed %d, not SEED %d", self.seed, self.cfg.SEED)
        self.scheduler.last_epoch = min(self.start_iter, self.max_iter)
        rates = self.scheduler.get_lr()
        for group, rate in zip(self.step.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        if len(processes) != comm.get_world_size():
            logger.warning(
                "the run was saved by %d processes and goes on with %d: dropout draws other numbers",
                len(processes),
                comm.get_world_size(),
            )
            seed_all_rng(self.seed + comm.get_rank() + self.start_iter)
            return
        mine = processes[comm.get_rank()]
        set_random_state(mine["random"])
        self.log.window.load_state_dict(mine["window"])


def step_numbers(result: StepResult) -> dict[str, float]:
    """A step's losses, their total, gradient norm and number of targets under their names in the log."""
    return {
        "total_loss": sum(result.losses.values()),
        **result.losses,
        "gradient_norm": result.gradient_norm,
        "targets": float(result.num_targets),
    }
