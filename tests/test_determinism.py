"""One thread inside the block, as many as before outside, whatever happens."""

import pytest
import torch
from threadpoolctl import threadpool_info

from cellnorm.determinism import one_thread


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info()}


@pytest.mark.parametrize("n_threads", [1, 2])
def test_one_thread_inside_and_as_before_outside(n_threads: int) -> None:
    start, pools = torch.get_num_threads(), blas_threads()
    torch.set_num_threads(n_threads)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
            assert blas_threads() == {1}
        assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(start)
    assert blas_threads() == pools


def test_threads_come_back_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), one_thread():
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == before
