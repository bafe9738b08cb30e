"""PaiNN's message step as one operation with exact first and second derivatives, in C++ (painn_message.cpp).

With phi_e = W basis_e, j the source of edge e, u its direction, s the features that atoms send (three parts) and v their vectors:

    scalar_sum_i = sum_e s_j0 phi_e0          vector_sum_i = sum_e s_j1 phi_e1 u_e + s_j2 phi_e2 v_j

(Schütt, Unke, Gastegger, DOI 10.48550/arXiv.2102.03150, eq. 7 and 8).  The sums are linear in s, v, u, W and basis, each alone:
with cotangents a, b of the sums, T = <a, scalar_sum> + <b, vector_sum> gives the first derivatives as its gradient, and the
derivative of T along directions of s, v, basis and u, differentiated again, the second ones.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ..native import library

_SOURCE = Path(__file__).with_suffix(".cpp")
_FORWARD, _BACKWARD, _DOUBLE_BACKWARD = range(3)
_THREADED = 1 << 22  # edges x features from which threads are worth their start


class _Arguments(ctypes.Structure):
    """As in the C++ source."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("edges", "atoms", "width", "radial", "parts", "threads")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "source", "target", "features", "vectors", "basis", "unit", "filter", "grad_scalar", "grad_vector",
                "dot_features", "dot_vectors", "dot_basis", "dot_unit", "scalar_sum", "vector_sum",
                "out_features", "out_vectors", "out_basis", "out_unit", "out_filter",
            )
        ),
    ]  # fmt: skip


def available(basis: Tensor) -> bool:
    """Whether the operation can be had in the precision and on the device of this tensor: float32 or float64 on the CPU, and a
    compiler on the machine."""
    return basis.device.type == "cpu" and basis.dtype in (torch.float32, torch.float64) and _is_there(basis.dtype)


@torch.compiler.assume_constant_result
def _is_there(dtype: torch.dtype) -> bool:
    return _library(dtype) is not None


def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    return library(_SOURCE, REAL="double" if dtype == torch.float64 else "float")


def _run(kind: int, edges: Tensor, width: int, **tensors: Tensor | None) -> None:
    """Call C++; `edges` [2, E] as source, target."""
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    indices = edges.contiguous()
    features, basis = kept["features"], kept["basis"]
    count = edges.shape[1]
    arguments = _Arguments(
        edges=count, atoms=features.shape[0], width=width, radial=basis.shape[1], parts=features.shape[1] // width,
        threads=torch.get_num_threads() if count * width >= _THREADED else 1,
        source=indices.data_ptr(), target=indices.data_ptr() + count * indices.element_size(),
        **{name: tensor.data_ptr() for name, tensor in kept.items()},
    )  # fmt: skip
    loaded = _library(features.dtype)
    assert loaded is not None
    if loaded.gfm_message(kind, ctypes.byref(arguments)):
        raise MemoryError("the message step has no memory for its temporaries")


@torch.library.custom_op("gfm_calc::painn_message", mutates_args=())
def message(
    features: Tensor, vectors: Tensor | None, basis: Tensor, unit: Tensor, filter: Tensor, edges: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums over neighbours: scalars [N, F] and vectors [N, 3, F].

    Args:
        features: what atoms send, [N, P F]; P is 3, or 2 without vectors.
        vectors: [N, 3, F] or None.
        basis: [E, R], the radial basis.  unit: [E, 3], from target to source.
        filter: [P F, R].
        edges: [2, E], source and target.
    """
    width = _width(features, vectors)
    scalar_sum = features.new_zeros(len(features), width)
    vector_sum = features.new_zeros(len(features), 3, width)
    _run(
        _FORWARD, edges, width, features=features, vectors=vectors, basis=basis, unit=unit, filter=filter,
        scalar_sum=scalar_sum, vector_sum=vector_sum,
    )  # fmt: skip
    return scalar_sum, vector_sum


@torch.library.custom_op("gfm_calc::painn_message_backward", mutates_args=())
def message_backward(
    grad_scalar: Tensor, grad_vector: Tensor, features: Tensor, vectors: Tensor | None, basis: Tensor, unit: Tensor,
    filter: Tensor, edges: Tensor, geometry: bool, weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of <grad_scalar, scalar_sum> + <grad_vector, vector_sum> with respect to features, vectors (empty where there
    are none), basis and unit (zero unless `geometry`), filter (zero unless `weights`)."""
    out = _gradients(features, vectors, basis, unit, filter)
    _run(
        _BACKWARD, edges, _width(features, vectors), features=features, vectors=vectors, basis=basis, unit=unit,
        filter=filter, grad_scalar=grad_scalar, grad_vector=grad_vector, **_wanted(out, vectors, geometry, weights),
    )  # fmt: skip
    return out


@torch.library.custom_op("gfm_calc::painn_message_double_backward", mutates_args=())
def message_double_backward(
    dot_features: Tensor, dot_vectors: Tensor | None, dot_basis: Tensor, dot_unit: Tensor,
    grad_scalar: Tensor, grad_vector: Tensor, features: Tensor, vectors: Tensor | None, basis: Tensor, unit: Tensor,
    filter: Tensor, edges: Tensor, geometry: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the derivative of <grad_scalar, scalar_sum> + <grad_vector, vector_sum> along the dot_ directions,
    with respect to grad_scalar, grad_vector, features, vectors, basis and unit (zero unless `geometry`), filter."""
    scalar_sum, vector_sum = torch.zeros_like(grad_scalar), torch.zeros_like(grad_vector)
    out = _gradients(features, vectors, basis, unit, filter)
    _run(
        _DOUBLE_BACKWARD, edges, _width(features, vectors), features=features, vectors=vectors, basis=basis, unit=unit,
        filter=filter, grad_scalar=grad_scalar, grad_vector=grad_vector, dot_features=dot_features,
        dot_vectors=dot_vectors, dot_basis=dot_basis, dot_unit=dot_unit, scalar_sum=scalar_sum, vector_sum=vector_sum,
        **_wanted(out, vectors, geometry, True),
    )  # fmt: skip
    return scalar_sum, vector_sum, *out


def _width(features: Tensor, vectors: Tensor | None) -> int:
    return features.shape[1] // (2 if vectors is None else 3)


def _gradients(
    features: Tensor, vectors: Tensor | None, basis: Tensor, unit: Tensor, filter: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Zeros in the shapes of the gradients."""
    vector = features.new_zeros(0) if vectors is None else _zeros(vectors)
    return _zeros(features), vector, _zeros(basis), _zeros(unit), _zeros(filter)


def _zeros(like: Tensor) -> Tensor:
    return like.new_zeros(like.shape)  # contiguous, whatever `like` is


def _wanted(out: tuple[Tensor, ...], vectors: Tensor | None, geometry: bool, weights: bool) -> dict[str, Tensor]:
    """The gradients to be computed, as arguments."""
    found = {"out_features": out[0]}
    if vectors is not None:
        found["out_vectors"] = out[1]
    if geometry:
        found |= {"out_basis": out[2], "out_unit": out[3]}
    if weights:
        found["out_filter"] = out[4]
    return found


@message.register_fake
def _(features, vectors, basis, unit, filter, edges):
    width = _width(features, vectors)
    return features.new_empty(features.shape[0], width), features.new_empty(features.shape[0], 3, width)


@message_backward.register_fake
def _(grad_scalar, grad_vector, features, vectors, basis, unit, filter, *others):
    return _gradients(features, vectors, basis, unit, filter)


@message_double_backward.register_fake
def _(dot_features, dot_vectors, dot_basis, dot_unit, grad_scalar, grad_vector, *others):
    features, vectors, basis, unit, filter = others[:5]
    return _zeros(grad_scalar), _zeros(grad_vector), *_gradients(features, vectors, basis, unit, filter)


def _keep_message(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _message_gradients(ctx, grad_scalar, grad_vector):
    features, vectors, basis, unit, filter, edges = ctx.saved_tensors
    need = ctx.needs_input_grad
    grads = message_backward(
        grad_scalar, grad_vector, features, vectors, basis, unit, filter, edges, need[2] or need[3], need[4]
    )
    return grads[0], None if vectors is None else grads[1], *grads[2:], None


def _keep_backward(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:8])
    ctx.set_materialize_grads(False)


def _backward_gradients(ctx, dot_features, dot_vectors, dot_basis, dot_unit, dot_filter):
    if dot_filter is not None:
        raise NotImplementedError("a derivative of the gradient of the filter's weights")
    grad_scalar, grad_vector, features, vectors, basis, unit, filter, edges = ctx.saved_tensors
    need = ctx.needs_input_grad
    found = message_double_backward(
        _zeros(features) if dot_features is None else dot_features,
        (None if vectors is None else _zeros(vectors)) if dot_vectors is None or vectors is None else dot_vectors,
        _zeros(basis) if dot_basis is None else dot_basis, _zeros(unit) if dot_unit is None else dot_unit,
        grad_scalar, grad_vector, features, vectors, basis, unit, filter, edges, need[4] or need[5],
    )  # fmt: skip
    vector = None if vectors is None else found[3]
    return *found[:3], vector, *found[4:], None, None, None


message.register_autograd(_message_gradients, setup_context=_keep_message)
message_backward.register_autograd(_backward_gradients, setup_context=_keep_backward)
