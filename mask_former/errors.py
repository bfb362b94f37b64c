"""Bad input: one line that says what, where and how to mend, and an exit code that is not 0."""

import errno
import sys
from collections.abc import Callable
from typing import TypeGuard


class InputError(ValueError):
    """Input from outside (file, configuration, checkpoint) that cannot be used; the message is one line."""


def one_line(error: BaseException) -> str:
    """The message of an InputError, also when another process wrapped it in its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    marker = f"{InputError.__name__}: "
    wrapped = [line.split(marker, 1)[1] for line in lines if marker in line]
    if wrapped:
        return wrapped[-1]
    return lines[0] if lines else type(error).__name__


def is_disk_full(error: BaseException) -> TypeGuard[OSError]:
    """True when there was no room to write: disk, quota, or the largest size of a file."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_input_error(error: BaseException) -> bool:
    """True for an InputError and for another process's exception whose traceback ends in one."""
    last = str(error).strip().splitlines()[-1:] or [""]
    return isinstance(error, InputError) or f"{InputError.__name__}: " in last[0]


def run_cli(main: Callable[[], int | None]) -> int:
    """Run a tool: bad input becomes one line on stderr and exit code 2, Ctrl-C becomes exit code 130."""
    try:
        return main() or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if not is_input_error(error):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
