"""Finds which of a step's numbers are not finite in MXNet, and undoes the step."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from export.mxnet_import import mx
from training.guard.guard import Finding, Symptoms

Named = tuple[str, mx.nd.NDArray]


class GuardedArrays:
    """The gradients and running statistics of an initialized network, on every device."""

    def __init__(self, network: mx.gluon.HybridBlock) -> None:
        # Looking them up takes longer than checking them.
        parameters = network.collect_params()
        order = {name: place for place, name in enumerate(_trace(network).list_inputs())}
        self.gradients: list[Named] = []
        self.statistics: list[Named] = []
        for name in sorted(parameters, key=lambda name: order.get(name, 0)):
            parameter = parameters[name]
            if parameter.grad_req == "null":
                self.statistics += [(name, state) for state in parameter.list_data()]
            else:
                self.gradients += [(name, gradient) for gradient in parameter.list_grad()]

    def copy_statistics(self) -> list[mx.nd.NDArray]:
        return [state.copy() for _, state in self.statistics]

    def restore_statistics(self, kept: Sequence[mx.nd.NDArray]) -> None:
        for (_, state), before in zip(self.statistics, kept, strict=True):
            before.copyto(state)

    def all_finite(self, losses: Sequence[mx.nd.NDArray]) -> bool:
        """Returns whether these and the losses, one per device, are finite; sums of squares that
        overflow are not.
        """
        groups: dict[mx.context.Context, list[mx.nd.NDArray]] = {}
        arrays = [array for _, array in (*self.gradients, *self.statistics)]
        for array in (*arrays, *losses):
            groups.setdefault(array.context, []).append(array)
        # Not multi_all_finite: it takes forty times as long on a CPU.
        sums = [mx.nd.multi_sum_sq(*group, num_arrays=len(group)) for group in groups.values()]
        return all(_is_finite(squares) for squares in sums)

    def read_symptoms(self) -> Symptoms:
        """Returns which gradients and running statistics are not finite now."""
        gradients, statistics = (
            tuple(dict.fromkeys(name for name, array in arrays if not _is_finite(array)))
            for arrays in (self.gradients, self.statistics)
        )
        return Symptoms(gradients, statistics)


def inspect_forward(
    network: mx.gluon.HybridBlock, images: npt.NDArray[np.float32], context: mx.context.Context
) -> Finding | None:
    """Returns the first array that is not finite up to the outputs, on one device.

    Passes the images again, layer by layer and with other dropout; changes nothing.
    """
    if not np.isfinite(images).all():
        return Finding("input", "data")
    parameters = network.collect_params()
    for name, parameter in parameters.items():
        if parameter.grad_req != "null" and not _is_finite(parameter.data(context)):
            return Finding("parameter", name)
    symbol = _trace(network)
    arguments = {"data": mx.nd.array(images, ctx=context)}
    shapes, _, _ = symbol.infer_shape(data=images.shape)
    for name, shape in zip(symbol.list_arguments(), shapes, strict=True):
        if name in parameters:
            arguments[name] = parameters[name].data(context)
        elif name != "data":
            # The labels of an output layer: no activation depends on them.
            arguments[name] = mx.nd.zeros(shape, ctx=context)
    states = {n: parameters[n].data(context).copy() for n in symbol.list_auxiliary_states()}
    # Without any gradient MXNet would bind it for inference, and fuse the layers.
    gradients = {"data": mx.nd.zeros_like(arguments["data"])}
    executor = symbol.bind(context, arguments, args_grad=gradients, aux_states=states)
    found: list[str] = []

    def watch(name: bytes, handle: int) -> None:
        value = mx.nd.NDArray(ctypes.cast(handle, mx.base.NDArrayHandle), writable=False)
        if not found and not _is_finite(value):
            found.append(name.decode().removesuffix("_output"))

    executor.set_monitor_callback(watch)
    executor.forward(is_train=True)
    mx.nd.waitall()
    return Finding("activation", found[0]) if found else None


def _trace(network: mx.gluon.HybridBlock) -> mx.sym.Symbol:
    # A name manager of its own: operators are numbered as in the network's symbol.json.
    with mx.name.NameManager():
        return mx.sym.Group(list(network(mx.sym.var("data"))))


def _is_finite(array: mx.nd.NDArray) -> bool:
    return bool(np.isfinite(array.asnumpy()).all())
