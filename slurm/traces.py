"""Where a failing job's processes were: RUN_DIR/traces/JOB/rank_N_restart_M.txt, for each of them.

When one process fails, Slurm sends SIGTERM to the others (srun --kill-on-bad-exit), which may hang for ever
in an exchange with it. A thread takes the signal there: it writes the trace of its process, and ends it.
"""

import faulthandler
import logging
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from slurm.place import Place

logger = logging.getLogger(__name__)

PEER_SECONDS = 10.0  # for a failing peer's trace to appear, once SIGTERM has come


class Traces:
    """Traces of this process and its peers, of this start of the job."""

    def __init__(self, run_dir: Path, place: Place) -> None:
        self.folder = run_dir / "traces" / place.job
        self.place = place
        self.path = self.folder / self._name(place.rank)

    def _name(self, rank: int) -> str:
        return f"rank_{rank}_restart_{self.place.restart}.txt"

    def _head(self) -> str:
        return f"rank {self.place.rank} of {self.place.size} on {socket.gethostname()}, pid {os.getpid()}\n"

    def write(self, error: BaseException) -> None:
        """The error's trace; what cannot be written is logged alone."""
        lines = traceback.format_exception(type(error), error, error.__traceback__)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.path.write_text(self._head() + "".join(lines))
        except OSError as unwritten:
            logger.error("cannot write %s: %s", self.path, unwritten.strerror)

    def failed_peers(self) -> list[int]:
        """Ranks, other than this one, that have written a trace."""
        ranks = range(self.place.size)
        return [r for r in ranks if r != self.place.rank and (self.folder / self._name(r)).exists()]

    def write_where_it_is(self, reason: str) -> None:
        """The trace of this process as it stands, for a reason that is no exception in it."""
        with suppress(OSError):  # whoever calls this ends the process, come what may
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.path, "w") as file:
                file.write(self._head() + f"{reason}; it was here:\n")
                file.flush()
                faulthandler.dump_traceback(file)

    def note_unmet(self, line: str) -> bool:
        """That the processes of this start have not met; False when another one has noted it first."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self._unmet(self.place.restart), "x") as file:
                file.write(f"{line}\n")
        except FileExistsError:
            return False
        return True

    def unmet_before(self) -> int:
        """In how many starts in a row, up to the last one, the processes did not meet."""
        earlier = range(self.place.restart - 1, -1, -1)
        return next((n for n, one in enumerate(earlier) if not self._unmet(one).exists()), len(earlier))

    def _unmet(self, restart: int) -> Path:
        return self.folder / f"unmet_restart_{restart}.txt"

    def watch(self, on_warning: Callable[[], None]) -> None:
        """From now on SIGTERM after a peer's failure ends this process, wherever it is; in the main thread.

        Python must have a handler of SIGTERM, which alone runs when no peer has failed. `on_warning` is
        called on SIGUSR2, in a thread: the handler may wait for ever, when the main thread does.
        """
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        arguments = (reading, on_warning)
        threading.Thread(target=self._watch, args=arguments, name="peers", daemon=True).start()

    def _watch(self, reading: int, on_warning: Callable[[], None]) -> None:
        while number := os.read(reading, 1):
            if number[0] == signal.SIGUSR2:
                on_warning()
            if number[0] == signal.SIGTERM:
                self._end_if_a_peer_failed()

    def _end_if_a_peer_failed(self) -> None:
        deadline = time.monotonic() + PEER_SECONDS
        while time.monotonic() < deadline:
            failed = self.failed_peers()
            if failed and not self.path.exists():
                self.write_where_it_is(f"ended because rank {failed[0]} failed")
            if failed:
                time.sleep(1.0)  # for the main thread, should it be about to tell of an error of its own
                os._exit(1)
            time.sleep(0.2)
