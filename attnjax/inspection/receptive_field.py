"""Receptive fields of convolution and pooling layers, from the jaxpr of any image model."""

import dataclasses
import functools

import flax.linen as nn
from jax.extend import core

from attnjax.inspection.flops import trace


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """The receptive field of one unit of a layer, along (height, width)."""

    name: str  # the layer's module path and operation
    shape: tuple[int, int]  # (H, W) of its feature map
    size: tuple[int, int]  # input pixels that can reach one unit, ignoring the image border
    stride: tuple[int, int]  # input pixels between neighbouring units


@dataclasses.dataclass(frozen=True)
class _Field:
    size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)

    def widen(self, window, stride):
        """A window of k units adds (k - 1) * stride pixels; the strides multiply (Dumoulin & Visin 2016)."""
        size = tuple(s + (k - 1) * j for s, k, j in zip(self.size, window, self.stride, strict=True))
        return _Field(size, tuple(j * t for j, t in zip(self.stride, stride, strict=True)))

    def join(self, other):
        return _Field(tuple(map(max, self.size, other.size)), tuple(map(max, self.stride, other.stride)))


def _convolution(eqn):
    params = eqn.params
    kernel = [eqn.invars[1].aval.shape[axis] for axis in params["dimension_numbers"].rhs_spec[2:]]
    window = [(k - 1) * d + 1 for k, d in zip(kernel, params["rhs_dilation"], strict=True)]
    return window, params["window_strides"]


def _reduce_window(eqn):
    return eqn.params["window_dimensions"][1:3], eqn.params["window_strides"][1:3]


_WINDOWS = {
    "conv_general_dilated": _convolution,
    "reduce_window_max": _reduce_window,
    "reduce_window_sum": _reduce_window,
    "slice": lambda eqn: ((1, 1), (eqn.params["strides"] or (1,) * 4)[1:3]),
}
_LAYERS = {"conv_general_dilated": "convolution", "reduce_window_max": "max pool", "reduce_window_sum": "average pool"}


def _walk(jaxpr, inputs, rows):
    """Propagates fields from a jaxpr's inputs to its outputs; None for variables that do not depend on the image."""
    fields = {var: field for var, field in zip(jaxpr.invars, inputs, strict=True) if field is not None}

    def field_of(var):
        return None if isinstance(var, core.Literal) else fields.get(var)

    for eqn in jaxpr.eqns:
        seen = [field_of(var) for var in eqn.invars]
        known = [field for field in seen if field is not None]
        if not known:
            continue
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        if inner is not None:
            inner = getattr(inner, "jaxpr", inner)
            fields.update(zip(eqn.outvars, _walk(inner, seen, rows), strict=True))
            continue
        field = functools.reduce(_Field.join, known)
        if not all(len(var.aval.shape) == 4 for var in eqn.outvars):
            continue  # not a feature map any more: flattened, or pooled over all positions
        if eqn.primitive.name in _WINDOWS:
            field = field.widen(*_WINDOWS[eqn.primitive.name](eqn))
        if eqn.primitive.name in _LAYERS:
            # Drop the model's own name, and methods such as "ResNet.map".
            parts = str(eqn.source_info.name_stack).split("/")[1:]
            path = "/".join(part for part in parts if "." not in part)
            name = f"{path} {_LAYERS[eqn.primitive.name]}"
            rows.append(ReceptiveField(name, tuple(eqn.outvars[0].aval.shape[1:3]), field.size, field.stride))
        fields |= dict.fromkeys(eqn.outvars, field)
    return [field_of(var) for var in jaxpr.outvars]


def receptive_fields(model: nn.Module, image_shape: tuple[int, int, int]) -> list[ReceptiveField]:
    """Returns the receptive field of each convolution and pooling layer, in order of computation, by tracing alone.

    `image_shape` is (H, W, C). Where branches join, the larger field counts.
    """
    jaxpr = trace(model, image_shape)
    rows: list[ReceptiveField] = []
    _walk(jaxpr, [None] * (len(jaxpr.invars) - 1) + [_Field()], rows)
    return rows
