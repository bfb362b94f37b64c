"""Keys of sbatch that no flag has: from `--slurm KEY=VALUE` and a profile's `slurm:`.

What the launcher decides, or has a flag for, is refused there. A kind of GPU is named by `gres`,
`gpus-per-node` or `gpus`, which then take the place of the launcher's own gpus-per-node; a number that is
left out is filled in: gres=gpu:a100 becomes gres=gpu:a100:4.
"""

from collections.abc import Mapping, Sequence

from mask_former.errors import InputError
from slurm.cluster import gpu_count

OURS = {"output", "error", "open-mode", "requeue", "no-requeue", "signal", "array", "wrap", "parsable"}
GPU_KEYS = ("gres", "gpus-per-node", "gpus")
# Flags that a profile has no key of its own for: in its `slurm:` they are what the flag goes before.
FURTHER = ("nodelist", "exclude", "reservation", "dependency", "mail-type", "mail-user", "comment")
_NUMBER_OF_TASKS = "--gpus and --nodes"
_IN_PROFILE = ("partition", "account", "qos", "constraint", "time", "mem", "cpus-per-task")
_FLAGS = {key: f"--{key}" for key in ("nodes", *_IN_PROFILE)} | {
    "job-name": "--name",
    "ntasks": _NUMBER_OF_TASKS,
    "ntasks-per-node": _NUMBER_OF_TASKS,
    "ntasks-per-core": _NUMBER_OF_TASKS,
    "ntasks-per-socket": _NUMBER_OF_TASKS,
    "ntasks-per-gpu": _NUMBER_OF_TASKS,
    "tasks-per-node": _NUMBER_OF_TASKS,
    "gpus-per-task": "--gpus; for a kind of GPU, gpus-per-node=KIND",
    "gpus-per-socket": "--gpus; for a kind of GPU, gpus-per-node=KIND",
}


def key_values(pairs: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE texts as a dictionary; a KEY alone has the value "" (a flag)."""
    return {key: value for key, _, value in (pair.partition("=") for pair in pairs)}


def more_keys(
    given: Sequence[str], profile: Mapping[str, str], gpus: int, tasks_per_node: int
) -> dict[str, str | bool]:
    """All of them in sbatch's spelling; True for a flag. InputError for one that is not to be given here."""
    ours = _checked(profile, "the profile's slurm: ", in_profile=True)
    if not gpus:  # on the CPU the kind of GPU that a profile names does not matter
        ours = {key: value for key, value in ours.items() if key not in GPU_KEYS or not _has_gpus(key, value)}
    theirs = _checked(key_values(given), "--slurm ", in_profile=False)
    if set(theirs) & set(GPU_KEYS):
        ours = {key: value for key, value in ours.items() if not _has_gpus(key, value)}
    keys = {**ours, **theirs}
    for key in GPU_KEYS:
        if key in keys and _has_gpus(key, keys[key]):
            keys[key] = _with_count(key, keys[key], gpus, gpus if key == "gpus" else tasks_per_node)
    return {key: value or True for key, value in keys.items()}


def names_gpus(keys: Mapping[str, str | bool]) -> bool:
    """Whether one of them says how many GPUs the job gets."""
    return any(_has_gpus(key, str(value)) for key, value in keys.items())


def _checked(keys: Mapping[str, str], where: str, in_profile: bool) -> dict[str, str]:
    checked = {}
    for written, value in keys.items():
        key = written.lstrip("-").replace("_", "-")
        if len(key) < 2:
            raise InputError(f"{where}{written}: give the long name of sbatch's key")
        if key in OURS:
            raise InputError(
                f"{where}{key}=…: {key} is the launcher's; --name, --grace and --run-dir change it"
            )
        if key in _FLAGS or (key in FURTHER and not in_profile):
            own = f" (in a profile: the key {key.replace('-', '_')})" if key in _IN_PROFILE else ""
            raise InputError(f"{where}{key}=…: use {_FLAGS.get(key, f'--{key}')}{own}")
        checked[key] = value
    return checked


def _has_gpus(key: str, value: str) -> bool:
    return key in GPU_KEYS and (key != "gres" or gpu_count(value) > 0)


def _with_count(key: str, value: str, gpus: int, wanted: int) -> str:
    """The value with the number of GPUs in it; InputError when it has another."""
    parts = [part if key == "gres" else f"gpu:{part}" for part in value.split(",")]
    ours = [index for index, part in enumerate(parts) if gpu_count(part)]
    if len(ours) == 1 and not parts[ours[0]].rpartition(":")[2].isdigit():
        parts[ours[0]] += f":{wanted}"
    count = gpu_count(",".join(parts))
    if not gpus or count != wanted:
        each = "" if key == "gpus" else " a node"
        raise InputError(
            f"{key}={value} asks for {count} GPUs{each}, but --gpus {gpus} for {wanted if gpus else 0}: "
            "leave the number out, or change --gpus or --nodes"
        )
    return ",".join(part if key == "gres" else part.removeprefix("gpu:") for part in parts)


def with_exported(exported: str, names: Sequence[str]) -> str:
    """sbatch's --export, or SBATCH_EXPORT, so that it hands over these variables too."""
    words = [word for word in exported.split(",") if word.upper() not in ("NONE", "NIL", "")]
    if not names or "ALL" in (word.upper() for word in words):
        return exported
    return ",".join([*words, *(name for name in names if name not in words)])
