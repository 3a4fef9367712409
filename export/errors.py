"""Every error of the exporter; the message names the remedy.

::

    ExportError
    ├── InvalidSymbol          symbol.json is damaged or no symbol
    ├── InvalidNetwork         an ONNX file that is damaged, or no network that can be served
    ├── InvalidParams          .params is damaged, or does not fit the symbol
    ├── UnsupportedOperator    operators or attributes that the exporter does not know
    ├── WeightsError           weights from elsewhere that are damaged, or another network's
    ├── IllegalSize            the network cannot be built at that size
    ├── IncompatibleModel      the repository holds another model under that name
    ├── UnsupportedPrecision   no such precision, or none for this graph
    ├── ImagesMissing          nothing to calibrate on or to judge by
    ├── InvalidImages          damaged images, or labels that are not the network's
    ├── PrecisionFailed        the graph does not run at that precision
    ├── AccuracyLost           the precision costs more than the limits allow
    ├── InvalidLabels          class names or colours that do not fit the network
    ├── SymbolNotFound         no symbol.json for that network
    ├── TracingFailed          MXNet cannot build the network
    └── VerificationFailed     the exported graph and its source disagree
"""

from __future__ import annotations


class ExportError(Exception):
    """Base of the tree; ``str(error)`` is one line for the terminal."""


class InvalidSymbol(ExportError):
    """A symbol file that cannot be read; names the file and the node."""


class InvalidNetwork(ExportError):
    """An ONNX file that cannot be read, or a network that cannot be brought under the contract."""


class InvalidParams(ExportError):
    """A parameter file that cannot be read or does not fit; names the file and the offset."""


class UnsupportedOperator(ExportError):
    """Operators, or attributes of known ones, without a conversion; names all of them."""


class WeightsError(ExportError, ValueError):
    """A file of weights that cannot be read, is not the one that was named, or does not fit."""


class IllegalSize(ExportError):
    """A size that the network cannot have; names the nearest legal one."""


class IncompatibleModel(ExportError):
    """The repository's model of that name has other inputs, outputs, classes or colours."""


class UnsupportedPrecision(ExportError):
    """A precision that does not exist, or that this graph cannot have."""


class ImagesMissing(ExportError):
    """No images to calibrate on or to judge by; names the option that gives some."""


class InvalidImages(ExportError):
    """Damaged images, or labels of other classes than the network's; names the file or split."""


class PrecisionFailed(ExportError):
    """The graph does not run at that precision, or its logits are no numbers."""


class AccuracyLost(ExportError):
    """The precision costs more accuracy than the limits allow; nothing was written."""


class InvalidLabels(ExportError):
    """Class names or colours that are damaged or do not fit the network."""


class SymbolNotFound(ExportError):
    """No symbol file for the network; names the places that were searched."""


class TracingFailed(ExportError):
    """MXNet cannot build the network, or is not there; the message is the reason alone."""


class VerificationFailed(ExportError):
    """The exported graph does not compute what its source computes."""
