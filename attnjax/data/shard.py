"""The rows of a global batch that one process loads."""

from dataclasses import dataclass

from attnjax.errors import UserError


@dataclass(frozen=True)
class Shard:
    """Process `index` of `count`; each loads an equal, contiguous block of rows of every global batch."""

    index: int = 0
    count: int = 1

    def rows(self, batch_size: int, name: str = "batch_size") -> slice:
        """Returns this process's rows; UserError, which calls `batch_size` by `name`, if it does not divide."""
        if batch_size < 1 or batch_size % self.count or not 0 <= self.index < self.count:
            raise UserError(f"{name} is {batch_size}: it should be a multiple of the {self.count} process(es)")
        rows = batch_size // self.count
        return slice(self.index * rows, (self.index + 1) * rows)


UNSHARDED = Shard()
