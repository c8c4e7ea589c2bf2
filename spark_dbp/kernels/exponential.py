"""The exponential function, correctly rounded, fast enough for many clusters. Imports numpy only.

`exp` of numpy and of the C library differ in the last bit between versions and processors. That of `decimal`
does not, but takes 15 microseconds a value. Here numpy computes with pairs of floats (a value and what its
rounding left over), which is precise to 30 digits and the same on every machine, because it only adds,
subtracts and multiplies. Where even that is too close to the middle of two floats, `decimal` decides.
"""

from __future__ import annotations

from decimal import Context, Decimal
from fractions import Fraction

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float64]
_Pair = tuple[_Floats, _Floats]

_DECIMAL = Context(prec=25)
_LN2 = Fraction("0.6931471805599453094172321214581765680755001343602552541206800094933936219696947")
# exp(x) is 0 below the first, and may be no normal float below the second.
_ZERO_BELOW, _NORMAL_FROM = -746.0, -700.0
# The series is summed for x / 2**8, and the result squared eight times.
_SQUARINGS = 8
_INVERSE_FACTORIALS = 10
# Farther than this from the middle of two floats, relative to the value, the rounding is sure.
_SURE = 2.0**-78
# Splits a float into two of 26 bits (Dekker).
_SPLITTER = 2.0**27 + 1


def _split_ln2() -> tuple[float, float, float]:
    """The logarithm of 2 as a sum. The first two have 42 bits, so 11-bit multiples of them are exact."""
    first = float(Fraction(int(_LN2 * 2**42), 2**42))
    second = float(Fraction(int((_LN2 - Fraction(first)) * 2**84), 2**84))
    return first, second, float(_LN2 - Fraction(first) - Fraction(second))


_LN2_PARTS = _split_ln2()


def compute_exponential(values: npt.ArrayLike) -> _Floats:
    """The exponential of every value, rounded to the nearest float.

    Parameters
    ----------
    values : array_like of float, shape (n,)
        At most 0; minus infinity is allowed.

    Returns
    -------
    ndarray of float64, shape (n,)
        In [0, 1]. What ``float(decimal.Context(prec=25).exp(Decimal(x)))`` is for every x.

    Examples
    --------
    >>> compute_exponential([0.0, -1.0, -800.0, float("-inf")]).tolist()
    [1.0, 0.36787944117144233, 0.0, 0.0]
    """
    x = np.asarray(values, dtype=np.float64)
    out = np.zeros(len(x))
    fast = np.flatnonzero(x >= _NORMAL_FROM)
    high, low, exponent = _compute_pair(x[fast])
    unit = np.spacing(high)
    # The middle lies half a unit away, or a quarter below a power of two.
    doubtful = np.minimum(np.abs(np.abs(low) - unit / 2), np.abs(np.abs(low) - unit / 4)) < _SURE * high
    out[fast] = np.ldexp(high, exponent)
    slow = np.flatnonzero((x >= _ZERO_BELOW) & (x < _NORMAL_FROM))
    for place in (*fast[doubtful].tolist(), *slow.tolist()):
        out[place] = float(_DECIMAL.exp(Decimal(float(x[place]))))
    return out


def _compute_pair(x: _Floats) -> tuple[_Floats, _Floats, npt.NDArray[np.int32]]:
    """exp(x) as ``(high + low) * 2**exponent``."""
    exponent = np.rint(x / _LN2_PARTS[0])
    rest, error = _add(x - exponent * _LN2_PARTS[0], -exponent * _LN2_PARTS[1])
    r = _add(rest, error - exponent * _LN2_PARTS[2])
    r = r[0] * 2.0**-_SQUARINGS, r[1] * 2.0**-_SQUARINGS
    # exp(r) - 1 = r (1 + r/2 (1 + r/3 (1 + ...)))
    ones = np.ones_like(x)
    series = ones, np.zeros_like(x)
    for n in range(_INVERSE_FACTORIALS, 1, -1):
        part = Fraction(1, n)
        inverse = float(part)
        by_n = inverse * ones, float(part - Fraction(inverse)) * ones
        high, low = _multiply(_multiply(r, by_n), series)
        total, error = _add(ones, high)
        series = _add(total, error + low)
    less_one = _multiply(r, series)
    for _ in range(_SQUARINGS):  # (1 + p)**2 - 1 = 2 p + p**2
        square = _multiply(less_one, less_one)
        total, error = _add(2 * less_one[0], square[0])
        less_one = _add(total, error + 2 * less_one[1] + square[1])
    total, error = _add(ones, less_one[0])
    high, low = _add(total, error + less_one[1])
    return high, low, exponent.astype(np.int32)


def _add(a: _Floats, b: _Floats) -> _Pair:
    """``a + b`` rounded, and what the rounding left over (Knuth)."""
    total = a + b
    b_seen = total - a
    return total, (a - (total - b_seen)) + (b - b_seen)


def _multiply(a: _Pair, b: _Pair) -> _Pair:
    """The product of two pairs."""
    product = a[0] * b[0]
    a_high, b_high = _halve(a[0]), _halve(b[0])
    a_low, b_low = a[0] - a_high, b[0] - b_high
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return _add(product, error + (a[0] * b[1] + a[1] * b[0]))


def _halve(a: _Floats) -> _Floats:
    scaled = _SPLITTER * a
    return scaled - (scaled - a)
