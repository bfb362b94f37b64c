"""What a machine does to a run, told in one line: a full disk, a loader's worker that was killed."""

from typing import Any

from mask_former.errors import InputError, is_disk_full


def disk_full(error: BaseException, folder: str) -> InputError | None:
    """A log or picture for which there was no room, in one line; None when it is about something else."""
    if not is_disk_full(error):
        return None
    where = getattr(error, "filename", None) or folder
    return InputError(
        f"no room for {where}: {error.strerror}; what was saved before is as it was; make room, then go on "
        "by --resume"
    )


def worker_killed(error: BaseException, batches: Any, iteration: int) -> InputError | None:
    """That a worker of the loader behind `batches` has died, in one line; None when it has not.

    PyTorch says so itself, or the death shows as a broken connection in the middle of a sample.
    """
    text = " ".join(str(error).split())
    if "DataLoader worker" not in text:
        if not isinstance(error, (ConnectionError, EOFError, FileNotFoundError)):
            return None
        workers = getattr(batches, "_workers", [])
        for worker in workers:
            worker.join(timeout=1.0 / len(workers))  # a killed one takes a moment to be gone
        if all(worker.exitcode is None for worker in workers):
            return None
    return InputError(
        f"iteration {iteration}: a data-loader worker was killed, mostly for memory ({text[:160]}); lower "
        "DATALOADER.NUM_WORKERS or ask for more memory, then go on by --resume"
    )


def shut_down(batches: Any) -> None:
    """End the workers behind a loader's iterator now; left to the end of the process, it takes seconds."""
    if hasattr(batches, "_shutdown_workers"):  # there are workers
        batches._shutdown_workers()
