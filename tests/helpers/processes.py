"""Several processes for one test, without importing torch and transformers in each, which takes 8 s."""

import multiprocessing
import os
import runpy
import socket
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from hf_gist.report import page
from tests import ROOT


FORKED = multiprocessing.get_context("forkserver")
"""Its processes are forked from one that has imported these packages and done nothing else."""
FORKED.set_forkserver_preload(["transformers.trainer", "peft", "trl", "hf_gist.callback", "hf_gist.trainer"])


def launch(module: str, processes: int, folder: Path, *arguments: str, timeout: float = 240) -> dict[int, str]:
    """Run a module as `torchrun` does: its processes find each other by their environment variables.

    Args:
        module (`str`): to run as a script, with the folder and the arguments in `sys.argv`.
        processes (`int`): how many.
        folder (`Path`): for their files.
        arguments (`str`): further ones.
        timeout (`float`): in seconds.

    Returns:
        `dict[int, str]`: the output of each process that failed or was ended; empty if none was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shared = os.environ | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    logs = [folder / f"rank{rank}.log" for rank in range(processes)]
    started = [
        start(module, [str(folder), *arguments], shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, log)
        for rank, log in enumerate(logs)
    ]
    end = time.monotonic() + timeout
    while any(process.is_alive() for process in started):
        if any(process.exitcode for process in started) or time.monotonic() > end:
            # what waits for a process that failed would wait forever
            for process in started:
                process.terminate()
        time.sleep(0.02)
    return {rank: logs[rank].read_text() for rank, process in enumerate(started) if process.exitcode}


def start(module: str, arguments: list[str], environment: dict[str, str], log: Path) -> BaseProcess:
    """A process that runs a module as a script, with its output in a file."""
    process = FORKED.Process(target=_run, args=(module, arguments, environment, log))
    process.start()
    return process


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _run(module: str, arguments: list[str], environment: dict[str, str], log: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    with open(log, "w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    # they would take most of the time of a short training
    page._all_figures = lambda parts: {}
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
