"""What values a field of a config may have, and the check of a complete config."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from attnjax.errors import UserError, nearest
from attnjax.models import MODELS

MAX_INT = 2**31 - 1  # what an int32 holds
MAX_FLOAT = 1e30  # well inside float32


class Rule(NamedTuple):
    """holds: whether a value is allowed. right: what to say of one that is not."""

    holds: Callable[[Any], bool]
    right: Callable[[Any], str]


class Field(NamedTuple):
    """A field of the schema."""

    default: Any
    rule: Rule


def integers(low: int, high: int = MAX_INT, *, also: Iterable[int] = ()) -> Rule:
    """Allows whole numbers from `low` to `high`, and those of `also`."""
    also = tuple(also)
    others = "".join(f", or {x}" for x in also)

    def right(x):
        return f"it should be {f'at most {high:,}' if type(x) is int and x > high else f'{low} or more{others}'}"

    return Rule(lambda x: type(x) is int and (low <= x <= high or x in also), right)


def numbers(low: float, high: float = MAX_FLOAT, *, above: bool = False, below: bool = False) -> Rule:
    """Allows finite numbers from `low` to `high`; with `above` and `below` not those limits themselves."""
    span = f"{'above' if above else 'from'} {low:g} {'and below' if below else 'to'} {high:g}"

    def holds(x):
        inside = type(x) in (int, float) and low <= x <= high
        return inside and not (above and x == low) and not (below and x == high)

    return Rule(holds, lambda x: f"it should be {span}")


def choice(*names: str) -> Rule:
    """Allows one of some names."""
    return Rule(lambda x: x in names, lambda x: nearest(shown(x), names))


def each(rule: Rule, low: int = 0, high: int = 1000) -> Rule:
    """Allows `low` to `high` values that `rule` allows."""
    count = f"{low}" if low == high else f"{low} to {high:,}"

    def holds(x):
        return isinstance(x, tuple | list) and low <= len(x) <= high and all(map(rule.holds, x))

    def right(x):
        if not isinstance(x, tuple | list) or not low <= len(x) <= high:
            return f"it should have {count} values"
        wrong = next(item for item in x if not rule.holds(item))
        return f"of {shown(wrong)}: {rule.right(wrong)}"

    return Rule(holds, right)


def words(text: str, holds: Callable[[Any], bool]) -> Rule:
    """Allows what `holds` says; `text` completes "it should be"."""
    return Rule(holds, lambda x: f"it should be {text}")


def _is_text(x):
    """Whether this is a string that may be the path of a file."""
    try:
        sizes = [len(part.encode()) for part in x.split("/")]
    except (AttributeError, UnicodeEncodeError):
        return False
    printed = x.splitlines() in ([], [x]) and not any(ord(c) < 32 for c in x)
    return printed and sum(sizes) < 2048 and max(sizes) < 256


def _is_plain(x):
    """Whether this is text, a flag, or a number that a float32 or an int32 holds; or a tuple of such."""
    if isinstance(x, tuple | list):
        return all(map(_is_plain, x))
    if type(x) is float:
        return -MAX_FLOAT <= x <= MAX_FLOAT
    return abs(x) <= MAX_INT if type(x) is int else x is None or type(x) is bool or _is_text(x)


FLAG = words("true or false", lambda x: type(x) is bool)
TEXT = words("one line of UTF-8, of at most 255 bytes between slashes", _is_text)
NAME = words("a name, not empty", lambda x: _is_text(x) and x != "")
PLAIN = words("finite, or one line of text", _is_plain)
COUNT = integers(0)
POSITIVE = integers(1)
SHARE = numbers(0, 1)
BELOW_ONE = numbers(0, 1, below=True)

# Of a model's fields, which the modules of attnjax/models explain: models share their names. Of a field that has one
# value per stage or branch, the rule is for each of them.
_WIDTH, _DEPTH = integers(1, 2**18), integers(0, 1000)
MODEL_RULES: dict[str, Rule] = {
    **dict.fromkeys(("width", "widths", "embedding", "hidden", "features", "mlp_dim"), _WIDTH),
    **dict.fromkeys(("key_size", "pre_logits"), integers(0, 2**18)),  # 0: none
    **dict.fromkeys(("depth", "depths", "encoder_depth", "decoder_depth"), _DEPTH),
    **dict.fromkeys(("stages", "layers", "blocks"), integers(1, 1000)),
    **dict.fromkeys(("num_heads", "patch_size", "patch_sizes", "window"), integers(1, 2**14)),
    **dict.fromkeys(("dropout", "hidden_dropout", "attention_dropout", "drop_path"), BELOW_ONE),
    **dict.fromkeys(("kernel_std", "position_std"), numbers(0, 1000)),
    "mlp_ratio": numbers(0, 1000, above=True),
    "image_scales": numbers(0, 1000, above=True),
    "epsilon": numbers(0, 1, above=True),
    "max_length": integers(2, 2**20),  # tokens, counting eos
}


def check(config: ConfigDict, fields: dict[str, Any], where: str = "") -> None:
    """Raises UserError for the first value that its field does not allow; `fields` is a group of the schema."""
    for name, field in fields.items():
        if name not in config:
            raise UserError(f"there is no {where}{name}, which a config of this task needs")
        if not isinstance(field, Field) and not isinstance(config[name], ConfigDict):
            raise UserError(f"{where}{name}={shown(config[name])}: it should be a group of fields")
        if name == "model":
            check_model(config[name], f"{where}model.")
        elif isinstance(field, Field):
            check_value(f"{where}{name}", config[name], field.rule)
        else:
            check(config[name], field, f"{where}{name}.")


def check_model(model: ConfigDict, where: str) -> None:
    """Raises UserError for the first value of a model's fields that is not allowed.

    A user's own model may use these names for anything, so its numbers only have to be finite.
    """
    ours = MODELS.get(model.get("name"))
    for name, value in model.items():
        if isinstance(value, ConfigDict):
            check_model(value, f"{where}{name}.")
            continue
        rule, default = PLAIN, value
        if ours:
            default = getattr(ours.module, name, value)
            rule = FLAG if type(default) is bool else MODEL_RULES.get(name, PLAIN)
        if isinstance(default, tuple | list) and rule is not PLAIN:
            rule = each(rule, 0 if name == "widths" else 1)
        check_value(f"{where}{name}", value, rule)


def check_value(name: str, value: Any, rule: Rule) -> None:
    """Raises UserError that names the field, its value and what would be right."""
    if not rule.holds(value):
        raise UserError(f"{name}={shown(value)}: {rule.right(value)}")


def shown(value: Any) -> str:
    """Returns a value as a message shows it: on one line, and cut where it is long."""
    try:
        text = value if isinstance(value, str) and value.isprintable() else repr(value)
    except ValueError:  # of an int with thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."
