"""The short form of the transport fuzzer: the same few thousand programs every time."""

import pytest

from tests.fuzz.judge import Judge, replay_command

PROGRAMS = 1_000


@pytest.mark.limit(120)
@pytest.mark.parametrize("start", range(0, 5 * PROGRAMS, PROGRAMS))
def test_random_programs(start):
    with Judge() as judge:
        for seed in range(start, start + PROGRAMS):
            faults = judge.faults(seed)
            assert not faults, f"{'; '.join(faults)}\n{replay_command(seed)}"
