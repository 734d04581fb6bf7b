"""The one exception: what it is, and that it says what it was given."""

import pickle

import numpy as np
import pytest

import cellnorm as cn
from cellnorm import errors
from cellnorm.front import LinearFront


def test_it_is_a_value_error() -> None:
    assert issubclass(errors.DataError, ValueError)
    with pytest.raises(ValueError, match="only one batch"):
        raise errors.DataError("only one batch")


def test_there_is_one_of_it() -> None:
    assert cn.DataError is errors.DataError
    assert errors.__all__ == ["DataError"]


def test_it_passes_between_processes() -> None:
    copy = pickle.loads(pickle.dumps(errors.DataError("found 1, asked 2")))
    assert type(copy) is errors.DataError
    assert str(copy) == "found 1, asked 2"


def test_other_errors_are_not_caught_by_it() -> None:
    with pytest.raises(AttributeError) as caught:
        LinearFront.fit(None)
    assert not isinstance(caught.value, errors.DataError)


def test_the_numerics_raise_it() -> None:
    with pytest.raises(cn.DataError, match="2 cells"):
        LinearFront.fit(np.ones((1, 3)))
