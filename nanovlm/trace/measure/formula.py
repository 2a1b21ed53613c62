"""Finds the formula behind a dim from its values at several input sizes: 128, 135 at T = 79, 86 is 49+T."""

from __future__ import annotations

import ast
import itertools
import math

Sizes = dict[str, int]
Terms = dict[tuple[str, ...], int]  # {(): 49, ("T",): 1} is 49 + T

_DIVISORS = (2, 4, 8, 16, 3)


class Formulas:
    """Fits values at the given points: the base, each name grown alone, each pair grown together, and a check.

    The forms tried are sums of a constant, the names and their pairwise products; then the same plus one square; then
    the same with some of the names divided by 2, 3, 4, 8 or 16 and rounded down or up.
    """

    def __init__(self, points: list[Sizes]):
        self.points = points
        self.names = list(points[0])
        self._known: dict[tuple[int, ...], str] = {}

    def fit(self, values: tuple[int, ...]) -> str:
        """The formula as text; a number with "?" where the dim does change, but in none of these forms."""
        if values not in self._known:
            self._known[values] = self._fit(values)
        return self._known[values]

    def _fit(self, values: tuple[int, ...]) -> str:
        if len(set(values)) == 1:
            return str(values[0])
        plain = {name: name for name in self.names}
        for square in [(), *((name, name) for name in self.names)]:
            rest = [v - _value({square: 1}, p) if square else v for v, p in zip(values, self.points, strict=True)]
            terms = _multilinear(rest, self.points, self.names)
            if terms is not None:
                return write({**terms, square: 1} if square else terms, plain)
        for divisor, up in itertools.product(_DIVISORS, (False, True)):
            for count in range(1, len(self.names) + 1):
                for chosen in itertools.combinations(self.names, count):
                    divided = [
                        {n: (s + up * (divisor - 1)) // divisor if n in chosen else s for n, s in p.items()}
                        for p in self.points
                    ]
                    terms = _multilinear(list(values), divided, self.names)
                    if terms is not None:
                        rounded = {n: f"({n}+{divisor - 1})//{divisor}" if up else f"{n}//{divisor}" for n in chosen}
                        return write(terms, plain | rounded)
        return f"{values[0]}?"


def _multilinear(values: list[int], points: list[Sizes], names: list[str]) -> Terms | None:
    """Whole coefficients of 1, the names and their pairs that give every value, or None."""
    base, at = points[0], {(name,): i + 1 for i, name in enumerate(names)}
    at |= {pair: len(names) + 1 + i for i, pair in enumerate(itertools.combinations(names, 2))}
    grown = {name: points[at[name,]][name] - base[name] for name in names}
    if not all(grown.values()):
        return None
    terms: Terms = {}
    for a, b in itertools.combinations(names, 2):  # the mixed difference is c * (growth of a) * (growth of b)
        mixed = values[at[a, b]] - values[at[a,]] - values[at[b,]] + values[0]
        terms[a, b] = mixed // (grown[a] * grown[b])
    for name in names:
        pairs = {pair: c for pair, c in terms.items() if name in pair}
        others = sum(c * math.prod(base[n] for n in pair if n != name) for pair, c in pairs.items())
        terms[name,] = (values[at[name,]] - values[0]) // grown[name] - others
    terms[()] = values[0] - _value(terms, base)
    terms = {term: c for term, c in terms.items() if c}
    fits = all(_value(terms, p) == v for p, v in zip(points, values, strict=True))
    return terms if fits else None


def _value(terms: Terms, sizes: Sizes) -> int:
    return sum(c * math.prod(sizes[name] for name in term) for term, c in terms.items())


def write(terms: Terms, shown: dict[str, str]) -> str:
    """{(): 49, ("T",): 1} -> "49+T"; {("B",): 49, ("B", "T"): 1} -> "B*(49+T)"."""
    for name in shown:
        if len(terms) > 1 and all(name in term for term in terms):
            rest = {tuple(n for i, n in enumerate(t) if i != t.index(name)): c for t, c in terms.items()}
            return f"{_factor(shown[name])}*({write(rest, shown)})"
    parts = []
    for term, c in sorted(terms.items(), key=lambda item: (item[1] < 0, len(item[0]))):  # T-1, never -1+T
        factors = [shown[name] for name in term]
        if abs(c) != 1 or not factors:
            factors.insert(0, str(abs(c)))
        body = factors[0] if len(factors) == 1 else "*".join(map(_factor, factors))
        parts.append(("-" if c < 0 else "+") + body)
    return "".join(parts).removeprefix("+")


def _factor(text: str) -> str:
    return f"({text})" if "//" in text else text  # B*(T//2) is not B*T//2


def value_of(text: str, sizes: Sizes) -> int | None:
    """The number behind "49+T" or "B*(49+T)", or None where a name is not known yet."""

    def value(node: ast.AST) -> int:
        match node:
            case ast.Expression(body=body):
                return value(body)
            case ast.Constant(value=int(number)):
                return number
            case ast.Name(id=name):
                return sizes[name]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.BinOp(left=left, op=op, right=right):
                a, b = value(left), value(right)
                match op:
                    case ast.Add():
                        return a + b
                    case ast.Sub():
                        return a - b
                    case ast.Mult():
                        return a * b
                    case ast.FloorDiv() | ast.Div():
                        return a // b
        raise ValueError(f"{text!r} is no shape word: use numbers, names, and + - * // of them.")

    try:
        return value(ast.parse(text, mode="eval"))
    except KeyError:
        return None
    except SyntaxError as error:
        raise ValueError(f"{text!r} is no shape word: use numbers, names, and + - * // of them.") from error
