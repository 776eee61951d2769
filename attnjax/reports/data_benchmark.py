"""Times the data pipeline alone: examples per second by number of threads, and the share of each stage."""

import cProfile
import dataclasses
import itertools
import pstats
import resource
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from attnjax import config as config_lib
from attnjax import tasks
from attnjax.data.images import pipeline
from attnjax.reports.benchmarks import load_configs
from attnjax.runs.experiment import make_devices
from attnjax.tasks.captioning import CaptioningTask
from attnjax.tasks.classification import ClassificationTask

# Stage -> the functions whose time it has, of those that `pipeline.training_batch` calls.
STAGES = {
    "read": ("fetch",),
    "decode": ("decode_image",),
    "crop and resize": ("random_resized_crop", "fit_batch", "pad_crop"),
    "colour": ("color_jitter", "randaugment"),
}
PROFILED = 512  # images


def data(args) -> None:
    """Times the training batches of configs: images or tokens per second, over all processes."""
    for path, config in load_configs(args).items():
        config_lib.check(config)
        print(path)
        task = tasks.for_training(config, make_devices(config), None)
        if not isinstance(task, ClassificationTask | CaptioningTask):
            _show("reading", _rate(task, args.seconds), task.unit)
            continue
        rates = {}
        for workers in args.workers:
            rates[workers] = _rate(dataclasses.replace(task, workers=workers), args.seconds)
            name = f"{workers} thread{'s' * (workers > 1)}" if workers else "a thread per core"
            _show(name, rates[workers], task.unit, f"   x{rates[workers] / rates[args.workers[0]]:.2f}")
        if isinstance(task, ClassificationTask):
            _show_stages(task, config)
        print(f"  peak memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def _show(name, rate, unit, more=""):
    print(f"  {name:<30} {rate:10,.0f} {unit}/s{more}")


def _rate(task, seconds):
    """Returns examples (or target tokens) per second, after the first batch."""
    batches = task.batches()
    next(batches)
    began, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        count += _examples(next(batches), task.unit)
    batches.close()
    return count / passed * jax.process_count()


def _examples(batch, unit):
    return int(batch["mask"].sum() if unit == "images" else (batch["target"][:, 1:] != 0).sum())


def _show_stages(task: ClassificationTask, config: ConfigDict) -> None:
    """Prints the time per image of each stage on one thread, and on the device. What is in memory is not read."""
    source, count = task.data.train, min(PROFILED, len(task.data.train))
    profile, rng = cProfile.Profile(), np.random.default_rng(config.seed)
    indices = np.resize(rng.permutation(len(source))[:count], PROFILED)
    options = (slice(0, PROFILED), rng, task.image_format, task.augmentation, 1)
    batch = profile.runcall(pipeline.training_batch, source, indices, *options)
    times = dict.fromkeys([*STAGES, "batch"], 0.0)
    entries = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    for (_, _, function), (_, _, _, total, _) in entries.items():
        for stage, functions in STAGES.items():
            times[stage] += total * (function in functions)
        times["batch"] += total * (function == "training_batch")
    times["batch"] -= sum(times[stage] for stage in STAGES)
    times["copy to the device"] = _seconds(lambda: task.devices.global_batch(batch))
    placed, prepare = task.devices.global_batch(batch), jax.jit(task.prepare)
    jax.block_until_ready(prepare(placed))
    times["on the device"] = _seconds(lambda: prepare(placed))
    whole = sum(times.values())
    for stage, seconds in times.items():
        print(f"    {stage:<28} {1e6 * seconds / PROFILED:8.1f} us per image  {seconds / whole:6.1%}")


def _seconds(function):
    """Returns the shortest of a few times."""
    times = []
    for _ in itertools.repeat(None, 5):
        began = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - began)
    return min(times)
