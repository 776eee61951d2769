"""Runs the trials of a sweep on SLURM as a job array, with submitit."""

import contextlib
import getpass
import io
import json
import math
import signal
import subprocess
import time
from collections.abc import Sequence

from attnjax.errors import UserError, import_extra
from attnjax.files import write_atomically
from attnjax.formatting import file_name
from attnjax.runs.records import read_record
from attnjax.sweeps.attempt import Attempt
from attnjax.sweeps.options import Options
from attnjax.sweeps.trials import Sweep, Trial

JOBS_FILE = "jobs.json"
POLL_SECONDS = 2.0
MAX_SILENCE = 600.0  # seconds that SLURM may not answer for, as happens under load or during a restart
MAX_LOST_JOBS = 3  # per trial, before it counts as failed
_SIGNAL_SECONDS = 90  # warning before a job's time limit, to save a checkpoint


class Work:
    """The function of a job: resumes one trial and runs it to its end.

    submitit calls `checkpoint` on SIGUSR2, which SLURM sends before the time limit.
    """

    def __init__(self, sweep: Sweep):
        self._sweep = sweep
        self._attempt: Attempt | None = None
        self._preempted = False

    def __call__(self, trial: Trial) -> None:
        if not self._sweep.commands(trial):
            return
        self._attempt = Attempt(self._sweep, trial)
        signal.signal(signal.SIGTERM, self._preempt)
        while not self._ended(self._attempt):
            time.sleep(0.2)
        while self._preempted:  # SLURM requeues a preempted job only if it does not exit by itself
            time.sleep(1)

    def _preempt(self, number, frame):
        self._preempted = True
        if self._attempt:
            self._attempt.stop()

    def _ended(self, attempt):
        """Polls with SIGUSR2 blocked, as `checkpoint`, its handler, polls too."""
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        try:
            return attempt.poll()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])

    def checkpoint(self, trial: Trial):
        """Stops the trial, which saves a checkpoint, and returns this work for submitit to requeue."""
        import submitit  # here, because it reconfigures the program's logging

        if self._attempt:
            self._attempt.stop()
            while not self._attempt.poll():
                time.sleep(0.2)
        return submitit.helpers.DelayedSubmission(Work(self._sweep), trial)


class Slurm:
    """Executor that submits trials as SLURM jobs, at most `at_once` running; a restarted sweep finds its jobs again."""

    def __init__(self, sweep: Sweep, trials: Sequence[Trial], options: Options, at_once: int):
        self._sweep, self._options, self._at_once = sweep, options, at_once
        self._path = sweep.folder / JOBS_FILE
        if not str(sweep.folder.absolute()).isprintable():  # the batch script has it in its lines
            raise UserError(f"--workdir={str(sweep.folder)!r}: SLURM needs a folder without line breaks in its name")
        damage: list[str] = []
        self._jobs: dict[str, str] = read_record(
            self._path, {trial.name: str for trial in trials}, damage
        )  # trial -> job
        if damage:
            raise UserError(f"{damage[0]}. It names the jobs that were submitted: cancel them, and remove the file")
        self._open = list(trials)
        self._lost_jobs = dict.fromkeys(trials, 0)
        self._missing: set[Trial] = set()  # whose jobs were not in the queue at the last poll
        self._queue: dict[str, str] = {}  # job -> state
        self._polled = self._answered = -math.inf  # when SLURM was last asked, and when it last answered

    def poll(self) -> bool:
        """Submits trials without a job; returns whether all have ended. Queries SLURM at most every POLL_SECONDS."""
        now = time.monotonic()
        if now - self._polled < POLL_SECONDS:
            return not self._open
        self._polled = now
        try:
            self._queue, self._answered = _queue(), now
        except UserError:
            if now - self._answered > MAX_SILENCE:
                raise
            return not self._open
        self._open = [trial for trial in self._open if self._sweep.progress(trial).state not in ("finished", "failed")]
        new = [trial for trial in self._open if trial.name not in self._jobs]
        self._submit([*new, *self._lost()])
        return not self._open

    def _lost(self):
        """Returns trials to submit again because their job is gone; those with more than MAX_LOST_JOBS fail."""
        missing = {trial for trial in self._open if self._jobs.get(trial.name) not in self._queue}
        # Missing in two polls in a row: on a network file system a trial's files may appear after the job's end.
        lost = [trial for trial in self._open if trial in missing & self._missing and trial.name in self._jobs]
        self._missing = missing
        for trial in lost:
            self._lost_jobs[trial] += 1
            if self._lost_jobs[trial] > MAX_LOST_JOBS:
                self._sweep.fail(trial, f"its job ended {MAX_LOST_JOBS + 1} times without a result; see logs/slurm")
        return [trial for trial in lost if self._lost_jobs[trial] <= MAX_LOST_JOBS]

    def _submit(self, trials):
        if not trials:
            return
        submitit = import_extra("submitit", "slurm")
        executor = submitit.SlurmExecutor(folder=self._sweep.folder / "logs" / "slurm", max_num_timeout=1000)
        executor.update_parameters(**self._parameters())
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # submitit also prints the error that it raises
                jobs = executor.map_array(Work(self._sweep), trials)
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"SLURM rejected the jobs: {' '.join(str(error).split())}") from error
        self._jobs |= {trial.name: job.job_id for trial, job in zip(trials, jobs, strict=True)}
        write_atomically(self._path, json.dumps(self._jobs, indent=2) + "\n")

    def _parameters(self):
        options = self._options
        memory = f"{options.memory}GB" if options.memory else ""
        optional = {name: getattr(options, name) for name in ("partition", "account", "constraint")}
        optional |= {"gpus_per_node": options.gpus, "mem": memory}
        return {
            "job_name": file_name(self._sweep.folder.absolute().name),
            "time": options.time,
            "nodes": options.nodes,
            "ntasks_per_node": 1,
            "cpus_per_task": options.cpus,
            "array_parallelism": self._at_once,
            "signal_delay_s": min(_SIGNAL_SECONDS, 30 * options.time),
            **{name: value for name, value in optional.items() if value},
        }

    def state(self, trial: Trial) -> str | None:
        """Returns "queued" or "running" if the trial's job is in SLURM's queue, else None."""
        state = self._queue.get(self._jobs.get(trial.name, ""))
        return None if state is None else "running" if state in ("RUNNING", "COMPLETING") else "queued"

    def stop(self) -> None:
        """Stops monitoring; submitted jobs keep running."""
        self._open = []


def _queue() -> dict[str, str]:
    """Returns job -> state for the user's jobs."""
    command = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%i %T"]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError("--executor=slurm: squeue not found; run this on a machine with SLURM") from None
    if result.returncode:
        raise UserError(f"SLURM does not answer: {result.stderr.strip()}")
    return dict(line.split() for line in result.stdout.splitlines())
