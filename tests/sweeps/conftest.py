"""A sweep of twelve runs that take seconds, and a SLURM cluster of one node."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

CONFIG = """
from attnjax import config as config_lib
from attnjax import models, sweeps


def get_config():
    config = config_lib.classification()
    config.model = models.fields("mlp", widths=(8,))
    config.data.source, config.data.train, config.data.validation = "tfds:digits", "train[:90%]", "train[90%:]"
    config.data.image_size, config.data.channels = (8, 8), 1
    config.batch_size, config.eval_batch_size = 32, 144
    config.steps, config.log_every, config.eval_every, config.save_every = 200, 10, 50, 10
    return config


def sweep():
    shapes = sweeps.chain(sweeps.values("model.widths", [(8,), (16,)]), [{"model.activation": "tanh"}])
    return sweeps.product(shapes, sweeps.values("optimizer.learning_rate", [1e-3, 1e-2]), sweeps.seeds(2))
"""
TRIALS = 12


@pytest.fixture(scope="session")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "small.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def assert_each_trained_once(rows):
    """Checks that every trial finished, with each step taken and logged once and no failure recorded."""

    def check(folder, steps=200):
        runs = sorted(path.parent for path in folder.glob("*/config.json"))
        assert len(runs) == TRIALS
        for run in runs:
            assert [row["step"] for row in rows(run)] == list(range(10, steps + 1, 10))
            assert [row["step"] for row in rows(run, "validation")] == list(range(50, steps + 1, 50))
            ends = [line for line in (run / "train.log").read_text().splitlines() if " run folder: " in line]
            assert len(ends) == 1
            assert (run / "checkpoints" / str(steps) / "checksums.json").is_file()
        assert not list((folder / "logs").glob("*.failed"))
        return runs

    return check


class Watch:
    """Observes a sweep from outside."""

    def children(self, folder):
        """Returns the process ids of a sweep's running trainings."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                arguments = (process / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if any(argument.endswith("train.py") for argument in arguments) and str(folder) in " ".join(arguments):
                found.append(int(process.name))
        return found

    def wait_for(self, condition, seconds=60):
        """Returns the value of `condition()` as soon as it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := condition():
                return found
            time.sleep(0.02)
        raise AssertionError("timed out")

    def steps_of(self, folder):
        """Returns trial -> number of logged rows."""
        return {path.parent.name: path.read_text().count("\n") for path in folder.glob("*/metrics.jsonl")}


@pytest.fixture
def watch():
    return Watch()


SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SchedulerParameters=sched_interval=1,bf_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A cluster of this machine only, from Debian's slurm-wlm and munge; stopped after the tests."""
    if os.geteuid() or not all(map(shutil.which, ("munged", "slurmctld", "slurmd"))):
        pytest.skip("needs root, and Debian's slurm-wlm and munge")
    folder = tmp_path_factory.mktemp("slurm")
    for path in (folder, *folder.parents):  # munge requires that only root can write to the folders above its socket
        path.chmod(path.stat().st_mode | 0o011)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    ports = [free_port(), free_port()]
    conf = folder / "slurm.conf"
    host = socket.gethostname().split(".")[0]
    conf.write_text(SLURM_CONF.format(host=host, folder=folder, ports=ports, cores=os.cpu_count()))
    files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    run("munged", "--force", *files, f"--socket={folder}/munge.socket")
    os.environ["SLURM_CONF"] = str(conf)
    try:
        run("slurmctld", "-f", conf)
        run("slurmd", "-f", conf)
        run("srun", "--immediate=30", "true")
        yield
    finally:
        subprocess.run(["scancel", "--user", "root"])
        subprocess.run(["scontrol", "shutdown"])
        run("munged", "--stop", f"--socket={folder}/munge.socket")
        del os.environ["SLURM_CONF"]


def run(*command):
    subprocess.run([*map(str, command)], check=True, timeout=60)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
