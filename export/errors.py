"""Every error of the exporter; its message says what was wrong and what to do.

::

    ExportError
    ├── InvalidSymbol          symbol.json is damaged, or is not a symbol
    ├── InvalidNetwork         an ONNX file that is damaged, or cannot be served
    ├── InvalidParams          .params is damaged, or does not fit the symbol
    ├── UnsupportedOperator    operators or attributes that the exporter does not know
    ├── WeightsError           weights from elsewhere that are damaged, or another network's
    ├── IllegalSize            the network cannot be built at that size
    ├── IncompatibleModel      the repository holds another model under that name
    ├── UnsupportedPrecision   an unknown precision, or one that this graph cannot have
    ├── ImagesMissing          nothing to calibrate on or to measure with
    ├── InvalidImages          damaged images, or labels that are not the network's
    ├── PrecisionFailed        the graph does not run at that precision
    ├── AccuracyLost           the precision costs more than the limits allow
    ├── InvalidLabels          class names or colours that do not fit the network
    ├── SymbolNotFound         symbol.json was not found for that network
    ├── TracingFailed          MXNet cannot build the network
    └── VerificationFailed     the exported graph and its source disagree
"""

from __future__ import annotations


class ExportError(Exception):
    """The base of the tree; ``str(error)`` is one line for the terminal."""


class InvalidSymbol(ExportError):
    """Raised for a symbol file that cannot be read; names the file and the node."""


class InvalidNetwork(ExportError):
    """Raised for an ONNX file that cannot be read, or a network that cannot be served."""


class InvalidParams(ExportError):
    """Raised for parameters that cannot be read or do not fit; names the file and the offset."""


class UnsupportedOperator(ExportError):
    """Raised for operators, or attributes of known ones, without a conversion; names them all."""


class WeightsError(ExportError, ValueError):
    """Raised for weights that cannot be read, are not those that were named, or do not fit."""


class IllegalSize(ExportError):
    """Raised for a size that the network cannot have; names the nearest legal one."""


class IncompatibleModel(ExportError):
    """Raised where the model of that name has other inputs, outputs, classes or colours."""


class UnsupportedPrecision(ExportError):
    """Raised for a precision that does not exist, or that this graph cannot have."""


class ImagesMissing(ExportError):
    """Raised without images to calibrate on or measure with; names the option for them."""


class InvalidImages(ExportError):
    """Raised for damaged images, or labels of other classes; names the file or split."""


class PrecisionFailed(ExportError):
    """Raised where the graph does not run at that precision, or its logits are not finite."""


class AccuracyLost(ExportError):
    """Raised where the precision costs more accuracy than allowed; nothing was written."""


class InvalidLabels(ExportError):
    """Raised for class names or colours that are damaged or do not fit the network."""


class SymbolNotFound(ExportError):
    """Raised without a symbol file for the network; names the places that were searched."""


class TracingFailed(ExportError):
    """Raised where MXNet cannot build the network, or is not installed; says why."""


class VerificationFailed(ExportError):
    """Raised where the exported graph does not compute what its source computes."""
