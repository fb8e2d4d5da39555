"""Checks of symbolic sizes: torch passes their text to sympy, which evaluates it as Python.

Only what torch itself writes is accepted: numbers, symbols such as s0 and u3, and a fixed set of functions of them.
The size of the computation is limited too, so that evaluation is fast.
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
        Unfit: it is not; the message says why.

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
        raise Unfit(f"a symbolic size is not an expression: {text[:80]!a}") from error
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
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords) if _is_leaf(name, arguments, keywords):
            return
        case ast.BinOp(left=base, op=ast.Pow(), right=exponent):
            return _check_power(node, base, exponent, depth, powers)
        case ast.Call(func=ast.Name(id=name), args=[base, exponent], keywords=[]) if name in _POWER_FUNCTIONS | _SHIFTS:
            return _check_power(node, base, exponent, depth, powers)
        case ast.UnaryOp(op=op, operand=operand) if isinstance(op, _OPERATORS):
            parts = [operand]
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _OPERATORS):
            parts = [left, right]
        case ast.Compare(left=left, ops=[op], comparators=[right]) if isinstance(op, _OPERATORS):
            parts = [left, right]
        case ast.Call(func=ast.Name(id=name), args=parts, keywords=[]) if name in _FUNCTIONS and (
            name not in ("Max", "Min") or len(parts) <= _TERMS
        ):
            pass
        case _:
            raise Unfit(f'a symbolic size holds "{ast.unparse(node)[:80]}", which torch does not write')
    for part in parts:
        _check(part, depth + 1, powers)


def _check_power(node: ast.expr, base: ast.expr, exponent: ast.expr, depth: int, powers: int) -> None:
    """Powers of numbers that may be large: exponents must be small constants, and few may be nested."""
    value = _literal(exponent)
    shift = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _SHIFTS
    limit = _SHIFT if shift else _EXPONENT
    if powers >= _POWERS or value is None or abs(value) > limit:
        raise Unfit(f'a symbolic size holds the power "{ast.unparse(node)[:80]}"; exponents are numbers up to {limit}')
    _check(base, depth + 1, powers + 1)


def _literal(node: ast.expr) -> float | None:
    """A constant number, also as `Integer(-1)`, `Rational(1, 2)` or `Float('0.5', precision=53)`; else None."""
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
    """Whether a call is a number or a symbol in sympy's srepr notation."""
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
