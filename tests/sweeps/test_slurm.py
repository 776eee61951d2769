"""Sweeps, and training in several processes, on a SLURM cluster started here: `make sweeps`."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# Processes that the tests kill leave pipes open.
LOOSE_ENDS = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
pytestmark = [pytest.mark.sweeps, LOOSE_ENDS]

CONFIG = Path(__file__).parent.parent.parent / "configs" / "digits_lenet.py"


def queue():
    """Returns job -> state."""
    command = ["squeue", "--noheader", "--array", "--format", "%i %T"]
    return dict(line.split() for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines())


def test_every_trial_is_trained_once_despite_kills_and_preemption(
    slurm, process, config_file, tmp_path, assert_each_trained_once, watch
):
    """The runner is killed while its jobs run, then a trial; one job reaches its time limit, one is preempted."""
    folder = tmp_path / "sweep"
    arguments = ["--config", config_file, "--workdir", folder, "--jobs", 2, "--executor", "slurm", "--slurm.time", 5]
    arguments.append("--config.steps=800")
    runner = process("sweep", *arguments)
    watch.wait_for(lambda: any(count > 2 for count in watch.steps_of(folder).values()))
    runner.kill()
    runner.communicate()
    os.kill(watch.wait_for(lambda: watch.children(folder))[0], signal.SIGKILL)
    jobs = json.loads((folder / "jobs.json").read_text())
    assert len(jobs) == 12

    def running():
        rows = watch.steps_of(folder)
        states = queue()
        begun = [name for name, job in jobs.items() if states.get(job) == "RUNNING" and 3 < rows.get(name, 0) < 60]
        return begun and begun[0]

    def stop(*command):
        """Stops a job and returns its trial once it is requeued, without SLURM's delay of two minutes."""
        trial = watch.wait_for(running)
        stopping = subprocess.Popen([*command, jobs[trial]])  # retries while the job is ending
        watch.wait_for(lambda: queue().get(jobs[trial]) == "PENDING")
        stopping.kill()
        subprocess.run(["scontrol", "update", f"jobid={jobs[trial]}", "StartTime=now"], check=True)
        return trial

    stopped = [stop("scancel", "--signal=USR2"), stop("scontrol", "requeue")]

    runner = process("sweep", *arguments)
    out, err = runner.communicate(timeout=900)
    assert runner.returncode == 0, out + err
    assert json.loads((folder / "jobs.json").read_text()) == jobs
    assert_each_trained_once(folder, steps=800)
    for trial in stopped:
        log = (folder / "logs" / f"{trial}.log").read_text()
        assert "which is saved" in log and "resumed from step" in log


def test_failures_on_slurm_are_printed(slurm, process, config_file, tmp_path):
    arguments = ["--config", config_file, "--workdir", tmp_path / "sweep", "--executor", "slurm", "--jobs", 2]
    out, err = process("sweep", *arguments, "--config.data.train=nowhere").communicate(timeout=600)
    assert out.count("failed: ") == 12 and "error: " in out, out + err


def test_a_job_that_slurm_rejects_is_one_line(slurm, process, config_file, tmp_path):
    arguments = ["--config", config_file, "--workdir", tmp_path / "sweep", "--executor", "slurm"]
    runner = process("sweep", *arguments, "--slurm.partition=nowhere")
    _, err = runner.communicate(timeout=200)
    assert runner.returncode == 2 and "SLURM rejected the jobs: " in err and "partition" in err and err.count("\n") == 1
    assert not (tmp_path / "sweep" / "jobs.json").exists()


def test_processes_find_each_other(slurm, tmp_path):
    short = {"steps": 4, "eval_every": 4, "batch_size": 32, "optimizer.warmup_steps": 1}
    command = ["srun", "--ntasks=2", sys.executable, CONFIG.parent.parent / "experiments" / "train.py"]
    command += ["--config", CONFIG, "--workdir", tmp_path / "run"]
    command += [f"--config.{name}={value}" for name, value in short.items()]
    env = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run([*map(str, command)], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "data parallel over 2, 2 process(es)" in done.stdout
