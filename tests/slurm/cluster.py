"""A real Slurm on this machine: munged, slurmctld and one slurmd a node, each node with four mock GPUs.

    with running_cluster(nodes=2) as cluster:
        cluster.run("sbatch", …)

Everything lies in a folder of its own: key, sockets, spools, logs, devices, and a hosts file in which the
nodes' names resolve. Jobs share a node, as far as its CPUs and GPUs go. Partition `main` is the default; jobs
of `urgent` preempt its jobs, by requeue. There is no accounting. However the tests end, a guard process ends
what is left: run as a script, this file is it.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo", "unshare")
CLIENT_SECONDS = 20
GPUS = 4
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/sock,cred_expire=8
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=64
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
JobRequeue=1
ReturnToService=1
KillWait=30
MinJobAge=600
FirstJobId={first_job}
InactiveLimit=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
"""


def why_not() -> str:
    """Why no cluster can be started here, in one line; "" where it can."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        return f"Slurm's programs are not installed ({', '.join(missing)}); `make system-deps` installs them"
    if os.geteuid() != 0:
        return "a cluster for tests needs root (host names and device files of its nodes)"
    test = ["unshare", "--uts", "--mount", "--propagation", "private", "true"]
    if subprocess.run(test, capture_output=True, timeout=10).returncode:
        return "nodes cannot have host names of their own here (unshare is not allowed)"
    return ""


class Cluster:
    """`environment` is that of its clients; `up` and `down` may be called again."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder = folder
        self.nodes = [f"node{number + 1}" for number in range(nodes)]
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
        }

    def up(self) -> None:
        for name in ("munge", "state", "dev"):
            (self.folder / name).mkdir(exist_ok=True)
        (self.folder / "munge").chmod(0o711)
        self._write_key()
        for gpu in range(GPUS):
            device = self.folder / f"dev/nvidia{gpu}"
            if not device.exists():  # a twin of /dev/null: Slurm wants a device
                os.mknod(device, 0o666 | 0o020000, os.makedev(1, 3))
        self._write_configuration()
        munge = self.folder / "munge"
        files = [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
        self._start("munged", "munged", "-F", f"--socket={munge / 'sock'}", *files)
        wait_until(lambda: (munge / "sock").exists(), 10)
        self._start("slurmctld", "slurmctld", "-D")
        for node in self.nodes:
            self.start_node(node)
        wait_until(lambda: self.states() == ["idle"] * len(self.nodes), 40)

    def start_node(self, node: str) -> None:
        """Its slurmd, with a host name and a hosts file of its own."""
        hosts = self.folder / "hosts"
        shell = 'hostname "$1" && mount --bind "$2" /etc/hosts && exec slurmd -D -N "$1"'
        unshare = ("unshare", "--uts", "--mount", "--propagation", "private")
        self._start(node, *unshare, "sh", "-c", shell, "sh", node, str(hosts))

    def _start(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.out", "ab") as log:
            self.daemons[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _write_key(self) -> None:
        key = self.folder / "munge/key"
        if not key.exists():
            key.touch(0o600)
            key.write_bytes(secrets.token_bytes(1024))

    def _write_configuration(self) -> None:
        ports = free_ports(1 + len(self.nodes))
        text = CONFIGURATION.format(
            folder=self.folder,
            host=socket.gethostname().split(".")[0],
            port=ports[0],
            first_job=1000 + secrets.randbelow(60000),  # jobs' ports come from it: two clusters may run
        )
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 9 // 10 // 2**20
        hosts = Path("/etc/hosts").read_text()
        for number, (node, port) in enumerate(zip(self.nodes, ports[1:], strict=True)):
            address = f"127.0.0.{11 + number}"
            text += (
                f"NodeName={node} NodeAddr={address} Port={port} CPUs=16 Boards=1 SocketsPerBoard=1 "
                f"CoresPerSocket=16 ThreadsPerCore=1 RealMemory={memory} Gres=gpu:{GPUS} State=UNKNOWN\n"
            )
            hosts += f"{address} {node}\n"
        names = ",".join(self.nodes)
        text += f"PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=30\n"
        text += f"PartitionName=urgent Nodes={names} MaxTime=INFINITE PriorityTier=10\n"
        (self.folder / "slurm.conf").write_text(text)
        gpus = f"NodeName={names} Name=gpu File={self.folder}/dev/nvidia[0-{GPUS - 1}] AutoDetect=off\n"
        (self.folder / "gres.conf").write_text(gpus)
        (self.folder / "hosts").write_text(hosts)

    def run(self, *command: str) -> str:
        """What a client prints; an AssertionError with its errors when it fails."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=CLIENT_SECONDS
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def states(self) -> list[str]:
        """Of the nodes."""
        lines = subprocess.run(
            ["sinfo", "-h", "-N", "-p", "main", "-o", "%T"],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=CLIENT_SECONDS,
        )
        return lines.stdout.split()

    def job(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        text = self.run("scontrol", "-o", "show", "job", job)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def clear(self) -> None:
        """No jobs, all nodes idle: between two tests."""
        self.run("scancel", "--user=root")
        wait_until(lambda: not self.run("squeue", "-h").strip(), 40)
        for node, state in zip(self.nodes, self.states(), strict=True):
            if state.startswith(("down", "drain")):
                self.run("scontrol", "update", f"nodename={node}", "state=resume")
        wait_until(lambda: self.states() == ["idle"] * len(self.nodes), 40)

    def down(self) -> None:
        for name in [*self.nodes, "slurmctld", "munged"]:
            if name in self.daemons:
                self.daemons[name].terminate()
                try:
                    self.daemons[name].wait(3)
                except subprocess.TimeoutExpired:
                    self.daemons[name].kill()
                    self.daemons[name].wait()
        end_all(self.folder)


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Until the condition holds; an AssertionError when that takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s in vain"
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def processes_of(folder: Path) -> list[int]:
    """Processes whose environment names the cluster's configuration: daemons, steps, jobs; not this one."""
    mark = f"SLURM_CONF={folder}/slurm.conf".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def end_all(folder: Path) -> None:
    for _ in range(3):  # a daemon may have started something meanwhile
        for process in processes_of(folder):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)


@contextmanager
def running_cluster(nodes: int = 2) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: a socket's path has 107 characters at most
    folder.chmod(0o755)
    guard = subprocess.Popen([sys.executable, __file__, str(folder)], stdin=subprocess.PIPE)
    cluster = Cluster(folder, nodes)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()
        assert guard.stdin
        guard.stdin.close()
        guard.wait(30)


def guard(arguments: Sequence[str]) -> None:
    """Wait until whoever started this is gone, then end the cluster and remove its folder."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    folder = Path(arguments[0])
    end_all(folder)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    guard(sys.argv[1:])
