"""One optimiser step: a batch in micro-batches, in mixed precision if asked for, its gradients clipped.

On a GPU the host waits for the device once a step, for the numbers of the log and whether they are finite;
what else waits is the model's (its matching, once a micro-batch).

Losses that are not finite change nothing: such a step is left out, in all processes alike, and
`divergence.DivergenceGuard` decides when there were too many.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mask_former.errors import InputError
from mask_former.optimizer import Clipping
from mask_former.training.divergence import DivergenceGuard
from mask_former.training.stopping import StopRequest

Samples = list[dict[str, Any]]
AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class StepResult(NamedTuple):
    """Numbers of one step, of this process's share of the batch."""

    losses: dict[str, float]  # weighted, by name; their mean over processes is the batch's
    gradient_norm: float  # before clipping; the same in all processes
    statistics: dict[str, float]  # what the criterion tells of itself, of the last micro-batch
    num_targets: int
    skipped: bool  # not finite somewhere: no parameter changed
    stop: bool  # some process was asked to stop: the same in all processes


class TrainingStep:
    """Gradients of a batch, added up over its micro-batches and averaged over processes, then one update.

    With loss totals (`loss_totals` of the model) the result is that of the whole batch at once.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip: Clipping,
        *,
        amp_dtype: torch.dtype | None = None,
        guard: DivergenceGuard | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        """`model`: wrapped in DistributedDataParallel where there are several processes.

        `amp_dtype`: None without autocast.
        """
        self.model = model
        self.network: Any = model.module if isinstance(model, DistributedDataParallel) else model
        self.optimizer = optimizer
        self.clip = clip
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        self.amp_dtype = amp_dtype
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp_dtype == torch.float16)
        self.one = torch.ones((), device=self.device)
        self.batch_norms = batch_norms(self.network)
        self.guard = guard or DivergenceGuard()
        self.stop = stop or StopRequest()
        self.guard.watch(self.network)

    def __call__(self, iteration: int, batch: Sequence[Samples]) -> StepResult:
        """One step on the micro-batches of this process.

        Raises InputError when the guard has seen too many steps in a row that were not finite.
        """
        self.guard.begin()
        before = [buffer.clone() for buffer in self._norm_statistics()]
        self.optimizer.zero_grad(set_to_none=True)
        totals = self.network.loss_totals([sample for samples in batch for sample in samples])
        parts = []
        for number, samples in enumerate(batch):
            self.guard.costs.micro_batch = number
            parts.append(self._backward(samples, totals, is_last=number == len(batch) - 1))
        self.scaler.unscale_(self.optimizer)
        norm = self.clip.norm(self.parameters)
        losses, statistics, gradient_norm, finite, stop = self._judge(parts, norm)
        if math.isfinite(gradient_norm):
            self.clip(self.parameters, norm)
        if finite:
            self.scaler.step(self.optimizer)  # with float16 it leaves out overflows, which are no divergence
        self.scaler.update()
        if not finite:
            self._restore(before)
        self.guard.judge(iteration, batch, parts, gradient_norm, self.network, finite)
        num_targets = sum(len(sample["instances"]) for samples in batch for sample in samples)
        return StepResult(losses, gradient_norm, statistics, num_targets, skipped=not finite, stop=stop)

    def _norm_statistics(self) -> list[Tensor]:
        """What batch norms that are not frozen keep of the batches they see."""
        return [buffer for norm in self.batch_norms if norm.training for buffer in norm.buffers()]

    def _restore(self, before: Sequence[Tensor]) -> None:
        """Forget a batch that was not finite: a mean that is NaN once stays it for ever."""
        for buffer, value in zip(self._norm_statistics(), before, strict=True):
            buffer.copy_(value)

    def _backward(self, samples: Samples, totals: Any, is_last: bool) -> dict[str, Tensor]:
        """Add one micro-batch's gradients; returns its losses. Processes exchange gradients at the last."""
        exchange: AbstractContextManager[Any] = nullcontext()
        if isinstance(self.model, DistributedDataParallel) and not is_last:
            exchange = self.model.no_sync()
        with exchange:
            with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
                losses = self.model(samples, totals)
            total = torch.stack(list(losses.values())).sum()
            self.scaler.scale(total).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _judge(
        self, parts: Sequence[dict[str, Tensor]], norm: Tensor
    ) -> tuple[dict[str, float], dict[str, float], float, bool, bool]:
        """The micro-batches' losses added up, the criterion's statistics, the norm, whether all is finite in
        every process, and whether one of them was asked to stop.

        All numbers come from the device in one copy.
        """
        names = list(parts[0])
        sums = torch.stack([torch.stack([part[name].float() for name in names]) for part in parts]).sum(dim=0)
        wrong = ~sums.isfinite().all() | (self.guard.costs.count > 0)
        overflow = ~norm.isfinite()
        if self.scaler.is_enabled():  # larger scales make finite gradients overflow; the scaler sees to that
            overflow = overflow & (self.scaler.scale(self.one) < 1)
        wrong = wrong | overflow
        flags = torch.stack([wrong, torch.full_like(wrong, self.stop.requested)]).float()
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(flags)
        told = self._told()
        copied = torch.cat([sums, torch.stack([*told.values(), norm.float()]), flags]).tolist()
        losses = dict(zip(names, copied, strict=False))
        statistics = dict(zip(told, copied[len(names) :], strict=False))
        gradient_norm, is_wrong, stop = copied[-3:]
        return losses, statistics, gradient_norm, not is_wrong, bool(stop)

    def _told(self) -> dict[str, Tensor]:
        """`statistics` of the criterion, if it has any: scalars on the device, of its last call."""
        criterion = getattr(self.network, "criterion", None)
        return {name: value.float() for name, value in getattr(criterion, "statistics", {}).items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "guard": self.guard.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The optimiser's moments come from `state`; rates, decays and the like stay the configuration's."""
        saved = state["optimizer"]
        groups = [dict(group) for group in saved["param_groups"]]
        # Before loading, because on which device the count of steps lies depends on `fused`. As many groups?
        # Loading sees to that.
        for group, configured in zip(groups, self.optimizer.param_groups, strict=False):
            group.update({name: value for name, value in configured.items() if name != "params"})
        self.optimizer.load_state_dict({**saved, "param_groups": groups})
        for parameter, moments in self.optimizer.state.items():
            for name, moment in moments.items():  # a run with other AMP settings laid them out otherwise
                if moment.shape == parameter.shape and moment.stride() != parameter.stride():
                    moments[name] = torch.empty_like(parameter, dtype=moment.dtype).copy_(moment)
        if state["scaler"]:  # that of a run without float16 is empty
            self.scaler.load_state_dict(state["scaler"])
        self.guard.load_state_dict(state["guard"])


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """SOLVER.AMP as a type to autocast to, None when it is off; InputError on an unknown type."""
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    if cfg.SOLVER.AMP.DTYPE not in AMP_DTYPES:
        valid = ", ".join(AMP_DTYPES)
        raise InputError(f"SOLVER.AMP.DTYPE is {cfg.SOLVER.AMP.DTYPE!r}; use one of: {valid}")
    return AMP_DTYPES[cfg.SOLVER.AMP.DTYPE]


def batch_norms(network: nn.Module) -> list[nn.Module]:
    """Batch norms that are not frozen: in training their statistics depend on a micro-batch's images."""
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def distribute(model: nn.Module) -> nn.Module:
    """The model as every process of a run uses it: gradients averaged, where there is more than one."""
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).device.type == "cuda"
    return DistributedDataParallel(
        model, device_ids=[torch.cuda.current_device()] if on_gpu else None, broadcast_buffers=False
    )
