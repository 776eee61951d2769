"""The splits of a config's data source: what a training opens, and any other on demand."""

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
from ml_collections import ConfigDict

from attnjax.data.shard import Shard
from attnjax.errors import UserError

Source = TypeVar("Source", bound=Any)  # has __len__ and content()


@dataclasses.dataclass(frozen=True)
class Splits(Generic[Source]):
    """A data source. opened: "train" and perhaps "validation" during training, else nothing.

    spec: `config.data.source`. names: "train" -> "train[:90%]", those in the config. test: the split to evaluate on
    later, "" for none. open: opens a split by its name.
    """

    spec: str
    names: dict[str, str]
    test: str
    open: Callable[[str], Source]
    opened: dict[str, Source] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_config(cls, data: ConfigDict, open_split: Callable[[str], Source]) -> "Splits[Source]":
        """Returns the splits of a config's `data` group, none of them opened."""
        names = {name: data[name] for name in ("train", "validation") if data[name]}
        return cls(data.source, names, data.test, open_split)

    def for_training(self) -> "Splits[Source]":
        """Returns them with those opened that a training reads; UserError if the data is missing or damaged."""
        return dataclasses.replace(self, opened={name: self.open(split) for name, split in self.names.items()})

    @property
    def train(self) -> Source:
        return self.opened["train"]

    @property
    def validation(self) -> Source | None:
        return self.opened.get("validation")

    def header(self, describe: Callable[[Source], str]) -> list[str]:
        """Returns a line on each open split, by what `describe` says of it, and on a test split that is missing."""
        lines = [
            f"{name:<11} {describe(source)}, {self.spec}, {self.names[name]}" for name, source in self.opened.items()
        ]
        try:
            if self.test:
                self.open(self.test)
        except UserError as error:
            lines.append(f"test        none: {error}")
        return lines

    def fingerprint(self, seed: int) -> dict[str, str]:
        """Returns field -> value of what decides which examples a training reads.

        `processes` is there for the reader: any number of them shares the same batches.
        """
        found = {"seed": str(seed), "processes": str(jax.process_count())}
        for name, source in self.opened.items():
            found[name] = f"{self.names[name]} of {self.spec}, {len(source):,} examples"
            found[f"{name} content"] = source.content()
        return found


def this_shard() -> Shard:
    """Returns the rows of global batches that this process brings."""
    return Shard(jax.process_index(), jax.process_count())
