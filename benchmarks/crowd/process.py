# SPDX-License-Identifier: Apache-2.0
"""A process that holds a part of the crowd: commands come as lines, figures go as JSON lines.

    python -m benchmarks.crowd.process URL FIRST COUNT TRAINING_S        the join token in CROWD_JOIN_TOKEN

It ends when its standard input does, so that it does not outlive who started it.
"""

import asyncio
import json
import os
import resource
import sys

from benchmarks.crowd.device import Crowd, Device

ENROLLING_AT_ONCE = 16
LOOK_S = 0.2


async def hold(crowd: Crowd, first: int, count: int) -> None:
    """Enrol the workers, let them work, and answer commands until there are no more."""
    devices = [Device(f"device-{number:06d}", crowd) for number in range(first, first + count)]
    turn = asyncio.Semaphore(ENROLLING_AT_ONCE)

    async def begin(device: Device) -> None:
        async with turn:
            await device.enrol()

    async with asyncio.TaskGroup() as enrolling:
        for device in devices:
            enrolling.create_task(begin(device))
    say("enrolled", count=count)
    async with asyncio.TaskGroup() as working:
        tasks = [working.create_task(device.work()) for device in devices]
        await _answer_commands(crowd, count)
        for task in tasks:
            task.cancel()


async def _answer_commands(crowd: Crowd, count: int) -> None:
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    while line := (await commands.readline()).decode().strip():
        match line:
            case "settle":  # until each has been told how long to wait
                while len(crowd.advised) < count:
                    await asyncio.sleep(LOOK_S)
                say("settled")
            case "train":
                crowd.may_train.set()
                say("training")
            case "hold":
                crowd.may_train.clear()
                say("holding")
            case "count":
                say(
                    "counted",
                    polls=crowd.polls,
                    failures=crowd.failures.total(),
                    assigned=len(crowd.assigned),
                )
            case "failures":
                say("failures", failures=crowd.failures.most_common())
            case "assigned":
                say("assigned", assigned=crowd.assigned)


def say(event: str, **fields: object) -> None:
    sys.stdout.write(json.dumps({"event": event} | fields) + "\n")
    sys.stdout.flush()


def main() -> None:
    url, first, count, training_s = sys.argv[1:]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    crowd = Crowd(url, os.environ["CROWD_JOIN_TOKEN"], float(training_s))
    asyncio.run(hold(crowd, int(first), int(count)))


if __name__ == "__main__":
    main()
