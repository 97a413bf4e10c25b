"""A batch in slices: the same answers in the same order whatever its size, and a processor for each slice."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from ziya.errors import InvalidRequest
from ziya.model.slices import Slices


class Doubling:
    """Answers each number twice itself plus its addend; notes what each call was given, and with how many threads."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int]] = []
        self._lock = threading.Lock()

    def __call__(self, numbers: Any, addends: Any) -> Any:
        with self._lock:
            self.calls.append((len(numbers), torch.get_num_threads(), threading.get_ident()))
        return np.asarray(numbers) * 2 + np.asarray(addends)


def on_a_thread(work: Any) -> Any:
    """What a process sets its threads to is not the test process's own affair."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(work).result()
        finally:
            torch.set_num_threads(threads)


@pytest.mark.parametrize("items", [3, 4, 7, 16])
def test_each_processor_has_a_slice_and_the_order_stays(items: int) -> None:
    model = Doubling()
    numbers, addends = np.arange(items), [10 * n for n in range(items)]
    answers = on_a_thread(lambda: Slices(3).run(model, numbers, addends))
    assert [int(answer) for answer in answers] == [12 * n for n in range(items)]
    assert len(model.calls) == 3
    assert sum(size for size, _, _ in model.calls) == items
    assert max(size for size, _, _ in model.calls) - min(size for size, _, _ in model.calls) <= 1
    assert {threads for _, threads, _ in model.calls} == {1}


def test_a_batch_with_fewer_items_than_processors_gets_them_all_and_stays_whole() -> None:
    model = Doubling()

    def both() -> tuple[list[Any], str]:
        slices = Slices(3)
        first = slices.run(model, np.arange(6), [0] * 6)
        second = slices.run(model, np.arange(2), [1, 1])
        return [*first, *second], torch.__config__.parallel_info()

    answers, threads = on_a_thread(both)
    assert [int(answer) for answer in answers] == [0, 2, 4, 6, 8, 10, 1, 3]
    assert [call[:2] for call in model.calls[3:]] == [(2, 3)]
    # The slices, which compute with one thread each, leave the caller's own number alone, MKL's too.
    assert "mkl_get_max_threads() : 3" in threads


def test_a_gpu_and_a_single_thread_take_a_batch_whole() -> None:
    for slices in (lambda: Slices(1), lambda: Slices(2, "cuda:0")):
        model = Doubling()
        on_a_thread(lambda made=slices, model=model: made().run(model, np.arange(5), [0] * 5))  # type: ignore[misc]
        assert [size for size, _, _ in model.calls] == [5]


def test_a_slice_that_fails_fails_the_batch() -> None:
    def model(numbers: Any) -> Any:
        if 3 in numbers:
            raise InvalidRequest("three is not to be had")
        return numbers

    with pytest.raises(InvalidRequest, match="three"):
        on_a_thread(lambda: Slices(2).run(model, np.arange(4)))
