"""Times the choices behind the layers, and whole training steps, on the devices at hand.

python experiments/benchmark.py layouts [--tokens 197 --width 384 --heads 6 --batch 8]
python experiments/benchmark.py step --config configs/fashion_vit.py [--config.model.attention_kernel=xla ...]

`layouts` runs the alternatives in turn, over and over, and prints each one's minimum and its ratio to the fastest.
"""

import argparse
import time
from functools import partial

import flax.linen as nn
import jax
import numpy as np

from attnjax import cli
from attnjax import config as config_lib
from attnjax.errors import UserError
from attnjax.nn.attention import MultiHeadAttention
from attnjax.nn.blocks import MLP
from attnjax.training import parallel, run, state
from attnjax.training.optimizer import make_optimizer, make_schedule
from attnjax.training.step import make_train_step


class _DenseMLP(nn.Module):
    """The same network by `nn.Dense` on (B, N, D)."""

    hidden: int

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(self.hidden)(x)))


def minimum_times(functions: dict, arguments: dict, rounds: int) -> dict[str, float]:
    """Returns the least seconds of each function over `rounds` rounds, in each of which all are run once."""
    best = dict.fromkeys(functions, float("inf"))
    for round_ in range(rounds + 1):  # the first compiles
        for name, function in functions.items():
            began = time.perf_counter()
            jax.block_until_ready(function(*arguments[name]))
            if round_:
                best[name] = min(best[name], time.perf_counter() - began)
    return best


def _show(title, times):
    print(title)
    fastest = min(times.values())
    for name, seconds in times.items():
        print(f"  {name:<42} {seconds * 1e3:9.2f} ms   x{seconds / fastest:.2f}")


def layouts(args) -> None:
    """Compares attention kernels, and the MLP on flattened tokens with the MLP on (B, N, D)."""
    x = jax.random.normal(jax.random.key(0), (args.batch, args.tokens, args.width))
    groups = {
        "attention": {
            f"kernel {kernel}": MultiHeadAttention(args.heads, args.width, kernel=kernel)
            for kernel in ("head_major", "xla")
        },
        "MLP": {"tokens flattened": MLP(4 * args.width), "nn.Dense on (B, N, D)": _DenseMLP(4 * args.width)},
    }
    print(f"{parallel.describe()}; batch {args.batch}, {args.tokens} tokens, width {args.width}, {args.heads} heads")
    for title, modules in groups.items():
        inputs = {name: (module.init(jax.random.key(1), x, train=False), x) for name, module in modules.items()}

        def loss(module, variables, x):
            return (module.apply(variables, x, train=False) ** 2).sum()

        forward = {name: jax.jit(partial(module.apply, train=False)) for name, module in modules.items()}
        gradient = {name: jax.jit(jax.grad(partial(loss, module), argnums=(0, 1))) for name, module in modules.items()}
        _show(f"{title}, forward", minimum_times(forward, inputs, args.rounds))
        _show(f"{title}, gradient", minimum_times(gradient, inputs, args.rounds))


def step(args) -> None:
    """Times the training step of a config on random images."""
    if not args.config:
        raise UserError("step needs --config configs/X.py")
    config = config_lib.load(args.config)
    config_lib.override(config, args.overrides)
    task = run.build_task(config, num_classes=10)
    schedule = make_schedule(config.optimizer, steps=10**6)
    optimizer = make_optimizer(config.optimizer, schedule)
    train_state = state.create(task, optimizer, run.image_shape(config), config.seed, ema=config.ema_decay > 0)
    train_step = parallel.data_parallel(make_train_step(task, optimizer, schedule, config.ema_decay), donate=True)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.normal(size=(config.batch_size, *run.image_shape(config)[1:])).astype(np.float32),
        "label": rng.integers(10, size=config.batch_size).astype(np.int32),
        "mask": np.ones(config.batch_size, bool),
    }
    times = []
    for _ in range(args.rounds + 2):
        began = time.perf_counter()
        train_state, metrics = train_step(train_state, batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - began)
    times = sorted(times[2:])
    median = times[len(times) // 2]
    print(f"{parallel.describe()}; {args.config}, batch {config.batch_size}")
    print(f"step: min {times[0] * 1e3:.1f} ms, median {median * 1e3:.1f} ms, {config.batch_size / median:.0f} images/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["layouts", "step"])
    parser.add_argument("--config", help="for step")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=197)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--heads", type=int, default=6)
    args = cli.parse_args(parser)
    {"layouts": layouts, "step": step}[args.what](args)


if __name__ == "__main__":
    cli.run(main)
