"""Receptive fields, read from the traced computation of any convolutional model."""

import dataclasses

import jax
import numpy as np
from jax.extend import core


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """What one unit of a layer sees, along (height, width).

    name: the layer's path, and its operation. shape: of the map, (H, W). size: pixels of the input that can reach one
    unit, ignoring the border. stride: pixels of the input between neighbouring units.
    """

    name: str
    shape: tuple[int, int]
    size: tuple[int, int]
    stride: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class _Field:
    size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)

    def widen(self, window, stride):
        """Dumoulin & Visin (2016): a window of k units adds (k - 1) * stride pixels, then the stride multiplies."""
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


def _strided_slice(eqn):
    return (1, 1), (eqn.params["strides"] or (1,) * 4)[1:3]


_WINDOWS = {
    "conv_general_dilated": _convolution,
    "reduce_window_max": _reduce_window,
    "reduce_window_sum": _reduce_window,
    "slice": _strided_slice,
}
_LAYERS = {"conv_general_dilated": "convolution", "reduce_window_max": "max pool", "reduce_window_sum": "average pool"}


def _walk(jaxpr, inputs, rows):
    """Carries fields from a jaxpr's inputs to its outputs; variables without one do not depend on the image's place."""
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
            for var, field in zip(eqn.outvars, _walk(inner, seen, rows), strict=True):
                fields[var] = field
            continue
        field = known[0]
        for other in known[1:]:
            field = field.join(other)
        if not all(len(var.aval.shape) == 4 for var in eqn.outvars):
            continue  # no longer a map: flattened or pooled over all positions
        if eqn.primitive.name in _WINDOWS:
            field = field.widen(*_WINDOWS[eqn.primitive.name](eqn))
        if eqn.primitive.name in _LAYERS:
            # Without the parts for methods, like "ResNet" and "ResNet.map".
            parts = str(eqn.source_info.name_stack).split("/")[1:]
            path = "/".join(part for part in parts if "." not in part)
            name = f"{path} {_LAYERS[eqn.primitive.name]}"
            rows.append(ReceptiveField(name, tuple(eqn.outvars[0].aval.shape[1:3]), field.size, field.stride))
        fields.update({var: field for var in eqn.outvars})
    return [field_of(var) for var in jaxpr.outvars]


def receptive_fields(model, image_shape: tuple[int, int, int]) -> list[ReceptiveField]:
    """Returns the receptive field of each convolution and pooling layer of `model`, in order of computation.

    Args:
      model: a linen image model; where branches meet, the larger field counts.
      image_shape: (H, W, C). No arrays are made.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    closed = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, image)
    inputs = [None] * (len(closed.jaxpr.invars) - 1) + [_Field()]
    rows = []
    _walk(closed.jaxpr, inputs, rows)
    return rows
