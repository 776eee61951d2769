"""The result of testing a model on a split."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class TestReport:
    """The metrics of a split, and what should be printed and kept with them.

    examples: unit -> number of examples, like {"images": 360}. metrics: name -> value. notes: name -> how that metric
    was computed. files: suffix -> text of a file to write beside the metrics, such as all translations.
    """

    __test__ = False  # not a test class of pytest's

    examples: dict[str, int]
    metrics: dict[str, float]
    notes: dict[str, str] = dataclasses.field(default_factory=dict)
    files: dict[str, str] = dataclasses.field(default_factory=dict)
