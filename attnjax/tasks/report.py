"""What a test of a model comes to."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Report:
    """Metrics of a split, and what should be said and kept with them.

    examples: what was measured -> how many, like {"images": 360}. metrics: name -> value. notes: name -> how that
    metric was computed. files: the end of a file's name -> its text, such as all translations.
    """

    examples: dict[str, int]
    metrics: dict[str, float]
    notes: dict[str, str] = dataclasses.field(default_factory=dict)
    files: dict[str, str] = dataclasses.field(default_factory=dict)
