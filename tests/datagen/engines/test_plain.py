"""Results come in the items' order, whatever finishes first."""

import asyncio

import pytest

from assistant.errors import BadInput
from datagen.engines.plain import MAX_BEGUN_PER_SLOT, in_order


def test_results_come_in_order_and_few_are_begun_ahead():
    begun, finished = [], []

    async def work(item):
        begun.append(item)
        await asyncio.sleep(0.05 if item == 0 else 0.001)
        finished.append(item)
        return item * item

    async def run():
        results = []
        async for item, square in in_order(range(200), work, 2):
            assert len(begun) - len(results) <= 2 * MAX_BEGUN_PER_SLOT + 1
            results.append((item, square))
        return results

    assert asyncio.run(run()) == [(k, k * k) for k in range(200)] and finished[0] != 0


def test_the_first_error_ends_it():
    async def work(item):
        if item == 5:
            raise BadInput("no")

    async def run():
        return [item async for item, _ in in_order(range(10**9), work, 2)]

    with pytest.raises(BadInput):
        asyncio.run(run())
