"""What a compiled program does, read from its text."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import jax.numpy as jnp

_LINE = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (.*)")
_CALL = re.compile(r"([\w-]+)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|\w*computations?|condition|body)=(\{[^}]*\}|%?[\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:s=\{|ensions":\[)([^]}]*)')
_NAMED = re.compile(r"%([\w.-]+)")
_KINDS = {"pred": "bool", "bf": "bfloat", "s": "int", "u": "uint", "f": "float", "c": "complex"}


class Shape(NamedTuple):
    """An array of a program.

    Attributes:
      shape: its axes.
      dtype: its name in numpy or jax.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize


class Operation(NamedTuple):
    """A line of a program.

    Attributes:
      kind: such as `"all-reduce"`.
      results: arrays that it returns.
      operands: arrays that it takes.
      attributes: the rest of its line.
      times: how often it runs. A loop of unknown length counts as one of 1.
    """

    kind: str
    results: tuple[Shape, ...]
    operands: tuple[Shape, ...]
    attributes: str
    times: int


class _Line(NamedTuple):
    computation: str
    kind: str
    results: str
    operands: str
    attributes: str


def operations(text: str, kinds: Sequence[str]) -> Iterator[Operation]:
    """The operations of these kinds, in the order of the text, also those that begin one.

    The text is that of `compiled.as_text()`.
    """
    lines, entry = _lines(text)
    times = _times(lines, entry)
    for line in lines.values():
        kind = line.kind.removesuffix("-start")
        if kind in kinds and times(line.computation):
            names = [(line.computation, name) for name in _NAMED.findall(line.operands)]
            operands = "".join(lines[name].results for name in names) if names else line.operands
            found = arrays(line.results), arrays(operands)
            yield Operation(kind, *found, line.attributes, times(line.computation))


def arrays(types: str) -> tuple[Shape, ...]:
    """The arrays of a type, which may be a tuple."""
    return tuple(
        Shape(tuple(int(x.strip("<=")) for x in axes.split(",") if x), _dtype(kind))
        for kind, axes in _ARRAY.findall(types)
        if kind != "token"
    )


def products(text: str) -> int:
    """Multiplications and additions of matrix products and convolutions on a device."""
    found = operations(text, ("dot", "convolution", "custom-call"))
    return sum(x.times * 2 * _pairs(x) for x in found)


def _pairs(operation):
    """How many numbers are multiplied with another."""
    count = math.prod(operation.results[0].shape) if operation.results else 0
    if operation.kind == "convolution":
        kernel, *_ = re.findall(r"dim_labels=\w+_(\w+)->", operation.attributes)
        sizes = zip(kernel, operation.operands[1].shape)
        return count * math.prod(size for name, size in sizes if name != "o")
    found = _CONTRACTED.search(operation.attributes)
    if not found:  # no product
        return 0
    axes = re.findall(r"\d+", found[1])
    return count * math.prod(operation.operands[0].shape[int(axis)] for axis in axes)


def _lines(text):
    """All lines by computation and name, and the computation that is the program."""
    lines, computation, entry = {}, "", ""
    for line in text.splitlines():
        if line[:1] in ("%", "E") and line.endswith("{"):
            computation = line.removeprefix("ENTRY ").split(maxsplit=1)[0].lstrip("%")
            entry = computation if line.startswith("ENTRY ") else entry
        elif found := _LINE.match(line):
            types, _, rest = _cut(found[2]) if found[2][0] == "(" else found[2].partition(" ")
            if call := _CALL.match(rest):
                operands, _, attributes = _cut(rest[len(call[1]) :])
                line = _Line(computation, call[1], types, operands, attributes)
                lines[computation, found[1]] = line
    return lines, entry


def _cut(text):
    """What the first parenthesis encloses, and what is behind the character after it."""
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return text[: found.end()], "", text[found.end() + 1 :]
    return text, "", ""


def _times(lines, entry):
    """How often a computation runs."""
    callers = defaultdict(list)
    for line in lines.values():
        if not line.kind.endswith(("-done", "-update")):
            trips = _TRIPS.search(line.attributes) if line.kind == "while" else None
            for names in _CALLED.findall(line.attributes):
                for name in re.findall(r"[\w.-]+", names):
                    callers[name].append((line.computation, int(trips[1]) if trips else 1))

    @cache
    def times(computation):
        if computation == entry:
            return 1
        return sum(times(caller) * trips for caller, trips in callers[computation])

    return times


def _dtype(kind):
    for short, name in _KINDS.items():
        if kind == short or (kind.startswith(short) and kind[len(short)].isdigit()):
            bits = kind[len(short) :]
            return name + (f"{bits[0]}_{bits[1:]}" if bits[1:2] == "e" else bits)
    raise ValueError(f"Expected the dtype of an array of XLA, got {kind!r}.")
