"""Numbers as a person reads them."""

__all__ = ["significant"]


def significant(value: float, digits: int) -> str:
    """A number with so many significant digits, but with all of those before its point.

    Without a power of ten: ELBOs of pictures have five digits and more.
    """
    return f"{value:.0f}" if 10**digits <= abs(value) < 1e15 else f"{value:.{digits}g}"
