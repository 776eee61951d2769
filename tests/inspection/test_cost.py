import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from attnjax.inspection.cost import exponent, memory, minimum_times, passes


def test_the_exponent_of_a_power_law_is_found():
    sizes = [10, 30, 100, 1000]
    assert exponent(sizes, [5 * n**1.5 for n in sizes]) == pytest.approx(1.5)
    assert exponent(sizes, [7] * 4) == pytest.approx(0)


def test_memory_is_arguments_results_and_temporaries():
    n, wide = 64, 512
    x = jax.ShapeDtypeStruct((n, n), jnp.float32)
    w = jax.ShapeDtypeStruct((n, wide), jnp.float32)
    # The product (wide, wide) must be complete before it can be multiplied further.
    needed = memory(lambda x, w: (w.T @ x @ w) @ (w.T @ w), x, w)
    arguments_and_result = 4 * (n * n + n * wide + wide * wide)
    assert arguments_and_result + 4 * wide * wide <= needed <= arguments_and_result + 4 * 4 * wide * wide


class Scaled(nn.Module):
    """A matrix product with a kernel (2, 1), times `scale`."""

    @nn.compact
    def __call__(self, x, *, scale=1.0, train):
        return scale * (x @ self.param("kernel", nn.initializers.ones, (2, 1)))


def test_passes_are_the_layer_and_the_gradient_of_its_squares():
    both = passes(Scaled(), scale=2.0)
    variables, x = {"params": {"kernel": jnp.array([[3.0], [4.0]])}}, jnp.array([[1.0, 2.0]])
    assert both["forward"](variables, x).tolist() == [[22.0]]
    of_variables, of_x = both["gradient"](variables, x)  # of (2 x k)^2: 8 x k, times k or x
    assert of_variables["params"]["kernel"].tolist() == [[88.0], [176.0]]
    assert of_x.tolist() == [[264.0, 352.0]]


def test_minimum_times_over_interleaved_rounds(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr("attnjax.inspection.cost.time.perf_counter", lambda: clock[0])

    def function(name, durations):
        durations = iter(durations)

        def call(argument):
            calls.append((name, argument))
            clock[0] += next(durations)

        return call

    functions = {"a": function("a", [0.1, 5, 3, 4]), "b": function("b", [9, 7, 8, 6])}
    found = minimum_times(functions, {"a": (1,), "b": (2,)}, rounds=3)
    assert found == {"a": pytest.approx(3), "b": pytest.approx(6)}  # the first round, which compiles, does not count
    assert calls == [("a", 1), ("b", 2)] * 4
