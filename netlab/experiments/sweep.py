"""Run what is missing of a sweep, cell by cell: simulated in parallel processes, real one after the other."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from netlab.experiments.rows import REAL, SIMULATED, Origin
from netlab.experiments.store import Store

OnCell = Callable[[], object]


def simulate(store: Store, jobs: int, on_cell: OnCell) -> None:
    """Simulate the missing cells in `jobs` processes; with one, in this one.

    Raises PaceError, and BrokenProcessPool if a process died.
    """
    from netlab.experiments import simulated

    run = partial(simulated.run, origin=Origin(SIMULATED, store.commit))
    if jobs == 1:
        for cell in store.missing():
            store.add(cell, run(cell))
            on_cell()
        return
    # Fresh processes rather than forks: whatever threads this one has are not copied half-alive.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, context, initializer=_end_at_once) as pool:
        cells = {pool.submit(run, cell): cell for cell in store.missing()}
        try:
            for done in concurrent.futures.as_completed(cells):
                store.add(cells[done], done.result())
                on_cell()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_real(store: Store, on_cell: OnCell, on_answer: Callable[[str], object]) -> None:
    """Run the missing cells on the real programs; a verifier lives as long as step time and target stay the same.

    Raises DrafterError, SessionError, LinkProcessError, VerifierProcessError.
    """
    from netlab.experiments import real, rig

    cells = store.missing()
    while cells:
        first = cells[0]
        with rig.start(Path(first.target), first.step_ms) as running:
            while cells and (cells[0].target, cells[0].step_ms) == (first.target, first.step_ms):
                cell = cells.pop(0)
                store.add(cell, real.run(running, cell, Origin(REAL, store.commit), on_answer))
                on_cell()


def _end_at_once() -> None:
    """Ctrl-C reaches the whole group: what a process has not finished by then is not worth waiting for."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
