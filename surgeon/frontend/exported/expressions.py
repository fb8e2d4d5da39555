"""The text of symbolic sizes: torch hands it to sympy, which evaluates it as Python.

Only what torch itself writes is let through: numbers, symbols such as s0 and u3, and a fixed set of functions of them.
The size of what is computed is bounded too, so that an evaluation is short.
"""

from __future__ import annotations

import ast
import math
import re
from typing import Final

from surgeon.support.opening import Unfit

LENGTH: Final = 20_000
_NODES: Final = 2_000
_NESTED: Final = 60
_EXPONENT: Final = 8
_SHIFT: Final = 63
_POWERS: Final = 3
_TERMS: Final = 32
"""Sympy compares every argument of Max and Min with every other."""
_INTEGER: Final = 1 << 64

SYMBOL: Final = re.compile(r"(s|u|zf|zuf)(0|[1-9][0-9]{0,4})")
_FLOAT: Final = re.compile(r"-?[0-9]{1,40}(\.[0-9]{0,60})?(e[+-]?[0-9]{1,3})?")
_ASSUMPTIONS: Final = frozenset(("commutative", "integer", "negative", "nonnegative", "positive", "real", "zero"))
_POWER_FUNCTIONS: Final = frozenset(("Pow", "PowByNatural", "FloatPow"))
_SHIFTS: Final = frozenset(("LShift", "RShift"))
_FUNCTIONS: Final = frozenset(
    """Abs Add And CeilDiv CeilToInt CleanDiv Equality Eq FloatTrueDiv FloorDiv FloorToInt GreaterThan Identity
    IntTrueDiv IsNonOverlappingAndDenseIndicator LessThan Max Min Mod ModularIndexing Mul Ne Not Or PythonMod
    RoundDecimal RoundToInt StrictGreaterThan StrictLessThan ToFloat TruncToFloat TruncToInt Unequality Where ceiling
    floor""".split()
)
_CONSTANTS: Final = frozenset(("true", "false", "True", "False"))
_OPERATORS = (
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.USub, ast.UAdd,
    ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip


def check_expression(text: str) -> None:
    """Make sure that `text` is a symbolic size, as torch writes it.

    Raises:
        Unfit: it is not; the message says what is in the way.

    >>> check_expression("Add(FloorDiv(Symbol('s0', positive=True, integer=True), Integer(2)), Integer(1))")
    >>> check_expression("s0*2 + (s1 - 1)//2")
    >>> check_expression("__import__('os').system('true')")
    Traceback (most recent call last):
        ...
    surgeon.support.opening.Unfit: a symbolic size holds "__import__('os').system('true')", which torch does not write
    """
    if len(text) > LENGTH:
        raise Unfit(f"a symbolic size is {len(text):,} characters long; at most {LENGTH:,} are read")
    if not text.isascii() or not text.isprintable() or "#" in text:
        raise Unfit(f"a symbolic size holds {text[:80]!a}, which torch does not write")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Unfit(f"a symbolic size is no expression: {text[:80]!a}") from error
    if sum(1 for _ in ast.walk(tree)) > _NODES:
        raise Unfit(f"a symbolic size has more than {_NODES:,} parts: {text[:80]!a}")
    _check(tree.body, 0, 0)


def _check(node: ast.expr, depth: int, powers: int) -> None:
    if depth > _NESTED:
        raise Unfit(f"a symbolic size is nested more than {_NESTED} deep")
    match node:
        case ast.Constant(value=bool()):
            return
        case ast.Constant(value=int(value)) if abs(value) < _INTEGER:
            return
        case ast.Constant(value=float(number)) if math.isfinite(number):
            return
        case ast.Name(id=name) if SYMBOL.fullmatch(name) or name in _CONSTANTS:
            return
        case ast.UnaryOp(op=op, operand=operand) if isinstance(op, _OPERATORS):
            return _check(operand, depth + 1, powers)
        case ast.BinOp(left=base, op=ast.Pow(), right=exponent):
            return _check_power(node, base, exponent, depth, powers)
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _OPERATORS):
            _check(left, depth + 1, powers)
            return _check(right, depth + 1, powers)
        case ast.Compare(left=left, ops=[op], comparators=[right]) if isinstance(op, _OPERATORS):
            _check(left, depth + 1, powers)
            return _check(right, depth + 1, powers)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords):
            if _is_leaf(name, arguments, keywords):
                return None
            if name in _POWER_FUNCTIONS | _SHIFTS and len(arguments) == 2 and not keywords:
                return _check_power(node, arguments[0], arguments[1], depth, powers)
            if name in _FUNCTIONS and not keywords and (name not in ("Max", "Min") or len(arguments) <= _TERMS):
                for argument in arguments:
                    _check(argument, depth + 1, powers)
                return None
    raise Unfit(f'a symbolic size holds "{ast.unparse(node)[:80]}", which torch does not write')


def _check_power(node: ast.expr, base: ast.expr, exponent: ast.expr, depth: int, powers: int) -> None:
    """A power of what may be a large number already: exponents are written out and small, and few are nested."""
    value = _literal(exponent)
    shift = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _SHIFTS
    limit = _SHIFT if shift else _EXPONENT
    if powers >= _POWERS or value is None or abs(value) > limit:
        raise Unfit(f'a symbolic size holds the power "{ast.unparse(node)[:80]}"; exponents are numbers up to {limit}')
    _check(base, depth + 1, powers + 1)


def _literal(node: ast.expr) -> float | None:
    """The number that is written out, also as `Integer(-1)`, `Rational(1, 2)` or `Float('0.5', precision=53)`."""
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
        case ast.Constant(value=float(value)):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _literal(operand)
            return None if inner is None else -inner
        case ast.Call(func=ast.Name(id="Integer"), args=[argument], keywords=[]):
            return _literal(argument)
        case ast.Call(func=ast.Name(id="Rational"), args=[above, below], keywords=[]):
            a, b = _literal(above), _literal(below)
            return a / b if a is not None and b else None
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str(text))]) if _FLOAT.fullmatch(text):
            return float(text)
    return None


def _is_leaf(name: str, arguments: list[ast.expr], keywords: list[ast.keyword]) -> bool:
    """A number or a symbol in the form of sympy's srepr."""
    match name, arguments:
        case "Symbol", [ast.Constant(value=str(text))]:
            assumed = [(each.arg, each.value) for each in keywords]
            return bool(SYMBOL.fullmatch(text)) and all(
                key in _ASSUMPTIONS and isinstance(value, ast.Constant) and isinstance(value.value, bool)
                for key, value in assumed
            )
        case "Integer", [number] if not keywords:
            return _is_integer(_literal(number))
        case "Rational", [above, below] if not keywords:
            return _is_integer(_literal(above)) and _is_integer(_literal(below)) and _literal(below) != 0
        case "Float", [ast.Constant(value=str(text))] if _FLOAT.fullmatch(text):
            return all(
                each.arg == "precision" and isinstance(each.value, ast.Constant) and each.value.value == 53
                for each in keywords
            )
    return False


def _is_integer(value: float | None) -> bool:
    return isinstance(value, int) and abs(value) < _INTEGER
