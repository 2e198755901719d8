"""Several processes that share one device in `real_model.py`, where a single one leaves it idle."""

import multiprocessing
import time
import traceback
from dataclasses import dataclass

import torch
import transformers

from real.arms import EVERY_ARM, LABELS


PROCESSES = multiprocessing.get_context("spawn")
"""CUDA does not survive a fork."""

WAITING, RUNNING, DONE, FAILED = range(4)
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_TABLES = 10.0


@dataclass(frozen=True)
class Scoring:
    """The warm-up of one seed and everything that is scored after it.

    Args:
        seed (`int`): of the warm-up.
        proxy (`bool`): the proxy model scores.
    """

    seed: int
    proxy: bool


def scoring_of(training):
    """The [`Scoring`] that a training run needs, or `None`."""
    arm = EVERY_ARM.get(training.arm)
    return None if arm is None or arm.scorer == LABELS else Scoring(training.seed, arm.proxy)


def in_order(trainings):
    """All work: scoring first, since most runs wait for it."""
    needed = dict.fromkeys(found for found in map(scoring_of, trainings) if found is not None)
    return [*needed, *trainings]


class Board:
    """Which work is done, for all processes.

    Args:
        work (`list`): [`Scoring`]s and training runs, in the order in which they are to begin.
    """

    def __init__(self, work):
        self.work = work
        self.states = PROCESSES.Array("i", [WAITING] * len(work))
        self.owners = PROCESSES.Array("i", [-1] * len(work))

    def state_of(self, task):
        """The state of a piece of work; what nobody needs counts as done."""
        return DONE if task is None else self.states[self.work.index(task)]

    def take(self, worker):
        """The number of the next piece of work; waits for what it depends on.

        Returns:
            `int`, *optional*: `None` if nothing is left.
        """
        while True:
            with self.states.get_lock():
                waiting = False
                for number, task in enumerate(self.work):
                    if self.states[number] != WAITING:
                        continue
                    needed = DONE if isinstance(task, Scoring) else self.state_of(scoring_of(task))
                    if needed == DONE:
                        self.states[number] = RUNNING
                        self.owners[number] = worker
                        return number
                    if needed == FAILED:
                        self.states[number] = FAILED
                    else:
                        waiting = True
            if not waiting:
                return None
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def give_up(self, worker):
        """What a process was at when it ended has failed."""
        for number, state in enumerate(self.states):
            if state == RUNNING and self.owners[number] == worker:
                self.states[number] = FAILED


def run_in_processes(experiment, count):
    """Finish the runs of an experiment in several processes on one device; tables are written meanwhile.

    Args:
        experiment (`Experiment`): has checked options and data; every process reads them once more.
        count (`int`): of processes.

    Raises:
        RuntimeError: if something failed in one of them.
    """
    board = Board(in_order(experiment.planned))
    given = experiment.options, experiment.command, board
    workers = [PROCESSES.Process(target=_work, args=(*given, number)) for number in range(count)]
    for worker in workers:
        worker.start()
    written = time.monotonic()
    while any(worker.is_alive() for worker in workers):
        time.sleep(SECONDS_BETWEEN_LOOKS)
        for number, worker in enumerate(workers):
            if not worker.is_alive():
                board.give_up(number)
        if time.monotonic() - written > SECONDS_BETWEEN_TABLES:
            experiment.write()
            written = time.monotonic()
    failed = [str(task) for task, state in zip(board.work, board.states, strict=True) if state in (WAITING, FAILED)]
    if failed:
        raise RuntimeError(f"Failed, for the reasons above: {'; '.join(failed)}.")


def _work(options, command, board, worker):
    """One process: takes work until nothing is left."""
    # the experiment begins these processes
    from real.experiment import Experiment

    transformers.logging.set_verbosity_error()
    if options.device == "cpu":
        torch.set_num_threads(1)
    experiment = Experiment(options, command)
    experiment.to_device()
    while (number := board.take(worker)) is not None:
        try:
            _finish(experiment, board.work[number])
            board.states[number] = DONE
        # one run that fails does not stop the others; it is named at the end
        except Exception:
            traceback.print_exc()
            board.states[number] = FAILED
        if options.device == "cuda":
            torch.cuda.empty_cache()


def _finish(experiment, task):
    experiment.learn()
    if isinstance(task, Scoring):
        experiment.score(task.seed, task.proxy)
    else:
        experiment.finish_missing(task)
