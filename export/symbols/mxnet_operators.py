"""MXNet's operators: their names, inputs and attributes, as MXNet 1.9.1 itself lists them.

The list is ``mxnet_operators.txt``, an operator a line: the name that MXNet writes into symbols,
its other names, its inputs, its attributes. ``python -m export.symbols.mxnet_operators`` prints it
again from the installed MXNet. Left out are gradients, optimizers, random numbers, and what
is for other data than maps (graphs, sparse arrays, files of images).
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).with_name("mxnet_operators.txt")
# What MXNet takes out of an operator's attributes before it reads them.
HIDDEN = ("ctx_group", "lr_mult", "wd_mult", "force_mirroring", "mirror_stage")
# Names of other versions: MXNet 2's, and those that were dropped.
_OTHER_VERSIONS = {
    "_npx_deformable_convolution": "_contrib_DeformableConvolution",
    "_npx_modulated_deformable_convolution": "_contrib_ModulatedDeformableConvolution",
    "_np_relu": "relu",
    "_npx_relu": "relu",
    "_npx_sigmoid": "sigmoid",
    "CuDNNBatchNorm": "BatchNorm",
    "_sum": "add_n",
}
# Attributes that MXNet reads but does not list.
_UNLISTED = {"_linspace": ("num", "endpoint")}
_LEFT_OUT = re.compile(
    r"_backward|_broadcast_backward|_sparse_|_random|_sample|_image|_cv|_shuffle|_contrib_quant"
    r"|_contrib_dequant|_contrib_requant|_contrib_calib|_contrib_dgl|_contrib_backward|_sg_"
    r"|_Native|_NDArray|_NoGradient|_CachedOp|_Custom|_contrib_group_adagrad|_copyto|_imdecode"
    r"|_CrossDevice|Custom|_cond|_foreach|_while_loop|.*_update|.*_update_phase|.*_backward$|multi_|preloaded_|reset_arrays|.*_normal"
    r"|_npi_(uniform|exponential|gumbel|gamma|laplace|logistic|multinomial|pareto|rayleigh|weibull"
    r"|bernoulli|choice|cv|backward|Custom|copyto)"
)


@dataclass(frozen=True)
class Signature:
    """The names and the inputs of an operator.

    Attributes:
        inputs: the names of its inputs; one where it takes any number.
        attributes: the keys that it reads.
    """

    name: str
    aliases: tuple[str, ...]
    inputs: tuple[str, ...]
    attributes: frozenset[str]


@functools.cache
def signatures() -> Mapping[str, Signature]:
    """Returns the operators by the name that MXNet writes into symbols."""
    found = {}
    for line in TABLE.read_text("utf-8").splitlines():
        name, *parts = (part.split() for part in line.split(";"))
        aliases, inputs, attributes = parts
        found[name[0]] = Signature(
            name[0], tuple(aliases), tuple(inputs),
            frozenset((*attributes, *_UNLISTED.get(name[0], ()), "num_args")),
        )  # fmt: skip
    return found


@functools.cache
def _names() -> Mapping[str, str]:
    aliases = {alias: name for name, found in signatures().items() for alias in found.aliases}
    return aliases | _OTHER_VERSIONS


def canonical_name(operator: str) -> str:
    """Returns the name that MXNet writes today for an operator that symbols may name otherwise."""
    dense = operator.removeprefix("_sparse_")
    return _names().get(dense, dense)


def split_attributes(
    operator: str, given: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the operator's own attributes, and those that people or tools gave a node.

    The latter have the names that MXNet takes for them on any operator, ``__lr_mult__`` for
    ``lr_mult``. Of an operator that is not in the list all plain names are its own.
    """
    signature = signatures().get(operator)
    own: dict[str, str] = {}
    user: dict[str, str] = {}
    for key, value in given.items():
        if _is_hidden(key):
            user[key] = value
        elif key in signature.attributes if signature else not key.endswith(HIDDEN):
            own[key] = value
        else:
            user.setdefault(f"__{key}__", value)
    return own, user


def hidden_name(key: str) -> str:
    """Returns the name that MXNet gives an attribute of a variable: plain but for ``HIDDEN``."""
    return f"__{key}__" if key in HIDDEN else key


def addressee(operator: str, key: str) -> tuple[int, str] | None:
    """Returns for which input an attribute of a node was meant, and under which name it gets it:
    ``__weight_lr_mult__`` of a convolution is ``__lr_mult__`` of its second input.

    None where it is the node's own.
    """
    plain = key.strip("_")
    for hidden in HIDDEN:
        prefix = plain.removesuffix(f"_{hidden}")
        signature = signatures().get(operator)
        if prefix != plain and signature and prefix in signature.inputs:
            return signature.inputs.index(prefix), f"__{hidden}__"
    return None


def _is_hidden(key: str) -> bool:
    return len(key) > 4 and key.startswith("__") and key.endswith("__")


def _installed() -> Iterator[str]:
    """Returns the lines of the table, from the MXNet that is installed."""
    from export.mxnet_import import mx

    library = mx.base._LIB
    names, count = ctypes.POINTER(ctypes.c_char_p)(), ctypes.c_uint()
    mx.base.check_call(library.MXListAllOpNames(ctypes.byref(count), ctypes.byref(names)))
    known: dict[str, tuple[list[str], list[str], list[str]]] = {}
    for given in sorted(mx.base.py_str(names[i]) for i in range(count.value)):
        name, inputs, attributes = _describe(library, given)
        if _LEFT_OUT.match(name) or _LEFT_OUT.match(given):
            continue
        aliases = known.setdefault(name, ([], inputs, attributes))[0]
        if given != name:
            aliases.append(given)
    for name, parts in sorted(known.items()):
        yield "; ".join((name, *map(" ".join, parts))).rstrip()


def _describe(library: ctypes.CDLL, operator: str) -> tuple[str, list[str], list[str]]:
    from export.mxnet_import import mx

    texts = [ctypes.c_char_p() for _ in range(4)]
    lists = [ctypes.POINTER(ctypes.c_char_p)() for _ in range(3)]
    handle, count = ctypes.c_void_p(), ctypes.c_uint()
    mx.base.check_call(library.NNGetOpHandle(mx.base.c_str(operator), ctypes.byref(handle)))
    mx.base.check_call(
        library.MXSymbolGetAtomicSymbolInfo(
            handle, *map(ctypes.byref, (*texts[:2], count, *lists, *texts[2:]))
        )
    )
    keys, kinds = ([mx.base.py_str(found[i]) for i in range(count.value)] for found in lists[:2])
    pairs = list(zip(keys, kinds, strict=True))
    inputs = [key for key, kind in pairs if "NDArray" in kind]
    attributes = [key for key, kind in pairs if "NDArray" not in kind]
    return mx.base.py_str(texts[0].value), inputs, attributes


if __name__ == "__main__":
    print("\n".join(_installed()))
