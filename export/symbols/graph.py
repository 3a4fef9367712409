"""Reads and writes ``symbol.json``, the graph file of MXNet, without MXNet.

Three generations are read: ``attrs`` (1.0 and later), ``attr`` (0.9 to 0.12) and ``param`` with
``attr`` (up to 0.8, where batch norm does not list its moving averages as inputs). Operators get
the names that MXNet writes today; what is not an operator's own attribute (``ctx_group``,
``weight_lr_mult``) is kept apart, under the name that MXNet gives it.
Source of the format: ``src/nnvm/legacy_json_util.cc`` and nnvm's ``saveload_json.cc``.
"""

from __future__ import annotations

import ast
import gzip
import json
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, cast

from export.errors import InvalidSymbol
from export.symbols.mxnet_operators import (
    addressee,
    canonical_name,
    hidden_name,
    split_attributes,
)

BATCH_NORMS = frozenset(
    {"BatchNorm", "BatchNorm_v1", "_contrib_BatchNormWithReLU", "_contrib_SyncBatchNorm"}
)
# What a network's symbol is called beside its parameters.
SYMBOL_FILE = "network-symbol.json"
_MAX_BYTES = 64 * 2**20

Derived = TypeVar("Derived")


@dataclass(frozen=True)
class Entry:
    """One output of one node: ``graph.nodes[node]``'s output number ``output``."""

    node: int
    output: int = 0


@dataclass(frozen=True)
class Node:
    """An operator, or a variable where ``op`` is ``"null"``.

    Attributes:
        attrs: the operator's own attributes; all values are strings.
        user_attrs: what people and tools noted at a node: ``__lr_mult__``, a variable's
            ``__shape__``.
    """

    op: str
    name: str
    inputs: tuple[Entry, ...] = ()
    attrs: Mapping[str, str] = field(default_factory=dict)
    user_attrs: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_variable(self) -> bool:
        """Returns True where the node is an input or a parameter."""
        return self.op == "null"

    def flag(self, key: str, default: bool) -> bool:
        """Returns a boolean attribute (``True``, ``true``, ``1``); ``None`` counts as absent."""
        return self.text(key, str(default)).strip().lower() in ("true", "1")

    def text(self, key: str, default: str) -> str:
        """Returns a string attribute; ``None`` counts as absent."""
        value = self.attrs.get(key, default)
        return default if value == "None" else value

    def number(self, key: str, default: float) -> float:
        """Returns a float attribute. Raises InvalidSymbol."""
        try:
            return float(self.text(key, repr(default)))
        except ValueError as error:
            raise InvalidSymbol(
                f"{self.name}: {key}={self.attrs[key]!r} is not a valid number"
            ) from error

    def integer(self, key: str, default: int) -> int:
        """Returns an integer attribute. Raises InvalidSymbol."""
        value = self.number(key, default)
        if not value.is_integer():
            raise InvalidSymbol(f"{self.name}: {key}={self.attrs[key]!r} is not a valid integer")
        return int(value)

    def integers(self, key: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Returns a tuple attribute, ``"(3, 3)"``, ``"[3, 3]"`` or ``"3"``.

        Raises InvalidSymbol.
        """
        values = self.bounds(key)
        if None in values:
            raise self._not_integers(key)
        return tuple(v for v in values if v is not None) or default

    def bounds(self, key: str) -> tuple[int | None, ...]:
        """Returns a tuple attribute in which ``None`` may stand for an integer, as in a slice's
        ``begin``. Raises InvalidSymbol."""
        text = self.text(key, "()")
        try:
            value = ast.literal_eval(text.replace("L", ""))
            values = value if isinstance(value, tuple | list) else (value,)
            return tuple(None if v is None else int(v) for v in values)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
            raise self._not_integers(key) from error

    def declared_shape(self) -> tuple[int, ...]:
        """Returns the shape that was noted at a variable; empty where none is, or not all of it."""
        try:
            shape = replace(self, attrs=self.user_attrs).integers("__shape__")
        except InvalidSymbol:
            return ()
        return shape if min(shape, default=0) > 0 else ()

    def _not_integers(self, key: str) -> InvalidSymbol:
        return InvalidSymbol(
            f"{self.name}: {key}={self.attrs[key]!r} is not valid: expected integers, as in (3, 3)"
        )


@dataclass(frozen=True)
class Graph:
    """A symbol: nodes in topological order, and the entries that it outputs."""

    nodes: tuple[Node, ...]
    heads: tuple[Entry, ...]
    _derived: dict[Hashable, object] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def derive(self, key: Hashable, make: Callable[[], Derived]) -> Derived:
        """Returns what ``make`` computes from the graph, which never changes: once a key.

        One export asks several times for the same shapes and the same parts of a network.
        """
        if key not in self._derived:
            self._derived[key] = make()
        return cast(Derived, self._derived[key])

    def operators(self) -> Iterator[tuple[int, Node]]:
        """Returns the nodes that compute something, with their index."""
        return ((i, node) for i, node in enumerate(self.nodes) if not node.is_variable)

    def consumers(self, index: int) -> list[int]:
        """Returns the indices of the nodes that read any output of a node."""
        return [i for i, n in enumerate(self.nodes) if any(e.node == index for e in n.inputs)]

    def variables(self) -> list[str]:
        """Returns the names of all variables, in order."""
        return [node.name for node in self.nodes if node.is_variable]

    def pruned(self, heads: Sequence[Entry]) -> Graph:
        """Returns the graph that computes only ``heads``, without nodes that they do not need."""
        wanted = tuple(heads)
        return self.derive(("pruned", wanted), lambda: self._prune(wanted))

    def _prune(self, heads: tuple[Entry, ...]) -> Graph:
        needed = set()
        stack = [head.node for head in heads]
        while stack:
            index = stack.pop()
            if index not in needed:
                needed.add(index)
                stack.extend(entry.node for entry in self.nodes[index].inputs)
        if len(needed) == len(self.nodes) and heads == self.heads:
            return self
        order = {old: new for new, old in enumerate(sorted(needed))}
        nodes = tuple(
            replace(n, inputs=tuple(Entry(order[e.node], e.output) for e in n.inputs))
            for i, n in enumerate(self.nodes)
            if i in needed
        )
        return Graph(nodes, tuple(Entry(order[h.node], h.output) for h in heads))

    def data_input(self) -> int:
        """Returns the index of the image variable: the first input of the first operators.

        Raises InvalidSymbol where there is none.
        """
        names = {node.name: i for i, node in enumerate(self.nodes) if node.is_variable}
        if "data" in names:
            return names["data"]
        for _, node in self.operators():
            if node.inputs and self.nodes[node.inputs[0].node].is_variable:
                return node.inputs[0].node
        raise InvalidSymbol(
            "the symbol has no input variable: expected an image, usually named data"
        )


def read_symbol(path: Path) -> Graph:
    """Reads a symbol file, ``.json`` or ``.json.gz``.

    Raises InvalidSymbol with the file and what is wrong.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidSymbol(f"{path}: {error}") from error
    if len(content) > _MAX_BYTES:
        raise InvalidSymbol(f"{path}: more than {_MAX_BYTES} bytes; is it a symbol.json?")
    return parse_symbol(content, str(path))


def parse_symbol(content: bytes, source: str) -> Graph:
    """Parses the bytes of a symbol file; ``source`` names it in errors."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidSymbol(
            f"{source}: not a valid symbol.json: expected JSON ({error})"
        ) from error
    if not isinstance(document, dict) or not isinstance(document.get("nodes"), list):
        raise InvalidSymbol(f"{source}: not a valid symbol.json: expected a list 'nodes'")
    nodes: list[Node] = []
    moved: list[int] = []  # index in the file -> index here; legacy batch norms add variables
    for position, raw in enumerate(document["nodes"]):
        where = f"{source}: node {position}"
        node = _node(raw, moved, where)
        node = _give_to_inputs(node, nodes)
        if node.op in BATCH_NORMS and len(node.inputs) == 3:
            averages = [Node("null", f"{node.name}_moving_{m}") for m in ("mean", "var")]
            added = tuple(Entry(len(nodes) + i) for i in range(2))
            nodes += averages
            node = replace(node, inputs=node.inputs + added)
        moved.append(len(nodes))
        nodes.append(node)
    heads = _entries(document.get("heads"), moved, f"{source}: heads")
    if not heads:
        raise InvalidSymbol(f"{source}: the symbol has no outputs: expected a list 'heads'")
    return Graph(tuple(nodes), heads)


def write_symbol(graph: Graph, path: Path) -> None:
    """Writes the graph as MXNet 1.9 would (``attrs``, three-element entries)."""
    nodes = [
        {"op": n.op, "name": n.name, **({"attrs": attrs} if attrs else {}),
         "inputs": [[e.node, e.output, 0] for e in n.inputs]}
        for n in graph.nodes
        for attrs in [{**n.attrs, **n.user_attrs}]
    ]  # fmt: skip
    document = {
        "nodes": nodes,
        "arg_nodes": [i for i, n in enumerate(graph.nodes) if n.is_variable],
        "node_row_ptr": list(range(len(nodes) + 1)),
        "heads": [[h.node, h.output, 0] for h in graph.heads],
        "attrs": {"mxnet_version": ["int", 10901]},
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _node(raw: object, moved: Sequence[int], where: str) -> Node:
    if not isinstance(raw, dict):
        raise InvalidSymbol(f"{where}: expected an object with 'op' and 'name'")
    op, name = raw.get("op"), raw.get("name")
    if not isinstance(op, str) or not isinstance(name, str):
        raise InvalidSymbol(f"{where}: 'op' and 'name' must be strings")
    attrs: dict[str, str] = {}
    for key in ("attr", "param", "attrs"):
        part = raw.get(key) or {}
        if not isinstance(part, dict) or not all(isinstance(v, str) for v in part.values()):
            raise InvalidSymbol(f"{where}: '{key}' must map names to strings")
        attrs.update(part)
    op = canonical_name(op)
    inputs = _entries(raw.get("inputs") or [], moved, f"{where} ({name})")
    if op == "null":
        return Node(op, name, inputs, {}, {hidden_name(key): v for key, v in attrs.items()})
    return Node(op, name, inputs, *split_attributes(op, attrs))


def _give_to_inputs(node: Node, nodes: list[Node]) -> Node:
    """Moves ``weight_lr_mult`` and its like from an operator to the variable that it is about, as
    MXNet does; returns the operator without them."""
    kept = {}
    for key, value in node.user_attrs.items():
        found = None if node.is_variable else addressee(node.op, key)
        if found is None or found[0] >= len(node.inputs):
            kept[key] = value
            continue
        index = node.inputs[found[0]].node
        given = {**nodes[index].user_attrs, found[1]: value}
        nodes[index] = replace(nodes[index], user_attrs=given)
    return replace(node, user_attrs=kept)


def _entries(raw: object, moved: Sequence[int], where: str) -> tuple[Entry, ...]:
    if not isinstance(raw, list):
        raise InvalidSymbol(f"{where}: expected a list of inputs")
    entries = []
    for item in raw:
        numbers = isinstance(item, list) and all(type(v) is int and v >= 0 for v in item)
        if not numbers or len(item) not in (2, 3):
            raise InvalidSymbol(
                f"{where}: {item!r:.60} is not a valid entry: expected [node, output, version]"
            )
        if item[0] >= len(moved):
            raise InvalidSymbol(f"{where}: reads node {item[0]}, which does not come before it")
        entries.append(Entry(moved[item[0]], item[1]))
    return tuple(entries)
