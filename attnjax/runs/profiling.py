"""A trace of some training steps, for TensorBoard's profiler and for Perfetto (ui.perfetto.dev)."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from attnjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Profile:
    """The steps `first` to `last`, both traced; the trace is written below `folder`."""

    first: int
    last: int
    folder: Path

    @classmethod
    def parse(cls, text: str, workdir: Path) -> "Profile":
        """Returns the profile that "FIRST:LAST" asks for; UserError for anything else."""
        first, _, last = text.partition(":")
        if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
            raise UserError(f"--profile {text}: it should be the first and the last step to trace, like 20:25")
        return cls(int(first), int(last), workdir / "profile")

    def check(self, steps: range) -> None:
        """Raises UserError if a training that takes these steps does not take all that are to be traced."""
        if self.first not in steps or self.last not in steps:
            taken = f"takes steps {steps[0]:,} to {steps[-1]:,}" if steps else "is finished"
            raise UserError(f"--profile {self.first}:{self.last}: this training {taken}")

    def before(self, step: int) -> None:
        """Begins the trace before its first step."""
        if step == self.first:
            jax.profiler.start_trace(str(self.folder), create_perfetto_trace=True)

    def after(self, step: int, results: Any) -> bool:
        """Ends the trace after its last step, once the results are computed; returns whether it did."""
        if step != self.last:
            return False
        jax.block_until_ready(results)
        jax.profiler.stop_trace()
        return True
