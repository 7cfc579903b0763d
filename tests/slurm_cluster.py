"""A real Slurm on the loopback interface: munged, slurmctld and two slurmd, each node with a pretended GPU.

Debian: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge
"""

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
SEARCH_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
NODES = ("n1", "n2")

# Nodes of one host: they differ by port, and their names resolve nowhere. Their CPUs are more than there are, so that
# the batch scripts' own requests fit. A requeued job waits for its credential to expire.
SLURM_CONF = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MinJobAge=600
ReturnToService=2
JobRequeue=1
KillWait=30
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=16 Gres=gpu:1 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=16 Gres=gpu:1 State=UNKNOWN
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def missing_daemons() -> list[str]:
    return [name for name in DAEMONS if shutil.which(name, path=SEARCH_PATH) is None]


class Cluster:
    """What tests ask of the running cluster; `environment` makes sbatch and squeue talk to it."""

    def __init__(self, directory: Path):
        self.directory = directory
        # A test that itself runs in a Slurm job must not pass that job's settings on.
        outer = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
        self.environment = outer | {"SLURM_CONF": str(directory / "slurm.conf"), "PATH": SEARCH_PATH}

    def run(self, *command: str, **kwargs) -> str:
        """Its output; an error shows what it wrote."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, **kwargs)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *arguments: str | Path) -> str:
        """sbatch from the repository's folder; the job's id."""
        command = ["sbatch", "--parsable", *map(str, arguments)]
        return self.run(*command, cwd=Path(__file__).parent.parent).strip()

    def job(self, job_id: str) -> dict[str, str]:
        """The fields that `scontrol show job` prints."""
        return dict(field.partition("=")[::2] for field in self.run("scontrol", "-o", "show", "job", job_id).split())

    def wait_for(
        self, condition: Callable[[], bool], seconds: float, log: Path | None = None, every: float = 0.2
    ) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                text = log.read_text() if log and log.exists() else ""
                raise AssertionError(f"timed out\n{self.run('squeue', '-a', '-t', 'all')}{text[-4000:]}")
            time.sleep(every)

    def wait_for_job(self, job_id: str, seconds: float, log: Path | None = None) -> dict[str, str]:
        """Its fields once it has ended for good."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        self.wait_for(lambda: self.job(job_id)["JobState"] in ends, seconds, log)
        return self.job(job_id)


@contextmanager
def running_cluster(directory: Path) -> Iterator[Cluster]:
    """Start the daemons with all their files in `directory`, wait until both nodes are idle; stop them at the end."""
    write_settings(directory)
    cluster = Cluster(directory)
    try:
        start_daemons(cluster)
        cluster.wait_for(lambda: cluster.run("sinfo", "-h", "-o", "%t %D").split() == ["idle", "2"], 30)
        yield cluster
    finally:
        stop_daemons(cluster)


def write_settings(directory: Path) -> None:
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (directory / name).mkdir(parents=True)
    (directory / "munge.key").write_bytes(secrets.token_bytes(128))
    (directory / "munge.key").chmod(0o600)
    values = {"host": socket.gethostname().partition(".")[0], "user": getpass.getuser(), "ports": free_ports(3)}
    (directory / "slurm.conf").write_text(SLURM_CONF.format(directory=directory, **values))
    (directory / "gres.conf").write_text("".join(f"NodeName={node} Name=gpu File=/dev/null\n" for node in NODES))


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_daemons(cluster: Cluster) -> None:
    directory = cluster.directory
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={directory}/munge.{name}" for option, name in files.items()]
    cluster.run("munged", "--force", *options)
    cluster.run("slurmctld", "-c")
    for node in NODES:
        cluster.run("slurmd", "-c", "-N", node)


def stop_daemons(cluster: Cluster) -> None:
    """Jobs first, then the daemons, by the process ids that they wrote; munged, which all of them ask, last."""
    if (cluster.directory / "slurmctld.pid").exists():
        cluster.run("scancel", "--me")
        cluster.wait_for(lambda: not cluster.run("squeue", "-h"), 60)
    for daemons in ("slurm*.pid", "munge.pid"):
        pids = [int(path.read_text()) for path in cluster.directory.glob(daemons)]
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        for pid in pids:
            wait_for_end(pid)


def wait_for_end(pid: int, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"process {pid} has not ended"
        time.sleep(0.1)
