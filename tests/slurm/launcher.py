"""slurm/launch.py and status.py of a copy of the code, called often: imported once, forked for each call.

    launcher = Launcher(copy, environment)
    code, said = launcher("--config", …)

Also run as a script: the process that forks.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("configs", "mask_former", "pisr_maskformer", "slurm", "tools")


def copy_code(folder: Path) -> Path:
    """A copy of the code that a test may edit."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


class Launcher:
    """Calls slurm/launch.py of the code in `root`; its environment is the caller's own."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=root,
        )

    def __call__(self, *arguments: str, script: str = "launch") -> tuple[int, str]:
        """Exit code, and all that was printed."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([script, *arguments]) + "\n")
        self.process.stdin.flush()
        code, said = json.loads(self.process.stdout.readline())
        return code, said

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(60)


def serve(root: str) -> None:
    sys.path[0] = root
    from mask_former.errors import run_cli
    from slurm import launch, status

    scripts = {"launch": launch.main, "status": status.main}
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        script, *arguments = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a debugger finds its input at an end
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            os.close(writing)
            code = 1
            with contextlib.suppress(SystemExit):
                code = run_cli(lambda: scripts[script](arguments))  # noqa: B023
            sys.stdout.flush()
            os._exit(code)
        os.close(writing)
        with os.fdopen(reading, errors="replace") as pipe:
            said = pipe.read()
        _, status_ = os.waitpid(child, 0)
        answers.write(json.dumps([os.waitstatus_to_exitcode(status_), said]) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
