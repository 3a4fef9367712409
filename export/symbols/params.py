"""Reads and writes ``.params``, the array container of MXNet, without MXNet.

Little endian: ``u64 0x112, u64 0, u64 n``, n arrays, ``u64 n``, n names (``u64`` length, bytes).
An array is ``u32 magic``, shape, context (2 x ``i32``), ``i32`` dtype, data; the magic says how
the shape is stored. Source of the format: ``src/ndarray/ndarray.cc``. Whether the arrays of a file
are a network's is decided here too, for every trainer.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from export.errors import InvalidParams
from export.symbols.elementwise import ADDITIONS
from export.symbols.graph import BATCH_NORMS, Graph
from export.symbols.shape_rules import DEFORMABLE, NORMS, data_inputs
from export.symbols.shapes import infer_shapes

Array = NDArray[np.generic]
_LIST_MAGIC = 0x112
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_DTYPES = ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8", "?")
_STORAGE = {1: "row_sparse", 2: "csr"}
_MAX_DIMENSIONS = 32


@dataclass(frozen=True)
class Parameters:
    """The arrays of a file: arguments (weights) and auxiliary states (moving averages) by name.

    A file of bare names (no ``arg:`` / ``aux:``) has them all in ``arguments``.
    """

    arguments: Mapping[str, Array]
    auxiliary: Mapping[str, Array]

    def find(self, name: str) -> Array | None:
        """Returns the array of a variable, whichever kind it is."""
        found = self.arguments.get(name)
        return self.auxiliary.get(name) if found is None else found

    def names(self) -> list[str]:
        """Returns all names, without prefix."""
        return [*self.arguments, *self.auxiliary]


def read_params(path: Path) -> Parameters:
    """Maps a ``.params`` file into memory; the arrays are read-only views of it.

    Every length is checked against the file before it is used. Raises InvalidParams naming the
    file and the offset.
    """
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise InvalidParams(f"{path}: {error}") from error
    reader = _Reader(memoryview(content), str(path))
    magic, _, count = reader.unpack("<QQQ", "header")
    if magic != _LIST_MAGIC:
        raise reader.error("not an MXNet .params file: expected 0x112 in its first eight bytes", 0)
    arrays = []
    for index in range(count):
        arrays.append(_array(reader, f"array {index} of {count}"))
    (named,) = reader.unpack("<Q", "number of names")
    if named != count:
        raise reader.error(f"{count} arrays but {named} names; save them with names", None)
    arguments: dict[str, Array] = {}
    auxiliary: dict[str, Array] = {}
    for index in range(count):
        (length,) = reader.unpack("<Q", f"length of name {index}")
        start = reader.offset
        try:
            name = str(reader.take(length, f"name {index}"), "utf-8")
        except UnicodeDecodeError as error:
            raise reader.error(f"name {index} is not UTF-8", start) from error
        target = auxiliary if name.startswith("aux:") else arguments
        name = name.removeprefix("arg:") if target is arguments else name.removeprefix("aux:")
        if name in arguments or name in auxiliary:
            raise reader.error(f"the name {name!r} occurs twice", start)
        array = arrays[index]
        if array is not None:
            target[name] = array
    return Parameters(arguments, auxiliary)


def write_params(parameters: Parameters, path: Path) -> None:
    """Writes a file of V2 arrays with ``arg:`` / ``aux:`` names.

    Raises InvalidParams for a dtype that MXNet does not have, or an array without dimensions.
    """
    named = [(f"arg:{n}", a) for n, a in parameters.arguments.items()]
    named += [(f"aux:{n}", a) for n, a in parameters.auxiliary.items()]
    with path.open("wb") as file:
        file.write(struct.pack("<QQQ", _LIST_MAGIC, 0, len(named)))
        for name, array in named:
            known = [i for i, d in enumerate(_DTYPES) if np.dtype(d) == array.dtype]
            if not known or array.ndim == 0:
                raise InvalidParams(f"{path}: {name}: cannot store {array.dtype} {array.shape}")
            file.write(struct.pack("<Iii", _V2, 0, array.ndim))
            file.write(struct.pack(f"<{array.ndim}q", *array.shape))
            file.write(struct.pack("<iii", 1, 0, known[0]))  # context cpu(0)
            file.write(np.ascontiguousarray(array).data)
        file.write(struct.pack("<Q", len(named)))
        for name, _ in named:
            raw = name.encode()
            file.write(struct.pack("<Q", len(raw)) + raw)


class _Reader:
    """A cursor that refuses to pass the end of the file."""

    def __init__(self, content: memoryview, source: str) -> None:
        self.content, self.source, self.offset = content, source, 0

    def error(self, message: str, offset: int | None) -> InvalidParams:
        return InvalidParams(
            f"{self.source}: {message} (offset {self.offset if offset is None else offset})"
        )

    def take(self, length: int, what: str) -> memoryview:
        left = len(self.content) - self.offset
        if length > left:
            raise self.error(f"{what} needs {length} bytes, {left} are left", None)
        start = self.offset
        self.offset += length
        return self.content[start : self.offset]

    def unpack(self, layout: str, what: str) -> tuple[int, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout), what))


def _array(reader: _Reader, what: str) -> Array | None:
    start = reader.offset
    (magic,) = reader.unpack("<I", what)
    if magic in (_V2, _V3):
        (storage,) = reader.unpack("<i", what)
        if storage != 0:
            raise reader.error(
                f"{what} is {_STORAGE.get(storage, f'of storage type {storage}')}; only dense"
                " arrays can be exported",
                start,
            )
    legacy = magic not in (_V1, _V2, _V3)
    dimensions = magic if legacy else reader.unpack("<i", what)[0]
    if dimensions == (-1 if magic == _V3 else 0):
        return None  # MXNet stores nothing more of an array that was never set
    if not 0 <= dimensions <= _MAX_DIMENSIONS:
        raise reader.error(f"{what} claims {dimensions} dimensions", start)
    shape = reader.unpack(f"<{dimensions}{'I' if legacy else 'q'}", f"shape of {what}")
    if any(d < 0 for d in shape):
        raise reader.error(f"{what} has the shape {shape}", start)
    reader.unpack("<ii", f"context of {what}")
    (flag,) = reader.unpack("<i", f"dtype of {what}")
    if not 0 <= flag < len(_DTYPES):
        raise reader.error(f"{what} has the unknown dtype {flag}", None)
    dtype = np.dtype(_DTYPES[flag])
    data = reader.take(math.prod(shape) * dtype.itemsize, f"data of {what}, shape {shape},")
    try:
        array: Array = np.frombuffer(data, dtype).reshape(shape)
    except ValueError as error:  # no data, but other lengths beyond what NumPy can index
        raise reader.error(f"{what} has the shape {shape}", start) from error
    return array


def digest(path: Path) -> str:
    """Returns the first 16 hexadecimal digits of a file's SHA-256. Raises OSError."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()[:16]


def tool_version() -> str:
    """Returns the installed version of this project."""
    try:
        return version("segserve")
    except PackageNotFoundError:
        return "(not installed)"


Shape = tuple[int, ...]


class Shaped(Protocol):
    """An array of NumPy, MXNet or PyTorch."""

    @property
    def shape(self) -> Shape: ...


def misfits(wanted: Mapping[str, Shape], found: Mapping[str, Shaped | None]) -> dict[str, str]:
    """Returns why a parameter cannot be loaded, by name; empty where all can."""
    problems = {}
    for name, shape in wanted.items():
        array = found.get(name)
        if array is None:
            problems[name] = f"{name} is missing"
        elif tuple(array.shape) != shape:
            problems[name] = f"{name} is {tuple(array.shape)}, the network has {shape}"
    return problems


def refuse_misfits(
    problems: Mapping[str, str], wanted: int, path: Path, partial: bool = False
) -> None:
    """Raises ValueError, naming them; with ``partial`` only where none of ``wanted`` fits."""
    if problems and not (partial and len(problems) < wanted):
        raise ValueError(
            f"{path} does not fit this network ({len(problems)} problems): "
            + "; ".join(list(problems.values())[:5])
        )


# Gamma where a sum reads the batch norm (residual sums must stay bounded), and elsewhere.
_GAMMA_BEFORE_SUM, _GAMMA = (0.2, 0.5), (0.7, 1.3)
_VARIANCE = (0.5, 1.5)
# Of PReLU, as He et al. start it (arXiv 1502.01852).
_SLOPE = 0.25


def random_params(
    graph: Graph, height: int, width: int, seed: int = 0, *, neutral: bool = True
) -> Parameters:
    """Returns float32 parameters for every variable of the graph, the same for the same seed.

    Weights of layers are N(0, 2 / fan_in), a deconvolution a channel bilinear, biases 0, gamma
    and variance 1, beta and mean 0, slopes 1/4. Without ``neutral`` biases, beta and mean are
    N(0, 0.04), gamma is uniform around 1, around 0.35 in front of sums, variance in 0.5 to 1.5.
    Raises what ``infer_shapes`` raises.
    """
    shapes = infer_shapes(graph, height, width).parameters
    generator = np.random.default_rng(seed)
    arguments: dict[str, Array] = {}
    auxiliary: dict[str, Array] = {}
    summed = {e.node for _, n in graph.operators() if n.op in ADDITIONS for e in n.inputs}
    for index, node in graph.operators():
        gamma = _GAMMA_BEFORE_SUM if index in summed else _GAMMA
        names = [graph.nodes[e.node].name for e in node.inputs]
        for position, name in enumerate(names):
            if name not in shapes or name in arguments:
                continue
            shape = shapes[name]
            if len(shape) == 4 and shape[1] == 1 and node.op in ("Deconvolution", "UpSampling"):
                arguments[name] = np.broadcast_to(_bilinear(shape[2], shape[3]), shape).copy()
            elif len(shape) > 1 and data_inputs(node) is not None:
                deviation = np.float32(math.sqrt(2 / math.prod(shape[1:])))
                normal = generator.standard_normal(shape, dtype=np.float32)
                arguments[name] = normal * deviation
            elif node.op in BATCH_NORMS or node.op in NORMS:
                kind = arguments if position < 3 else auxiliary
                kind[name] = (np.ones if position in (1, 4) else np.zeros)(shape, np.float32)
                if not neutral:
                    kind[name] = _varied(generator, shape, {1: gamma, 4: _VARIANCE}.get(position))
            elif neutral:
                slope = _SLOPE if node.op == "LeakyReLU" else 0
                arguments[name] = np.full(shape, slope, np.float32)
            else:
                arguments[name] = _varied(generator, shape, None)
    return Parameters(arguments, auxiliary)


def _varied(
    generator: np.random.Generator, shape: tuple[int, ...], bounds: tuple[float, float] | None
) -> Array:
    values = generator.uniform(*bounds, shape) if bounds else generator.normal(0, 0.2, shape)
    varied: Array = values.astype(np.float32)
    return varied


def _bilinear(rows: int, columns: int) -> Array:
    """Returns float32 [rows, columns]: the kernel that interpolates by half its length."""
    sides = []
    for length in (rows, columns):
        factor = (length + 1) // 2
        centre = factor - 1 if length % 2 else factor - 0.5
        sides.append(1 - np.abs(np.arange(length) - centre) / factor)
    kernel: Array = np.outer(*sides).astype(np.float32)
    return kernel


def start_parameters(graph: Graph, height: int, width: int, seed: int) -> Parameters:
    """Returns ``random_params``, but the convolutions that give a deformable one its offsets start
    at zero, so that it begins as a plain one (Dai et al., arXiv 1703.06211)."""
    parameters = random_params(graph, height, width, seed)
    zero = {
        graph.nodes[entry.node].name
        for _, node in graph.operators()
        if node.op in DEFORMABLE
        for entry in graph.nodes[node.inputs[1].node].inputs[1:]
    }
    started = {
        name: np.zeros_like(array) if name in zero else array
        for name, array in parameters.arguments.items()
    }
    return Parameters(started, parameters.auxiliary)
