"""Times layers, training steps and decoding on this machine's devices, in turn with their alternatives."""

from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from attnjax import config as config_lib
from attnjax import models
from attnjax.decoding import Options
from attnjax.errors import UserError
from attnjax.inspection.cost import minimum_times, passes
from attnjax.models.transformer import TRANSFORMER_SIZES, Transformer
from attnjax.nn.attention import MultiHeadAttention
from attnjax.nn.blocks import MLP
from attnjax.nn.kernels import resolve_precision
from attnjax.objectives.classification import ClassificationObjective
from attnjax.objectives.sequence import SequenceObjective
from attnjax.reports import figures
from attnjax.training import devices, state
from attnjax.training.optimizer import OptimizerOptions, make_optimizer, make_schedule
from attnjax.training.step import TrainStep

TOKENS = {name: jax.ShapeDtypeStruct((1, 4), np.int32) for name in ("source", "target")}
UNITS = {"classification": "images", "translation": "tokens"}


class _DenseMLP(nn.Module):
    """The same network by `nn.Dense` on (B, N, D)."""

    hidden: int

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(self.hidden)(x)))


def _show(title, times):
    print(title)
    fastest = min(times.values())
    for name, seconds in times.items():
        print(f"  {name:<42} {seconds * 1e3:9.2f} ms   x{seconds / fastest:.2f}")


def layouts(args) -> None:
    """Compares attention kernels, and the MLP on flattened tokens with the MLP on (B, N, D)."""
    x = jax.random.normal(jax.random.key(0), (args.batch, args.tokens, args.width))
    groups: dict[str, dict[str, nn.Module]] = {
        "attention": {
            f"kernel {kernel}": MultiHeadAttention(args.heads, args.width, kernel=kernel)
            for kernel in ("head_major", "xla")
        },
        "MLP": {"tokens flattened": MLP(4 * args.width), "nn.Dense on (B, N, D)": _DenseMLP(4 * args.width)},
    }
    print(f"{devices.make()}; batch {args.batch}, {args.tokens} tokens, width {args.width}, {args.heads} heads")
    for title, modules in groups.items():
        inputs = {name: (module.init(jax.random.key(1), x, train=False), x) for name, module in modules.items()}
        for direction in ("forward", "gradient"):
            functions: dict[str, Callable] = {
                name: jax.jit(passes(module)[direction]) for name, module in modules.items()
            }
            _show(f"{title}, {direction}", minimum_times(functions, inputs, args.rounds))


def _classification(config, length):
    model = models.build(config.model, num_classes=10, dtype=resolve_precision(config.precision))
    objective = ClassificationObjective(model, config.label_smoothing)
    shape, rng = (*config.data.image_size, config.data.channels), np.random.default_rng(0)
    batch = {
        "image": rng.normal(size=(config.batch_size, *shape)).astype(np.float32),
        "label": rng.integers(10, size=config.batch_size).astype(np.int32),
        "mask": np.ones(config.batch_size, bool),
    }
    return objective, {"image": jax.ShapeDtypeStruct((1, *shape), np.float32)}, batch


def _translation(config, length):
    size = config.data.vocabulary.size
    dtype = resolve_precision(config.precision)
    model = models.build(config.model, dtype=dtype, source_vocabulary=size, target_vocabulary=size)
    rows = max(1, config.data.batching.max_tokens // length)
    rng = np.random.default_rng(0)
    batch = {
        "source": rng.integers(4, size, (rows, length)).astype(np.int32),
        "target": rng.integers(4, size, (rows, length + 1)).astype(np.int32),
        "mask": np.ones(rows, bool),
    }
    return SequenceObjective(model, config.label_smoothing, config.smoothing_form), TOKENS, batch


EXAMPLES = {"classification": _classification, "translation": _translation}


def _step(config, length):
    """Returns a function that takes a training step on random data of a config's shapes, and the number of rows."""
    objective, example, batch = EXAMPLES[config.task](config, length)
    options = OptimizerOptions(**config.optimizer)
    schedule = make_schedule(options, steps=10**6)
    optimizer, on = make_optimizer(options, schedule), devices.make()
    train_state = on.place(state.create(objective, optimizer, example, config.seed, ema=config.ema_decay > 0))
    train_step = on.train_step(TrainStep(objective, optimizer, schedule, config.ema_decay, config.accumulate))

    def step():
        nonlocal train_state
        train_state, metrics = train_step(train_state, batch)
        return metrics

    return step, len(batch["mask"])


def load_configs(args) -> dict[str, ConfigDict]:
    """Returns the configs to time, by their arguments on the command line."""
    if not args.config:
        raise UserError(f"{args.what} needs --config configs/X.py")
    configs = {path: config_lib.load(path) for path in args.config}
    for config in configs.values():
        config_lib.override(config, args.overrides)
    return configs


def _step_configs(args) -> dict[str, ConfigDict]:
    configs = load_configs(args)
    for config in configs.values():
        if config.task not in EXAMPLES:
            raise UserError(f"step has no random data for task={config.task}, only for: {', '.join(EXAMPLES)}")
    if args.figure and (len(args.length) < 2 or any(config.task != "translation" for config in configs.values())):
        raise UserError("--figure needs configs of translation and several lengths, to plot their time against")
    return configs


def step(args) -> None:
    """Times the training steps of configs on random data; several configs in turn, at each sentence length."""
    configs = _step_configs(args)
    units = {path: UNITS[config.task] for path, config in configs.items()}
    print(devices.make())
    rows = []
    for length in args.length:
        steps, counts = {}, {}
        for path, config in configs.items():
            steps[path], count = _step(config, length)
            counts[path] = count * (length if units[path] == "tokens" else 1)
        times = minimum_times(steps, dict.fromkeys(steps, ()), args.rounds)
        _show(f"training step{f', {length} tokens' if 'tokens' in units.values() else ''}", times)
        for path, seconds in times.items():
            print(f"  {path:<42} {counts[path] / seconds:9.0f} {units[path]}/s")
            rate = {f"{units[path]}_per_second": counts[path] / seconds}
            rows.append({"config": path, "length": length, "milliseconds": 1e3 * seconds, **rate})
    if args.figure:
        figures.save(args.figure, figures.step_times(rows), rows)


def generate(args) -> None:
    """Times decoding with a base Transformer of random weights, from a source of 32 tokens."""
    objective = SequenceObjective(Transformer(8000, 8000, **TRANSFORMER_SIZES["base"]))
    variables = objective.init(jax.random.key(0), TOKENS)
    source = np.random.default_rng(0).integers(4, 8000, (args.batch, 32)).astype(np.int32)
    length = args.new_tokens + 1  # eos, which min_length allows nowhere else
    options = Options(max_length=length, min_length=length, beam_size=args.beam)

    def translate(variables, source):
        return objective.generate(*variables, {"source": source}, options)

    decode = devices.make().per_example(translate)
    assert (decode(variables, source).lengths == length).all()
    print(devices.make())
    name = f"batch {args.batch}, beam {args.beam}, {args.new_tokens} tokens"
    _show("generate, Transformer base", minimum_times({name: decode}, {name: (variables, source)}, args.rounds))
