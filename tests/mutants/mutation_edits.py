"""Small faults of the kind that a tired engineer makes, as edits of a source file."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"),
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "//"), ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"),
    ast.LShift: ("<<", ">>"), ast.RShift: (">>", "<<"), ast.Pow: ("**", "*"),
}  # fmt: skip
# Names that stand for one another's opposite, wherever they are read.
NAMES = {
    one: other
    for pair in (
        "min max", "ceil floor", "any all", "minimum maximum", "argmin argmax", "height width",
        "rows columns", "top left", "bottom right", "popleft pop", "append appendleft",
        "bisect_left bisect_right", "zeros_like empty_like", "round int", "rint floor",
        "INTER_NEAREST_EXACT INTER_NEAREST", "INTER_LINEAR INTER_NEAREST", "removeprefix lstrip",
        "fullmatch match", "astimezone replace", "wait_for shield", "set clear",
    )
    for one, other in (pair.split(), pair.split()[::-1])
}  # fmt: skip
LARGEST_COUNT = 64
# Aliases of types, which nothing looks at while the program runs.
TYPES = re.compile(r"(tuple|dict|list|set|type|Callable|Mapping|Sequence|npt\.NDArray|NDArray)\[")
# The order of their arguments makes no difference.
COMMUTATIVE = re.compile(r"(\w+\.)*(min|max|minimum|maximum|hypot|isclose|gcd|allclose)$")
# Their arguments are texts for people.
TALKERS = re.compile(r"(log|logger|warnings|console|typer|print|echo)\b")


@dataclass(frozen=True)
class Edit:
    """Bytes ``start`` to ``end`` of a file become ``new``."""

    line: int
    kind: str
    start: int
    end: int
    new: bytes

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.new + source[self.end :]


def find_edits(source: bytes) -> list[Edit]:
    """All edits of a module that leave valid Python, in the order of its lines."""
    found = _Finder(source).run()
    kept = {(edit.start, edit.end, edit.new): edit for edit in found if _is_valid(source, edit)}
    return sorted(kept.values(), key=lambda edit: (edit.start, edit.end, edit.new))


def _is_valid(source: bytes, edit: Edit) -> bool:
    try:
        ast.parse(edit.apply(source))
    except SyntaxError:
        return False
    return True


class _Finder:
    def __init__(self, source: bytes) -> None:
        self.source = source
        self.tree = ast.parse(source)
        self.lines = source.split(b"\n")
        self.offsets = [0]
        for line in self.lines:
            self.offsets.append(self.offsets[-1] + len(line) + 1)

    def run(self) -> list[Edit]:
        edits: list[Edit] = []
        for node in self._nodes(self.tree):
            if b"pragma: no mutate" not in self.lines[node.lineno - 1]:  # type: ignore[attr-defined]
                edits += self._edits(node)
        return edits

    def _nodes(self, node: ast.AST) -> Iterator[ast.AST]:
        """Those with a place in the file, but for annotations and texts."""
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if not isinstance(child, ast.AST) or self._is_talk(child):
                    continue
                if hasattr(child, "lineno"):
                    yield child
                yield from self._nodes(child)

    def _is_talk(self, node: ast.AST) -> bool:
        if isinstance(node, (ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert)):
            return True
        if isinstance(node, ast.Subscript) and TYPES.match(ast.unparse(node)):
            return True
        if isinstance(node, ast.Expr):
            node = node.value
            if isinstance(node, ast.Constant):
                return True
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return True
        return isinstance(node, ast.Call) and bool(TALKERS.match(ast.unparse(node.func)))

    def _span(self, node: ast.AST) -> tuple[int, int]:
        start = self.offsets[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        end = self.offsets[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        return start, end

    def _text(self, node: ast.AST) -> bytes:
        return self.source[slice(*self._span(node))]

    def _replace(self, node: ast.AST, kind: str, new: bytes | str) -> Edit:
        new = new.encode() if isinstance(new, str) else new
        return Edit(node.lineno, kind, *self._span(node), new)  # type: ignore[attr-defined]

    def _between(
        self, left: ast.AST, right: ast.AST, kind: str, old: str, new: str
    ) -> Iterator[Edit]:
        """The operator between two operands."""
        start, end = self._span(left)[1], self._span(right)[0]
        word = rb"\b%b\b" if old[0].isalpha() else rb"%b"
        pattern = rb"\s+".join(re.escape(part.encode()) for part in old.split())
        match = re.search(word % pattern, self.source[start:end])
        if match:
            line = self.source.count(b"\n", 0, start + match.start()) + 1
            yield Edit(line, kind, start + match.start(), start + match.end(), new.encode())

    def _edits(self, node: ast.AST) -> Iterator[Edit]:
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            for op, left, right in zip(node.ops, operands, operands[1:], strict=False):
                yield from self._between(left, right, "comparison", *COMPARISONS[type(op)])
        elif isinstance(node, ast.BoolOp):
            old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
            for left, right in pairwise(node.values):
                yield from self._between(left, right, "and, or", old, new)
                if len(node.values) > 2:
                    span = self._span(left)[1], self._span(right)[1]
                    yield Edit(left.lineno, "operand left out", *span, b"")
            yield self._replace(node, "operand left out", self._text(node.values[0]))
            yield self._replace(node, "operand left out", self._text(node.values[-1]))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
            yield self._replace(node, "sign or not", self._text(node.operand))
        elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in ARITHMETIC:
            left, right = (
                (node.left, node.right)
                if isinstance(node, ast.BinOp)
                else (node.target, node.value)
            )
            yield from self._between(left, right, "arithmetic", *ARITHMETIC[type(node.op)])
            if isinstance(node, ast.AugAssign):
                yield from self._statement(node)
        elif isinstance(node, ast.Constant):
            yield from self._constant(node)
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load):
            name = node.id if isinstance(node, ast.Name) else node.attr
            if name in NAMES:
                text = self._text(node)
                yield self._replace(node, "name", text[: -len(name)] + NAMES[name].encode())
        elif isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Load) and len(node.elts) == 2:
            yield from self._swap(node.elts[0], node.elts[1], "order")
        elif isinstance(node, ast.IfExp):
            yield self._replace(node, "condition", self._text(node.body))
            yield self._replace(node, "condition", self._text(node.orelse))
        elif isinstance(node, ast.Slice):
            yield from self._slice(node)
        elif isinstance(node, ast.Call):
            yield from self._call(node)
        elif isinstance(node, ast.stmt):
            yield from self._statement(node)

    def _constant(self, node: ast.Constant) -> Iterator[Edit]:
        value = node.value
        if isinstance(value, bool):
            yield self._replace(node, "constant", str(not value))
        elif isinstance(value, int):
            # One more of a large number is mostly as good: it is a bound or a unit.
            small = value <= LARGEST_COUNT
            yield self._replace(node, "constant", str(value + 1 if small else value * 1000))
            yield self._replace(node, "constant", f"({value - 1})" if small else str(value // 10))
        elif isinstance(value, float):
            yield self._replace(node, "constant", repr(value * 1000.0 if value else 1.0))

    def _slice(self, node: ast.Slice) -> Iterator[Edit]:
        if node.step is not None and ast.unparse(node) == "::-1":
            yield self._replace(node, "slice", ":")
        for bound, is_lower in ((node.lower, True), (node.upper, False)):
            if bound is not None:
                rest = b":" + (self._text(node.upper) if node.upper else b"")
                left = (self._text(node.lower) if node.lower else b"") + b":"
                if node.step is None:
                    yield self._replace(node, "slice", rest if is_lower else left)

    def _call(self, node: ast.Call) -> Iterator[Edit]:
        plain = [a for a in node.args if not isinstance(a, ast.Starred)]
        if COMMUTATIVE.match(ast.unparse(node.func)):
            plain = []
        for one, other in pairwise(plain):
            yield from self._swap(one, other, "arguments")
        for keyword in node.keywords:
            if keyword.arg is not None:
                start, end = self._span(keyword)
                behind = re.match(rb"\s*,", self.source[end:])
                end += behind.end() if behind else 0
                yield Edit(keyword.lineno, "keyword left out", start, end, b"")

    def _swap(self, one: ast.expr, other: ast.expr, kind: str) -> Iterator[Edit]:
        first, second = self._text(one), self._text(other)
        if first != second and not any(isinstance(n, ast.JoinedStr) for n in (one, other)):
            start, end = self._span(one)[0], self._span(other)[1]
            between = self.source[self._span(one)[1] : self._span(other)[0]]
            yield Edit(one.lineno, kind, start, end, second + between + first)

    def _statement(self, node: ast.stmt) -> Iterator[Edit]:
        if isinstance(node, (ast.If, ast.While)):
            yield self._replace(node.test, "condition", "False")
            if isinstance(node, ast.If):
                yield self._replace(node.test, "condition", "True")
        elif self._is_left_out(node):
            yield self._replace(node, "statement left out", "pass")
        elif isinstance(node, ast.Return) and node.value and ast.unparse(node.value) != "None":
            yield self._replace(node, "result", "return None")

    @staticmethod
    def _is_left_out(node: ast.stmt) -> bool:
        """Whether the module can do without a statement, as far as Python goes."""
        if isinstance(node, ast.Expr):
            return isinstance(node.value, (ast.Call, ast.Await))
        if isinstance(node, ast.Assign):
            return not isinstance(node.targets[0], ast.Name)
        return isinstance(node, (ast.AugAssign, ast.Continue, ast.Break, ast.Raise))
