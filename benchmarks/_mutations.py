"""Small faults in the code of a room: where they may stand, what stands there then, and a draw."""

import ast
import dataclasses
import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path

COMPARISONS: dict[type, tuple] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
OPERATORS: dict[type, type] = {ast.Add: ast.Sub, ast.Mult: ast.Div, ast.BitAnd: ast.BitOr}
OPERATORS |= {y: x for x, y in OPERATORS.items()} | {ast.Pow: ast.Mult}
NAMES = {"min": "max", "minimum": "maximum", "sum": "mean", "any": "all", "log1p": "log"}
NAMES |= {y: x for x, y in NAMES.items()}
KEYWORDS = {"axis", "where", "initial", "keepdims", "stable", "reverse", "precision"}
MODULES = {"jnp", "jax", "lax", "np", "math"}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A module with a fault.

    Attributes:
      path: the module, from the root of the tree on.
      line: where the fault is.
      unit: the function or class it is in.
      before: the line as it was.
      after: the line with the fault.
      source: the module with the fault.
    """

    path: str
    line: int
    unit: str
    before: str
    after: str
    source: str


def draw(root: Path, room: str, count: int, seed: int) -> list[Mutant]:
    """So many mutants of a room, each on a line of its own, evenly over its modules."""
    rng = random.Random(f"{room} {seed}")
    queues = []
    for path in sorted((root / "lossopt" / room).glob("_[!_]*.py")):
        lines: dict[int, list[Mutant]] = {}
        for mutant in mutants(path.relative_to(root).as_posix(), path.read_text("utf-8")):
            lines.setdefault(mutant.line, []).append(mutant)
        chosen = [rng.choice(several) for several in lines.values()]
        queues.append(rng.sample(chosen, len(chosen)))
    rng.shuffle(queues)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*queues))
    return list(itertools.islice(filter(None, turns), count))


def mutants(path: str, source: str) -> Iterator[Mutant]:
    """All mutants of a module."""
    data = source.encode()  # in which places are counted
    starts = [0, *itertools.accumulate(map(len, data.splitlines(keepends=True)))]
    units = [x for x in ast.parse(source).body if not re.match("[A-Z][a-z]", ast.unparse(x))]
    for unit in units:  # a name of this form is that of a type
        for node, other in ((x, y) for x in places(unit) for y in changes(x)):
            first, last = starts[node.lineno - 1], starts[node.end_lineno]
            start = first + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            text = ast.unparse(other)
            if isinstance(other, ast.BinOp | ast.BoolOp | ast.Compare | ast.IfExp | ast.UnaryOp):
                text = f"({text})"
            lines = (data[start:end], text.encode())
            before, after = (data[first:start] + x + data[end:last] for x in lines)
            yield Mutant(
                path=path,
                line=node.lineno,
                unit=getattr(unit, "name", ""),
                before=" ".join(before.decode().split()),
                after=" ".join(after.decode().split()),
                source=(data[:first] + after + data[last:]).decode(),
            )


def places(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that are code, and neither words nor types."""
    if isinstance(node, ast.JoinedStr):
        return
    yield node
    fields = dict(ast.iter_fields(node) if not isinstance(node, ast.Raise) else ())
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "_checks.condition":
        del fields["keywords"]  # what its message shows
    for name, field in fields.items():
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.AST) and name not in ("annotation", "returns"):
                yield from places(child)


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in place of a node."""
    match node:
        case ast.Compare(left, [op], [right]):
            yield from (ast.Compare(left, [x()], [right]) for x in COMPARISONS.get(type(op), ()))
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.BinOp(left, op, right):
            yield from (left, right)
            if type(op) in OPERATORS:
                yield ast.BinOp(left, OPERATORS[type(op)](), right)
        case ast.UnaryOp(_, operand):
            yield operand
        case ast.IfExp(test, body, orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.Constant(bool(x)):
            yield ast.Constant(not x)
        case ast.Constant(int(x) | float(x)):
            yield ast.Constant({0: 1, 1: 0}.get(x, x + 1))
        case ast.Attribute(value, name) if name in NAMES:
            yield ast.Attribute(value, NAMES[name])
        case ast.Call(func, args, keywords):
            yield from calls(func, args, keywords)
        case ast.Expr(ast.Call()) | ast.Raise() | ast.AugAssign():
            yield ast.Pass()
        case ast.Assign(targets, value) if names(*targets) & names(value):
            yield ast.Pass()


def calls(func, args, keywords):
    """A call with a keyword less, with the branches of a `where` swapped, its argument alone."""
    for i, keyword in enumerate(keywords):
        if keyword.arg in KEYWORDS:
            yield ast.Call(func, args, keywords[:i] + keywords[i + 1 :])
    if ast.unparse(func) == "jnp.where" and len(args) == 3:
        yield ast.Call(func, [args[0], args[2], args[1]], keywords)
    elif len(args) == 1 and (isinstance(func, ast.Name) or names(func) & MODULES):
        yield from (x for x in args if not isinstance(x, ast.Starred))


def names(*nodes) -> set[str]:
    """The names in these nodes."""
    return {x.id for node in nodes for x in ast.walk(node) if isinstance(x, ast.Name)}


def members(root: Path, room: str, unit: str = "") -> set[str]:
    """The public functions and classes of a room that come to this one, or all of them."""
    mentions: dict[str, set[str]] = {}
    for path in (root / "lossopt" / room).glob("_[!_]*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                attributes = {x.attr for x in ast.walk(node) if isinstance(x, ast.Attribute)}
                mentions.setdefault(node.name, set()).update(names(node) | attributes)
    reached, more = set(), {unit} if unit else set(mentions)
    while more:
        reached |= more
        more = {name for name, said in mentions.items() if said & reached} - reached
    return {name for name in reached if name[0] != "_"}
