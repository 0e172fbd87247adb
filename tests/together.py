"""Works that threads do side by side."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

# A thread that is not done by then hangs.
PATIENCE = 60.0


def together(*works: Callable[[], Any]) -> list[Any]:
    """Does all works, each in a thread of its own, begun at one time.

    Returns:
        What each gave, or the error that it raised.
    """
    results: list[Any] = [None] * len(works)
    barrier = threading.Barrier(len(works))

    def do(i: int) -> None:
        barrier.wait()
        try:
            results[i] = works[i]()
        except Exception as error:  # noqa: BLE001 - it is looked at by the test
            results[i] = error

    threads = [threading.Thread(target=do, args=(i,), daemon=True) for i in range(len(works))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads)
    return results
