"""Every error of the exporter; the message names the remedy.

::

    ExportError
    ├── InvalidSymbol          symbol.json is damaged or no symbol
    ├── InvalidParams          .params is damaged, or does not fit the symbol
    ├── UnsupportedOperator    operators or attributes that the exporter does not know
    ├── IllegalSize            the network cannot be built at that size
    ├── IncompatibleModel      the repository holds another model under that name
    ├── UnsupportedPrecision   not yet
    ├── InvalidLabels          class names or colours that do not fit the network
    ├── SymbolNotFound         no symbol.json for that network
    └── VerificationFailed     ONNX Runtime and MXNet disagree
"""

from __future__ import annotations


class ExportError(Exception):
    """Base of the tree; ``str(error)`` is one line for the terminal."""


class InvalidSymbol(ExportError):
    """A symbol file that cannot be read; names the file and the node."""


class InvalidParams(ExportError):
    """A parameter file that cannot be read or does not fit; names the file and the offset."""


class UnsupportedOperator(ExportError):
    """Operators, or attributes of known ones, without a conversion; names all of them."""


class IllegalSize(ExportError):
    """A size that the network cannot have; names the nearest legal one."""


class IncompatibleModel(ExportError):
    """The repository's model of that name has other inputs, outputs, classes or colours."""


class UnsupportedPrecision(ExportError):
    """A precision that cannot be exported yet."""


class InvalidLabels(ExportError):
    """Class names or colours that are damaged or do not fit the network."""


class SymbolNotFound(ExportError):
    """No symbol file for the network; names the places that were searched."""


class VerificationFailed(ExportError):
    """The exported graph does not compute what MXNet computes."""
