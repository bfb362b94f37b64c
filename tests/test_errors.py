"""What a tool prints and returns when its input is wrong, also when a worker process found out."""

import sys
from collections.abc import Callable

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from mask_former.errors import InputError, is_input_error, one_line, run_cli

LINE = "images/7.jpg: not an image; remove it from the data set"


def raises(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


class Broken(Dataset):
    """A data set whose second sample cannot be read, the cause being another exception."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        if index == 0:
            return 0
        try:
            raise OSError("truncated file")
        except OSError as cause:
            raise self.error from cause


def read_in_worker(error: Exception) -> Callable[[], None]:
    def main() -> None:
        list(DataLoader(Broken(error), num_workers=1, batch_size=None))

    return main


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1), (3, 3)])
def test_exit_code_is_what_main_returns(returned: int | None, code: int) -> None:
    assert run_cli(lambda: returned) == code


def test_bad_input_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(raises(InputError(LINE))) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"error: {LINE}\n")


def test_a_subclass_is_bad_input_too(capsys: pytest.CaptureFixture[str]) -> None:
    class MissingFile(InputError):
        pass

    assert run_cli(raises(MissingFile(LINE))) == 2
    assert capsys.readouterr().err == f"error: {LINE}\n"


def test_bad_input_found_by_a_data_loader_worker(capsys: pytest.CaptureFixture[str]) -> None:
    """PyTorch raises it again with the worker's whole traceback as its message."""
    assert run_cli(read_in_worker(InputError(LINE))) == 2
    assert capsys.readouterr().err == f"error: {LINE}\n"


def test_of_two_input_errors_in_a_chain_the_outer_one_counts() -> None:
    """A traceback prints the cause first."""
    chain = f"InputError: the cause\n\nThe above exception was the direct cause of:\n\nInputError: {LINE}"
    assert one_line(InputError(f"Caught InputError in worker process 0.\n{chain}")) == LINE


def test_a_workers_other_errors_keep_their_traceback() -> None:
    with pytest.raises(KeyError, match="Traceback"):
        run_cli(read_in_worker(KeyError("file_name")))


def test_bad_input_of_a_spawned_process(capsys: pytest.CaptureFixture[str]) -> None:
    """torch.multiprocessing wraps it in an exception of its own, with the traceback as its message."""
    traceback = (
        f'Traceback (most recent call last):\n  File "a.py", line 1\nmask_former.errors.InputError: {LINE}\n'
    )
    wrapped = torch.multiprocessing.ProcessRaisedException(f"\n\n-- Process 1 terminated\n{traceback}", 1, 42)
    assert run_cli(raises(wrapped)) == 2
    assert capsys.readouterr().err == f"error: {LINE}\n"


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), KeyError("x"), RuntimeError("InputError: not ours\nboom")]
)
def test_other_errors_pass_through(error: Exception) -> None:
    assert not is_input_error(error)
    with pytest.raises(type(error)):
        run_cli(raises(error))


def test_argparse_and_sys_exit_pass_through() -> None:
    with pytest.raises(SystemExit):
        run_cli(lambda: sys.exit(4))


def test_interruption_is_exit_code_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(raises(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("message", "line"), [("", "InputError"), ("\n  first \nsecond", "first"), ("plain", "plain")]
)
def test_always_one_line(message: str, line: str) -> None:
    assert one_line(InputError(message)) == line


def test_input_errors_are_value_errors() -> None:
    """So that code which knows nothing of this project can catch them."""
    assert issubclass(InputError, ValueError)
