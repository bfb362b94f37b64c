"""What happens between two steps: checkpoints and evaluation. Order matters: see `Trainer.build_hooks`."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from mask_former.random_state import same_random_state
from mask_former.training.checkpointer import BEST, FINAL
from mask_former.training.log import TrainingLog
from mask_former.training.stopping import RunStopped, StopRequest

logger = logging.getLogger(__name__)

EVALUATED = "evaluated"  # in a row: it holds an evaluation's results, of this many kinds
EVALUATION_TIME = "evaluation_time"  # beside them: the seconds that it took


class CheckpointHook(HookBase):
    """A checkpoint every `period` iterations (0: none), before each evaluation and after the last iteration;
    and where the run is asked to stop, which it does then. All processes take part.
    """

    def __init__(self, period: int, save: Callable[[str], None], evaluation_period: int = 0) -> None:
        """`save` writes the checkpoint of this name."""
        self.periods = [each for each in (period, evaluation_period) if each > 0]
        self.save = save

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter:
            self.save(FINAL)
        elif self.trainer.stopping or any(done % period == 0 for period in self.periods):
            self.save(f"model_{self.trainer.iter:07d}")
        if self.trainer.stopping:
            comm.synchronize()  # nobody leaves before the main process has written
            raise RunStopped(self.trainer.iter, agreed=True)


class EvaluationHook(HookBase):
    """Evaluation every `period` iterations (0: none) and at the end; model_best.pth keeps the best model.

    What has been evaluated, and which was best, is read from the log's rows: a row is written when its
    evaluation is over. So a run that was killed in one, and resumes from the checkpoint before it, evaluates
    first. Evaluation draws no random number that training would draw.
    """

    def __init__(
        self,
        period: int,
        evaluate: Callable[[], Mapping[str, Any]],
        *,
        best_metric: str,
        save_best: Callable[[int, dict[str, Any]], None],
        log: TrainingLog,
        stop: StopRequest,
    ) -> None:
        """`evaluate` returns results in the main process. `best_metric`: "" keeps no best model.

        `save_best`, called in the main process, gets the iteration and {"metric", "value"}.
        """
        self.period = period
        self.evaluate = evaluate
        self.best_metric = best_metric
        self.save_best = save_best
        self.log = log
        self.stop = stop
        self.results: Mapping[str, Any] = {}
        self.best = -math.inf

    def before_train(self) -> None:
        last = self.trainer.start_iter - 1
        rows = [row for row in self.log.rows_on_file() if EVALUATED in row]
        values = [row.get(self.best_metric) for row in rows]
        self.best = max([value for value in values if value is not None], default=-math.inf)
        is_missing = self._is_due(last) and not any(row["iteration"] == last for row in rows)
        if last >= 0 and comm.all_gather(is_missing)[0]:  # the main process has the rows
            logger.info("the evaluation of iteration %d comes first: the run was stopped in it", last)
            self._evaluate(last)

    def after_step(self) -> None:
        if self._is_due(self.trainer.iter):
            self._evaluate(self.trainer.iter)

    def _is_due(self, iteration: int) -> bool:
        done = iteration + 1
        return (self.period > 0 and done % self.period == 0) or done >= self.trainer.max_iter

    def _evaluate(self, iteration: int) -> None:
        start = time.perf_counter()
        with same_random_state(), self.stop.may_interrupt(iteration):
            self.results = self.evaluate()
        seconds = time.perf_counter() - start
        if comm.is_main_process():
            numbers = flatten_results_dict(self.results)
            if self.best_metric:
                self._keep_best(iteration, numbers)
            self.log.write(iteration, {**numbers, EVALUATED: len(self.results), EVALUATION_TIME: seconds})
        comm.synchronize()

    def _keep_best(self, iteration: int, numbers: Mapping[str, Any]) -> None:
        value = numbers.get(self.best_metric)
        if value is None or not math.isfinite(value):
            logger.warning("TEST.BEST_METRIC %s has no value in this evaluation", self.best_metric)
        elif value > self.best:
            self.best = float(value)
            self.save_best(iteration, {"metric": self.best_metric, "value": self.best})
            logger.info("best %s so far: %.3f, in %s.pth", self.best_metric, self.best, BEST)
