"""What a job on SLURM gets; apart from `slurm`, so that a command line can be read without loading what runs trials."""

import dataclasses
import re

from attnjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """Resources per job, set by `--slurm.FIELD=VALUE`; 0 and "" mean SLURM's default.

    UserError for what could be more than a value in the batch script, where these become lines.
    """

    partition: str = ""
    account: str = ""
    time: int = 60  # minutes; a trial that takes longer is requeued and resumes
    gpus: int = 0  # per node
    cpus: int = 1  # per task
    memory: int = 0  # GB per node
    nodes: int = 1  # with one process each
    constraint: str = ""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 1 if field.name in ("time", "cpus", "nodes") else 0
            if isinstance(value, str) and not re.fullmatch(r"[\w.,:=+*()&|\[\]-]*", value, re.ASCII):
                raise UserError(f"--slurm.{field.name}={value!r}: it should be a name, of letters, digits and -.,:&|")
            if isinstance(value, int) and value < least:
                raise UserError(f"--slurm.{field.name}={value}: it should be {least} or more")
