"""A producer and a consumer that share a ring."""

from __future__ import annotations

from collections import Counter, deque

import numpy as np
import pytest

from apf import registers
from apf.messages import CHECK_MULTIPLIER, PAGE_SIZE
from guestsched.programs import BUILTINS
from tests.unit.guestsched_programs.rig import CODE, RING, Process
from vcpud.cpu.engine import ExitCause


class Pair:
    """A producer and a consumer in one process, which share one ring; the kernel's semaphores are the test's."""

    def __init__(self, producer: Process, think: int) -> None:
        self.process = producer
        consumer = BUILTINS["consumer"]
        start = PAGE_SIZE - len(consumer.code)  # behind the producer
        producer.memory.frames[0, start:] = np.frombuffer(consumer.code, np.uint8)
        there = {"ring": RING, "items": 8, "room": 9, "multiplier": CHECK_MULTIPLIER, "think": think}
        passed = {register: there[name] for name, register in consumer.arguments.items()}
        self.registers = {
            "producer": producer.engine.save_registers(),
            "consumer": registers.new(rip=CODE + start, **passed),
        }
        self.values = Counter[int]()
        self.waiting: dict[int, deque[str]] = {8: deque(), 9: deque()}
        self.ready = deque(self.registers)

    def get(self, name: str, result: str) -> int:
        return registers.get(self.registers[name], BUILTINS[name].results[result])

    def step(self, budget: int) -> None:
        """Let the first ready task run until its budget's end or a system call, which is answered."""
        name = self.ready.popleft()
        engine = self.process.engine
        engine.load_registers(self.registers[name])
        exit_ = engine.run(budget, 0)
        saved = self.registers[name] = engine.save_registers()
        if exit_.cause is ExitCause.BUDGET:
            self.ready.append(name)
            return
        assert exit_.cause is ExitCause.SYSCALL
        number, semaphore, n = (registers.get(saved, register) for register in ("rax", "rdi", "rsi"))
        self.registers[name] = registers.replace(saved, rax=0)
        if number == 4097:
            if not self.values[semaphore]:
                self.waiting[semaphore].append(name)
                return
            self.values[semaphore] -= 1
        else:
            assert number == 4098
            self.values[semaphore] += n
            while self.values[semaphore] and self.waiting[semaphore]:
                self.values[semaphore] -= 1
                self.ready.append(self.waiting[semaphore].popleft())
        self.ready.append(name)


@pytest.mark.parametrize(("produce", "consume"), [(0, 0), (0, 500), (500, 0)])
def test_a_consumer_gets_what_its_producer_puts_in(new_process, produce: int, consume: int) -> None:
    process = new_process("producer", think=produce)
    pair = Pair(process, think=consume)
    between = 0
    while pair.get("consumer", "consumed") < 1000:
        pair.step(100)
        between = pair.get("producer", "produced") - pair.get("consumer", "consumed")
        assert -1 <= between <= 256  # a program counts after it has told the other
    assert between > 200 if consume else between < 10
    assert pair.get("consumer", "corrupt") == 0


@pytest.mark.parametrize("word", [0, 1])
def test_a_consumer_finds_each_corrupt_item(new_process, word: int) -> None:
    process = new_process("producer")
    pair = Pair(process, think=0)
    pair.ready.reverse()  # the consumer makes room, and waits
    while not pair.waiting[8]:
        pair.step(100)
    while not pair.waiting[9]:
        pair.ready = deque(["producer"])
        pair.step(100)
    for item in (3, 100, 256):  # item 256 is in place 0
        process.ring[2 * (item % 256) + word] ^= np.uint64(1 << 40)
    pair.ready = deque(["consumer"])
    while pair.get("consumer", "consumed") < 256:
        pair.ready = deque(["consumer"])
        pair.step(100)
    assert pair.get("consumer", "corrupt") == 3
