"""Mutants: small faults in Python code, for bench/mutation.py."""

import ast
import copy
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

OPPOSITES: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
}
"""What an operator is mistaken for: a comparison's limit, or its direction."""
SWAPPED = {"min": "max", "max": "min", "any": "all", "all": "any"}
MESSAGES = {"say", "warn", "warn_once", "waiting", "track", "echo", "count_of"}
NO_CODE = (ast.JoinedStr, ast.Raise, ast.Assert, ast.pattern)
"""Messages, invariants that hold anyway, and patterns, which take no parentheses."""
INVARIANTS = {"strict", "encoding"}
"""Arguments that say what holds anyway: equal lengths, and UTF-8 on the machines that run this."""
NO_ARGUMENT = "**{}"


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One replaced expression or statement."""

    file: str
    """Relative to the root of the tree."""
    line: int
    column: int
    """In bytes, as `ast` counts."""
    end_line: int
    end_column: int
    code: str
    """The line it starts on."""
    old: str
    new: str

    @property
    def identity(self) -> tuple[str, int, str, str]:
        """What stays the same when the line moves."""
        return self.code, self.column, self.old, self.new


def find_mutants(root: Path, file: str) -> list[Mutant]:
    """Returns all mutants of a file's functions.

    Constants of modules and the defaults of settings are choices, which a test could only repeat;
    nor are messages, type hints, decorators, and `assert` mutated.
    """
    source = (root / file).read_bytes()
    lines = source.decode().splitlines()
    found = []
    for node in _code(ast.parse(source), inside=False):
        for part, new in _replacements(node):
            assert part.end_lineno is not None
            assert part.end_col_offset is not None
            mutant = Mutant(
                file=file,
                line=part.lineno,
                column=part.col_offset,
                end_line=part.end_lineno,
                end_column=part.end_col_offset,
                code=lines[part.lineno - 1].strip(),
                old=ast.unparse(part),
                new=new,
            )
            found.append(mutant)
    return found


def sample(mutants: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """Returns some mutants, mostly the same ones when other code is edited."""

    def rank(mutant: Mutant) -> bytes:
        return hashlib.sha256(repr((seed, mutant.file, *mutant.identity)).encode()).digest()

    return sorted(mutants, key=rank)[:count]


def mutated(source: bytes, mutant: Mutant) -> bytes:
    """Returns a file's content with the mutant in it."""
    lines = source.splitlines(keepends=True)
    start = sum(map(len, lines[: mutant.line - 1])) + mutant.column
    end = sum(map(len, lines[: mutant.end_line - 1])) + mutant.end_column
    new = mutant.new if mutant.new in ("pass", NO_ARGUMENT) else f"({mutant.new})"
    return source[:start] + new.encode() + source[end:]


def _code(node: ast.AST, *, inside: bool) -> Iterator[ast.AST]:
    """Yields the code of functions; `inside` tells whether the node stands in one."""
    if isinstance(node, NO_CODE) or _is_message(node):
        return
    if isinstance(node, ast.keyword) and node.arg in INVARIANTS:
        return
    if inside:
        yield node
    parts: Iterable[ast.AST]
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            inside, parts = True, node.body
        case ast.Lambda():
            inside, parts = True, [node.body]
        case ast.ClassDef():
            parts = node.body
        case ast.AnnAssign():
            parts = [node.value] if node.value else []
        case _:
            parts = ast.iter_child_nodes(node)
    for part in parts:
        yield from _code(part, inside=inside)


def _is_message(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name in MESSAGES or name.endswith(("Error", "Exception"))
    return False


def _replacements(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt | ast.keyword, str]]:
    """Yields what to replace of a node, and by what."""
    match node:
        case ast.keyword(arg=str()):
            yield node, NO_ARGUMENT
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield value, "None"
        case ast.Expr(value=ast.Call() as call) if not _is_message(call):
            yield node, "pass"
        case ast.If(test=test) | ast.While(test=test):
            yield from _negated(test)
        case ast.comprehension(ifs=tests):
            for test in tests:
                yield from _negated(test)
        case ast.expr():
            yield from ((node, new) for new in _mistaken(node))
            if isinstance(node, ast.IfExp):
                yield from _negated(node.test)


def _mistaken(node: ast.expr) -> Iterator[str]:
    """Yields what may stand in an expression's place."""
    match node:
        case ast.Compare(ops=[operator]):
            for opposite in OPPOSITES[type(operator)]:
                yield _with(node, ops=[opposite()])
        case ast.BoolOp(op=operator) | ast.BinOp(op=operator):
            for opposite in OPPOSITES.get(type(operator), ()):
                yield _with(node, op=opposite())
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield ast.unparse(operand)
        case ast.Constant(value=bool(value)):
            yield repr(not value)
        case ast.Constant(value=int(value)):
            yield repr(value + 1)
        case ast.Constant(value=float(value)):
            yield repr(value * 2 or 1.0)
        case ast.Call(func=ast.Name(id=name) as function) if name in SWAPPED:
            yield _with(node, func=_changed(function, id=SWAPPED[name]))
        case ast.Call(func=ast.Attribute(attr=name) as function) if name in SWAPPED:
            yield _with(node, func=_changed(function, attr=SWAPPED[name]))


def _negated(test: ast.expr) -> Iterator[tuple[ast.expr, str]]:
    """Yields a condition's opposite, unless another mutant is just that."""
    if not isinstance(test, ast.Compare | ast.Constant | ast.UnaryOp):
        yield test, ast.unparse(ast.UnaryOp(op=ast.Not(), operand=test))


def _changed(node: ast.expr, **fields: object) -> ast.expr:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _with(node: ast.expr, **fields: object) -> str:
    return ast.unparse(_changed(node, **fields))
