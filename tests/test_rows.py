"""Rows that grow in place: always those of torch.cat, never written twice, at a cost that does not grow."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from torch import Tensor

from remanence.analysis.live_bytes import LiveBytes
from remanence.memory import newest
from remanence.rows import append, rehearsing

SHAPES = [((2, 3, 5), 1), ((1, 1), 1), ((2, 3, 4, 5), 2), ((2, 0, 5), 1), ((3, 2), 0)]


def rows(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_appending_is_concatenating(shape: tuple[int, ...], axis: int) -> None:
    with torch.no_grad():
        grown = plain = rows(*shape)
        for count in (1, 2, 1, 7, 1, 1):
            new = torch.rand(*shape[:axis], count, *shape[axis + 1 :], dtype=torch.float64)
            grown, plain = append(grown, new, axis), torch.cat([plain, new], axis)
            assert torch.equal(grown, plain)


def test_rows_that_are_there_stay_where_they_are() -> None:
    with torch.no_grad():
        first = append(rows(2, 3), rows(2, 1), room=2)
        second = append(first, rows(2, 2))
        third = append(second, rows(2, 1))
    assert second.data_ptr() == first.data_ptr() != third.data_ptr()


def test_what_was_continued_once_is_copied_the_second_time() -> None:
    with torch.no_grad():
        begun = append(rows(2, 3), rows(2, 1))
        one, other = append(begun, torch.full((2, 1), -1.0)), append(begun, torch.full((2, 1), -2.0))
        shorter = append(one[:, :-1], torch.full((2, 1), -3.0))
    assert torch.equal(begun, torch.cat([rows(2, 3), rows(2, 1)], 1))
    assert [each[0, -1].item() for each in (one, other, shorter)] == [-1, -2, -3]


@pytest.mark.parametrize(
    "change",
    [
        lambda each: each[:1],
        lambda each: each[[1, 0]],
        lambda each: each[:, :, :2],
        lambda each: each.transpose(0, 2),
        lambda each: each.float(),
        lambda each: each.clone(),
        lambda each: each[:, ::2],
    ],
)
def test_other_tensors_of_the_same_rows_are_continued_on_their_own(change: object) -> None:
    with torch.no_grad():
        begun = append(rows(3, 3, 3), rows(3, 1, 3))
        before, part = begun.clone(), change(begun)  # type: ignore[operator]
        new = torch.ones_like(part[:, :1])
        assert torch.equal(append(part, new), torch.cat([part, new], 1))
        assert torch.equal(append(begun, rows(3, 1, 3)), torch.cat([before, rows(3, 1, 3)], 1))


def test_types_are_those_of_a_concatenation() -> None:
    with torch.no_grad():
        begun = append(rows(2, 3).bfloat16(), rows(2, 1).bfloat16())
        assert append(begun, rows(2, 1).float()).dtype == torch.float32
        wide = append(rows(2, 3).float(), rows(2, 1).float())
        assert append(wide, rows(2, 1).bfloat16()).dtype == torch.float32


def test_nothing_is_shared_where_gradients_flow() -> None:
    with torch.no_grad():
        begun = append(rows(2, 3), rows(2, 1))
    leaf = rows(2, 1).requires_grad_()
    grown = append(begun, leaf)
    grown.sum().backward()
    assert grown.data_ptr() != begun.data_ptr() and leaf.grad is not None


def test_a_graph_that_holds_older_rows_is_not_out_of_date() -> None:
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        begun = append(rows(2, 3), rows(2, 1))
    product = begun * weight
    with torch.no_grad():
        append(begun, rows(2, 1))
    product.sum().backward()
    assert weight.grad is not None and weight.grad.item() == begun.sum()


def test_inference_tensors_and_others_do_not_mix() -> None:
    with torch.inference_mode():
        inside = append(rows(2, 3), rows(2, 1))
        assert append(inside, rows(2, 1)).data_ptr() == inside.data_ptr()
        other = append(rows(2, 3), rows(2, 1))
    with torch.no_grad():
        assert torch.equal(append(other, rows(2, 1)), torch.cat([other, rows(2, 1)], 1))


def test_many_threads_go_on_from_one_tensor() -> None:
    with torch.no_grad():
        begun = append(rows(2, 3), rows(2, 1), room=100)
    found: dict[int, Tensor] = {}

    def go_on(number: int) -> None:
        with torch.no_grad():
            grown = begun
            for _ in range(20):
                grown = append(grown, torch.full((2, 1), float(number), dtype=torch.float64))
            found[number] = grown

    threads = [threading.Thread(target=go_on, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((found[number][:, 4:] == number).all() and found[number].shape[1] == 24 for number in range(8))


def test_a_queue_slides_without_copying_and_without_growing() -> None:
    with torch.no_grad():
        queue, plain, moved = rows(2, 8, 3), rows(2, 8, 3), 0
        with LiveBytes() as live:
            for number in range(200):
                new = torch.full((2, 1, 3), float(number), dtype=torch.float64)
                begun = queue.untyped_storage().data_ptr()
                queue, plain = newest(queue, new), torch.cat([plain[:, 1:], new], 1)
                moved += queue.untyped_storage().data_ptr() != begun
                assert torch.equal(queue, plain)
            del new
            gc.collect()
    assert moved <= 200 // 9 + 1
    assert live.peak < 8 * queue.numel() * queue.element_size()


def test_the_room_of_a_rehearsal_is_free_again() -> None:
    with torch.no_grad():
        begun = append(rows(2, 3), rows(2, 1), room=4)
        with rehearsing():
            append(append(begun, rows(2, 1)), rows(2, 2))
        grown = append(begun, rows(2, 2))
    assert grown.data_ptr() == begun.data_ptr()
    assert torch.equal(grown, torch.cat([rows(2, 3), rows(2, 1), rows(2, 2)], 1))
