import numpy as np
import pytest

from attnjax.errors import UserError
from attnjax.inspection.peaks import PEAKS, peak_tflops
from attnjax.runs import monitor as monitor_lib
from attnjax.runs.monitor import Monitor
from attnjax.runs.profiling import Profile


class Log:
    """Keeps what is written."""

    def __init__(self):
        self.rows = []

    def write(self, step, split, values):
        self.rows.append({"step": step, **values})


def metrics(loss, images):
    one = np.float32(1)
    return {
        "loss": (np.float32(loss * images), np.float32(images)),
        "gradient_norm": (one, one),
        "learning_rate": (one, one),
    }


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(monitor_lib.time, "perf_counter", lambda: now[0])
    return now


def test_a_log_line_has_the_speed_since_the_line_before(clock):
    log = Log()
    monitor = Monitor(log, "images", {}, peak=10.0)
    for step in range(1, 7):
        clock[0] += 0.5
        monitor.add(step, {}, metrics(2.0, 64), operations=2 * 10**12, waited=0.1)
        if step % 2 == 0:
            monitor.close_window(step)
        monitor.settle()
    assert [row["step"] for row in log.rows] == [2, 4, 6]
    assert "images_per_second" not in log.rows[0]  # it would include the compilation
    for row in log.rows[1:]:  # two steps in a second
        assert row["images_per_second"] == pytest.approx(128)
        assert row["tflops_per_second"] == pytest.approx(4)
        assert row["mfu"] == pytest.approx(0.4)
        assert row["data_wait"] == pytest.approx(0.2)


def test_without_a_known_peak_there_is_no_utilization(clock):
    log = Log()
    monitor = Monitor(log, "images", {})
    for step in (1, 2):
        clock[0] += 1
        monitor.add(step, {}, metrics(1.0, 8), operations=10**9)
        monitor.close_window(step)
        monitor.settle()
    assert "mfu" not in log.rows[1] and log.rows[1]["tflops_per_second"] == pytest.approx(1e-3)


def test_peaks_are_of_the_precision():
    assert peak_tflops("NVIDIA H100 80GB HBM3", "bfloat16") == 989.4
    assert peak_tflops("NVIDIA H100 80GB HBM3", "float32") == 494.7
    assert peak_tflops("cpu", "float32") is None
    assert all(single is None or single <= half for half, single in PEAKS.values())


@pytest.mark.parametrize("text", ["", "3", "5:3", "0:2", "a:b", "-1:4"])
def test_a_bad_profile_is_refused(text, tmp_path):
    with pytest.raises(UserError, match="it should be the first and the last step to trace, like 20:25"):
        Profile.parse(text, tmp_path)


def test_a_profile_of_steps_that_are_not_taken_is_refused(tmp_path):
    profile = Profile.parse("20:25", tmp_path)
    profile.check(range(1, 26))
    with pytest.raises(UserError, match="--profile 20:25: this training takes steps 1 to 24"):
        profile.check(range(1, 25))
    with pytest.raises(UserError, match="--profile 20:25: this training is finished"):
        profile.check(range(0))
