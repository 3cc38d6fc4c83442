"""The ring's copies under thousands of schedules: whatever the waits allow gives the same gradients, and without any
one of the waits some schedule gives others.

A stand-in for streams holds back everything that is asynchronous, the device's work, copies and the copy thread's jobs,
and runs it as early, as late or at as random a time as the waits allow; what the CPU does itself happens at once, as
it does beside a GPU.
"""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.memory import ring as rings
from trainer.memory import streams
from trainer.memory.ledger import Ledger
from trainer.memory.ring import BlockRing, StoredWeight

BLOCKS, DIM, STEPS = 4, 3, 2
MAIN = "main"
WAITS = ("before overwriting", "before reading", "before staging", "before freeing", "for the thread")


class Event:
    done = False


class Schedule:
    """Runs what was issued at the times that its seed draws: 0 as early as possible, 1 as late."""

    def __init__(self, seed: int) -> None:
        self._draws = random.Random(seed)
        self._eagerness = {0: 1.0, 1: 0.0}.get(seed, self._draws.random())
        self._queues: dict[Any, deque[tuple[Callable[[], None], Event | None]]] = {}
        self._jobs: deque[tuple[Future[None], Callable[[], None]]] = deque()

    def issue(self, stream: Any, work: Callable[[], None], after: Event | None = None) -> None:
        """Work for a stream, which goes on once `after` has happened."""
        self._queues.setdefault(stream, deque()).append((work, after))
        self.run_some()

    def submit(self, work: Callable[[], None]) -> Future[None]:
        """A job of the copy thread."""
        future: Future[None] = Waited(self)
        self._jobs.append((future, work))
        self.run_some()
        return future

    def run_some(self) -> None:
        while self._draws.random() < self._eagerness and self._run_one():
            pass

    def run_until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            assert self._run_one(), "a wait for what never happens"

    def drain(self) -> None:
        while self._run_one():
            pass

    def _run_one(self) -> bool:
        """One thing that may happen now, whichever."""
        ready = [q for q in self._queues.values() if q and (q[0][1] is None or q[0][1].done)]
        choice = self._draws.randrange(len(ready) + bool(self._jobs)) if ready or self._jobs else -1
        if choice < 0:
            return False
        if choice == len(ready):
            future, work = self._jobs.popleft()
            eagerness, self._eagerness = self._eagerness, 0.0  # a job is not interrupted by itself
            work()
            self._eagerness = eagerness
            future.set_result(None)
        else:
            ready[choice].popleft()[0]()
        return True


class Waited(Future[None]):
    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self._schedule = schedule

    def result(self, timeout: float | None = None) -> None:
        if "for the thread" not in left_out:
            self._schedule.run_until(self.done)


class Thread:
    """The ring's copy thread."""

    def submit(self, work: Callable[[], None]) -> Future[None]:
        return schedule.submit(work)

    def close(self) -> None:
        schedule.run_until(lambda: not schedule._jobs)


def _copy(into: Tensor, source: Tensor) -> None:
    into.copy_(source)


class HeldBack(streams.Streams):
    def make(self) -> Any:
        return object()

    def current(self) -> Any:
        return MAIN

    def copy(self, into: Tensor, source: Tensor, stream: Any) -> None:
        schedule.issue(stream, partial(_copy, into, source))

    def record(self, stream: Any) -> Any:
        event = Event()
        schedule.issue(stream, lambda: setattr(event, "done", True))
        return event

    def wait(self, stream: Any, event: Any) -> None:
        if ("before reading" if stream == MAIN else "before overwriting") not in left_out:
            schedule.issue(stream, lambda: None, after=event)

    def wait_on_cpu(self, event: Any) -> None:
        caller = sys._getframe(1).f_code.co_name
        if ("before freeing" if caller == "finish" else "before staging") not in left_out:
            schedule.run_until(lambda: event.done)

    def pinned(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like)

    def is_direct(self, tensor: Tensor) -> bool:
        return tensor.shape != (DIM, DIM)  # biases are pinned, matrices are not


schedule = Schedule(0)
left_out: set[str] = set()


def weights() -> list[dict[str, Tensor]]:
    draws = torch.Generator().manual_seed(1)
    return [
        {"weight": torch.randn(DIM, DIM, generator=draws), "bias": torch.randn(DIM, generator=draws)}
        for _ in range(BLOCKS)
    ]


def gradients(owners: list[nn.Module], bind: Callable[[int], None]) -> list[Tensor]:
    """Of the input of each block of a chain of tanh(W x + b), each computed again in backward, in some steps."""
    x, grads, g = [torch.ones(DIM)], [], [torch.ones(DIM)]

    def forward(w: Tensor, b: Tensor) -> None:
        x.append(torch.tanh(w @ x[-1] + b))

    def backward(w: Tensor, b: Tensor) -> None:
        x.pop()
        g[0] = w.T @ (g[0] * (1 - torch.tanh(w @ x[-1] + b).square()))
        grads.append(g[0])

    for _ in range(STEPS):
        for index, work in [
            *((i, forward) for i in range(BLOCKS)),
            *((i, backward) for i in reversed(range(BLOCKS))),
        ]:
            bind(index)
            held = owners[index]._parameters
            w, b = held["weight"], held["bias"]
            assert w is not None and b is not None
            schedule.issue(MAIN, lambda work=work, w=w.data, b=b.data: work(w, b))  # type: ignore[misc]
    return grads


def run(seed: int) -> bool:
    """Whether the gradients were right, and nothing was written into memory that had been freed."""
    global schedule
    schedule = Schedule(seed)
    owners = [nn.Module() for _ in range(BLOCKS)]
    stored = weights()
    blocks = []
    for owner, tensors in zip(owners, stored, strict=True):
        for name, tensor in tensors.items():
            owner.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        blocks.append([StoredWeight(owner, n, t, t.dtype) for n, t in tensors.items()])
    ring = BlockRing(blocks, torch.device("cpu"), Ledger())
    found = gradients(owners, ring.bind)
    memories = [slot._memory for slot in ring._slots]
    schedule.run_until(lambda: not schedule._queues.get(MAIN))  # as reading the loss does
    # The last backward leaves nothing in flight: bring one in that nobody waits for
    ring.bind(1)
    ring.close()
    for memory in memories:
        memory.fill_(7)
    schedule.drain()
    untouched = all(bool((memory == 7).all()) for memory in memories)
    return untouched and len(found) == len(EXPECTED) and all(map(torch.equal, found, EXPECTED))


def plain() -> list[Tensor]:
    global schedule
    schedule = Schedule(0)
    owners = []
    for tensors in weights():
        owner = nn.Module()
        for name, tensor in tensors.items():
            owner.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        owners.append(owner)
    return gradients(owners, lambda index: None)


EXPECTED = plain()


@pytest.fixture(autouse=True)
def held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(streams.KINDS, "cpu", HeldBack)
    monkeypatch.setattr(rings, "_CopyThread", Thread)
    left_out.clear()


def test_the_expected_gradients_are_autograds() -> None:
    x = torch.ones(DIM, requires_grad=True)
    y = x
    for tensors in weights():
        y = torch.tanh(tensors["weight"] @ y + tensors["bias"])
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(EXPECTED[BLOCKS - 1], x.grad)


def test_every_schedule_gives_the_same_gradients() -> None:
    wrong = [seed for seed in range(3000) if not run(seed)]
    assert not wrong, f"seeds {wrong[:10]}"


@pytest.mark.parametrize("wait", WAITS)
def test_each_wait_is_needed(wait: str) -> None:
    left_out.add(wait)

    def fails(seed: int) -> bool:
        try:
            return not run(seed)
        except Exception:
            return True  # what is not there yet cannot be used

    assert any(fails(seed) for seed in range(300)), f"nothing notices that the wait {wait} is missing"
