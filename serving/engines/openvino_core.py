"""OpenVINO as a package: imported without what reports it, and taught an operator of ONNX."""

from __future__ import annotations

import importlib
import sys
import threading
from types import ModuleType
from typing import Any

# Imported with the package, unless it cannot be; it reports the import to its maker.
_TOOLS = "openvino.tools.ovc"
_IMPORT = threading.Lock()


def import_openvino() -> ModuleType:
    """Returns the package, imported without its conversion tools.

    Importing those sends an event to their maker's statistics and leaves a file in the user's home.

    Raises:
        ImportError: OpenVINO is not installed, or not for this processor or Python.
    """
    with _IMPORT:
        hidden = _TOOLS not in sys.modules
        if hidden:
            # What is None here cannot be imported, which the package allows for.
            sys.modules[_TOOLS] = None  # type: ignore[assignment]  # as the import system has it
        try:
            return importlib.import_module("openvino")
        finally:
            if hidden:
                del sys.modules[_TOOLS]


def open_core() -> Any:
    """Returns OpenVINO's ``Core``, which reads ``DeformConv`` too: its own reader of ONNX does
    not, though it has such an operator.

    Raises:
        ImportError: see :func:`import_openvino`.
    """
    openvino = import_openvino()
    core = openvino.Core()
    extension = importlib.import_module("openvino.frontend.onnx").ConversionExtension
    core.add_extension(extension("DeformConv", _translate_deformable))
    return core


def _translate_deformable(node: Any) -> Any:
    """ONNX' DeformConv as OpenVINO's: offsets and masks are laid out alike in both.

    Source: ONNX, Operators.md, DeformConv; OpenVINO, DeformableConvolution-8.
    """
    operators = import_openvino().opset8
    inputs = [node.get_input(index) for index in range(node.get_input_size())]
    # One that is left out has no type of a value.
    bias, mask = (
        inputs[index]
        if len(inputs) > index and inputs[index].get_node().get_type_name() != "NullNode"
        else None
        for index in (3, 4)
    )
    pads = list(node.get_attribute("pads", [0, 0, 0, 0]))
    result = operators.deformable_convolution(
        data=inputs[0],
        offsets=inputs[2],
        filters=inputs[1],
        strides=list(node.get_attribute("strides", [1, 1])),
        pads_begin=pads[:2],
        pads_end=pads[2:],
        dilations=list(node.get_attribute("dilations", [1, 1])),
        mask=mask,
        auto_pad="explicit",
        group=node.get_attribute("group", 1),
        deformable_group=node.get_attribute("offset_group", 1),
        # Beyond the map are zeros, which weigh into positions at its edge.
        bilinear_interpolation_pad=True,
    )
    if bias is not None:
        result = operators.add(result, operators.reshape(bias, [1, -1, 1, 1], False))
    return result.outputs()
