"""A run that is asked to stop: all processes agree on an iteration, save it, and leave.

    stop = StopRequest()
    stop.listen(signal.SIGUSR2)      # from now on the signal asks to stop, and kills no more
    Trainer(cfg, stop=stop).train()  # RunStopped(iteration), when there is a checkpoint of that iteration

Between two steps the processes agree by the numbers that they exchange anyway (training/step.py). An
evaluation, which may take longer than the time that is left, is given up at once: a checkpoint of its
iteration was written before it, and the resumed run evaluates first.
"""

import os
import signal
import types
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
WORKER_SECONDS = 20  # of a loader's worker after SIGTERM: a step, at most


class RunStopped(BaseException):
    """The run was stopped on request; there is a checkpoint of `iteration`.

    No Exception, as KeyboardInterrupt is none: what catches errors on the way lets it pass.
    """

    def __init__(self, iteration: int, agreed: bool = False) -> None:
        """`agreed`: all processes stop here together, so that none waits for another in an exchange."""
        super().__init__(f"stopped on request after iteration {iteration}")
        self.iteration = iteration
        self.agreed = agreed


class StopRequest:
    """Whether this process has been asked to stop, and by which signal (the first one)."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._evaluated: int | None = None  # iteration of the evaluation that may be given up, while in it

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def listen(self, *signals: signal.Signals) -> None:
        """Take these signals as requests from now on; children that are forked do not."""
        for number in signals:
            signal.signal(number, self.receive)
        os.register_at_fork(after_in_child=leave_signals_to_parent)

    def receive(self, number: int, frame: types.FrameType | None = None) -> None:
        """A signal's handler. RunStopped when an evaluation is going on."""
        if self.signal is None:
            self.signal = signal.Signals(number)
        if self._evaluated is not None:
            iteration, self._evaluated = self._evaluated, None  # once: nothing disturbs the way out
            raise RunStopped(iteration)

    @contextmanager
    def may_interrupt(self, iteration: int) -> Iterator[None]:
        """A body that a request ends at once by RunStopped: it writes nothing that must be whole.

        `iteration`: the last one done; there is a checkpoint of it.
        """
        if self.requested:
            raise RunStopped(iteration)
        self._evaluated = iteration
        try:
            yield
        finally:
            self._evaluated = None


def leave_signals_to_parent() -> None:
    """In a forked child: a request to stop is none of its business, and SIGTERM ends it.

    A scheduler signals every process of a job, and a forked child has its parent's handlers: it would save
    and requeue too, and its parent's terminate() would not end it.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def serve_until_parent_stops(worker: int = 0) -> None:
    """The worker_init_fn of the training data's loader: SIGTERM ends a worker some seconds later.

    When a job is cancelled or preempted, SIGTERM comes to all its processes; without its workers the trainer
    could not finish the step that it wants to save.
    """
    leave_signals_to_parent()
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(WORKER_SECONDS) and None)
