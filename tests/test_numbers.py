"""Numbers as a person reads them."""

import math

import pytest

from svae.numbers import significant


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (-184.6123, "-184.6"),
        (0.00012345, "0.0001234"),
        (9999.4, "9999"),
        (10204.3, "10204"),
        (-1234567.8, "-1234568"),
        (0.0, "0"),
        (1e20, "1e+20"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_four_digits_and_all_before_the_point(value, told):
    assert significant(value, 4) == told
