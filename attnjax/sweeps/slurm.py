"""Runs the trials of a sweep on SLURM, as an array of jobs, by submitit."""

import contextlib
import dataclasses
import getpass
import io
import json
import signal
import subprocess
import time
from collections.abc import Sequence

from attnjax.errors import UserError, import_extra
from attnjax.files import write_atomically
from attnjax.sweeps.attempt import Attempt
from attnjax.sweeps.trials import Sweep, Trial

JOBS_FILE = "jobs.json"
POLL_SECONDS = 2.0
MOST_SILENCE = 600.0  # seconds that SLURM may not answer for, as it does under load or when restarted
MOST_LOSSES = 3  # of a trial's job, until the trial counts as failed
_SIGNAL_SECONDS = 90  # before its time is over a job is told to save


@dataclasses.dataclass(frozen=True)
class Options:
    """What each job asks for; 0 and "": SLURM's default. `--slurm.FIELD=VALUE` on the command line."""

    partition: str = ""
    account: str = ""
    time: int = 60  # minutes; a trial that takes longer is put into the queue again, and goes on
    gpus: int = 0  # of a node
    cpus: int = 1  # of a task
    memory: int = 0  # GB of a node
    nodes: int = 1  # a process each
    constraint: str = ""


class Work:
    """What a job does: one trial from where it is to its end. submitit calls `checkpoint` before the job is stopped."""

    def __init__(self, sweep: Sweep):
        self._sweep, self._attempt, self._taken = sweep, None, False

    def __call__(self, trial: Trial) -> None:
        if not self._sweep.commands(trial):
            return
        self._attempt = Attempt(self._sweep, trial)
        signal.signal(signal.SIGTERM, self._take)
        while not self._ended():
            time.sleep(0.2)
        while self._taken:  # a preempted job that ends by itself would not come into the queue again
            time.sleep(1)

    def _take(self, number, frame):
        """SLURM takes the job's resources away: the step is saved before it does."""
        self._taken = True
        self._attempt.stop()

    def _ended(self):
        """Polls with the signal held back that `checkpoint` comes from, which polls too."""
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        try:
            return self._attempt.poll()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])

    def checkpoint(self, trial: Trial):
        """Saves the step, and returns this work for the queue to take again."""
        import submitit  # here, as it takes over the program's logging

        if self._attempt:
            self._attempt.stop()
            while not self._attempt.poll():
                time.sleep(0.2)
        return submitit.helpers.DelayedSubmission(Work(self._sweep), trial)


class Slurm:
    """Submits the trials, and looks after their jobs. A sweep that was stopped finds its jobs again."""

    def __init__(self, sweep: Sweep, trials: Sequence[Trial], options: Options, at_once: int):
        self._sweep, self._options, self._at_once = sweep, options, at_once
        self._path = sweep.folder / JOBS_FILE
        self._jobs = json.loads(self._path.read_text()) if self._path.exists() else {}  # trial -> job
        self._losses = dict.fromkeys(trials, 0)
        self._open = list(trials)
        self._missing = set()  # not in the queue, when last looked
        self._queue = {}
        self._looked = self._answered = None

    def poll(self) -> bool:
        """Returns whether all has ended; submits what has no job. Asks SLURM once in two seconds at most."""
        now = time.monotonic()
        if self._looked is not None and now - self._looked < POLL_SECONDS:
            return not self._open
        self._looked = now
        try:
            self._answered, self._queue = now, _queue()
        except UserError:
            if self._answered is None or now - self._answered > MOST_SILENCE:
                raise
            return not self._open
        self._open = [trial for trial in self._open if self._sweep.progress(trial).state not in ("finished", "failed")]
        missing = {trial for trial in self._open if self._jobs.get(trial.name) not in self._queue}
        lost = [trial for trial in self._open if trial in missing and trial.name in self._jobs]
        # Only what was missing the last time, too: files may come later than the end of a job.
        gone = [trial for trial in lost if trial in self._missing]
        self._missing = missing
        for trial in gone:
            self._losses[trial] += 1
            if self._losses[trial] > MOST_LOSSES:
                self._sweep.fail(trial, f"its job ended {MOST_LOSSES + 1} times without a result; see logs/slurm")
        new = [trial for trial in self._open if trial.name not in self._jobs]
        self._submit([*new, *(trial for trial in gone if self._losses[trial] <= MOST_LOSSES)])
        return not self._open

    def _submit(self, trials):
        if not trials:
            return
        submitit = import_extra("submitit", "slurm")

        executor = submitit.SlurmExecutor(folder=self._sweep.folder / "logs" / "slurm", max_num_timeout=1000)
        executor.update_parameters(**self._parameters())
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # which submitit prints what it raises to
                jobs = executor.map_array(Work(self._sweep), trials)
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"SLURM takes no job: {' '.join(str(error).split())}") from error
        self._jobs |= {trial.name: job.job_id for trial, job in zip(trials, jobs, strict=True)}
        write_atomically(self._path, json.dumps(self._jobs, indent=2) + "\n")

    def _parameters(self):
        options = self._options
        asked = {
            "partition": options.partition,
            "account": options.account,
            "constraint": options.constraint,
            "gpus_per_node": options.gpus,
            "mem": f"{options.memory}GB" if options.memory else "",
        }
        return {
            "job_name": self._sweep.folder.name,
            "time": options.time,
            "nodes": options.nodes,
            "ntasks_per_node": 1,
            "cpus_per_task": options.cpus,
            "array_parallelism": self._at_once,
            "signal_delay_s": min(_SIGNAL_SECONDS, 30 * options.time),
            **{name: value for name, value in asked.items() if value},
        }

    def state(self, trial: Trial) -> str | None:
        """Returns queued or running, of a trial whose job is in SLURM's queue."""
        state = self._queue.get(self._jobs.get(trial.name))
        return None if state is None else "running" if state in ("RUNNING", "COMPLETING") else "queued"

    def stop(self) -> None:
        """Looks after them no more; the jobs go on."""
        self._open = []


def _queue():
    """Returns job -> state of all jobs in the user's queue."""
    command = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%i %T"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError("--executor=slurm: there is no squeue here; it should be run where SLURM is") from None
    if asked.returncode:
        raise UserError(f"SLURM does not answer: {asked.stderr.strip()}")
    return dict(line.split() for line in asked.stdout.splitlines())
