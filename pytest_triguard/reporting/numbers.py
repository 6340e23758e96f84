"""Numbers as the terminal shows them: short, but never on the wrong side of a threshold."""

from __future__ import annotations

from pytest_triguard.record import Record

_DECIMALS = 3
_MOST_DECIMALS = 9
_PLAIN_FROM, _PLAIN_BELOW = 1e-3, 1e5


def number(value: float, threshold: float | None = None) -> str:
    """Return a number with three decimals, or with as many as tell it from the threshold.

    Very small and very large numbers come with three significant digits.
    """
    for decimals in range(_DECIMALS, _MOST_DECIMALS + 1):
        text = _rounded(value, decimals)
        if threshold is None or _side(float(text), threshold) == _side(value, threshold):
            return text
    return repr(value)


def change(value: float) -> str:
    """Return a number with its sign; never a zero that is none."""
    if abs(value) >= _PLAIN_BELOW:
        return f"{value:+.2e}"
    for decimals in range(_DECIMALS, 2 * _DECIMALS + 1):
        text = f"{value:+.{decimals}f}"
        if float(text) or not value:
            return text
    return f"{value:+.0e}"


def margin(record: Record) -> str:
    """Return the signed distance of the value from its threshold, or a dash."""
    distance = record.margin
    if distance is None:
        return "-"
    return change(distance)


def value(record: Record) -> str:
    """Return the measured value, or a dash where no sample was defined."""
    return "-" if record.value is None else number(record.value, record.threshold)


def interval(record: Record) -> str:
    """Return the two ends of the interval, or a dash."""
    if record.interval is None:
        return "-"
    deciding = record.threshold if record.claim == "population" else None
    low, high = (number(end, deciding) for end in record.interval)
    return f"[{low}, {high}]"


def threshold(record: Record) -> str:
    """Return relation and threshold, such as `>= 0.9`, in full where rounding misleads."""
    exact, shown = record.threshold, f"{record.threshold:.6g}"
    ends = record.interval if record.claim == "population" else None
    deciding = [each for each in (record.value, *(ends or ())) if each is not None]
    if any(_side(each, float(shown)) != _side(each, exact) for each in deciding):
        shown = repr(exact)
    return f"{record.relation:<2} {shown}"


def samples(record: Record) -> str:
    """Return the count behind a rate, such as `418/500`, or the number of samples."""
    if record.value is not None and "statistic" not in record.parameters:
        share = round(record.value * record.n)
        exact = abs(record.value * record.n - share) < 1e-6 * max(1, record.n)
        if exact and share in record.counts.values():
            return f"{share}/{record.n}"
    return str(record.n)


def _rounded(value: float, decimals: int) -> str:
    if value and not _PLAIN_FROM <= abs(value) < _PLAIN_BELOW:
        return f"{value:.{decimals - 1}e}"
    return f"{value:.{decimals}f}"


def _side(value: float, threshold: float) -> int:
    return (value > threshold) - (value < threshold)
