"""A Hydra launcher that runs several jobs of a multirun in parallel on this machine, each in its own process.

Hydra only finds launchers in the package ``hydra_plugins``.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, cast

from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

if TYPE_CHECKING:
    from emodissect.app.ending import HeldSignals

log = logging.getLogger(__name__)

SECONDS_TO_END = 30
"""Time for a job to close its files after the multirun was told to end."""


class ProcessLauncher(Launcher):
    """Forks each job from the multirun's process, which imports the libraries once for all jobs.

    A killed job (out of memory, by a scheduler) is one failed row; all others run. joblib's pool, by comparison, ends
    with its first dead worker.

    Args:
        n_jobs: number of parallel jobs, which share the cores; -1 for one per core.
        preload: modules to import before the first fork.
    """

    def __init__(self, n_jobs: int = 2, preload: Sequence[str] = ()) -> None:
        self.n_jobs = n_jobs if n_jobs > 0 else os.cpu_count() or 1
        self.preload = list(preload)
        self.config: DictConfig | None = None
        self.task_function: TaskFunction | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        if "fork" not in multiprocessing.get_all_start_methods() or sys.platform == "darwin":
            raise HydraException(
                "hydra/launcher=processes forks its jobs, which is not safe on this system. "
                "Use hydra/launcher=joblib (pip install hydra-joblib-launcher)."
            )
        self.config, self.task_function, self.hydra_context = config, task_function, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from emodissect.app.ending import HeldSignals

        assert self.config is not None
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        log.info("Launching %d jobs, %d at a time", len(job_overrides), self.n_jobs)
        for module in self.preload:
            importlib.import_module(module)
        fork = multiprocessing.get_context("fork")
        waiting = deque(enumerate(job_overrides, initial_job_idx))
        running: dict[
            int, tuple[int, BaseProcess, Connection]
        ] = {}  # by sentinel, which becomes ready when a process ends
        results: dict[int, JobReturn] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.n_jobs:
                    number, overrides = waiting.popleft()
                    log.info("\t#%d : %s", number, " ".join(filter_overrides(overrides)))
                    receiver, sender = fork.Pipe(duplex=False)
                    # Python drops exceptions raised while forking, and every child must be registered to be ended
                    with HeldSignals() as held:
                        process: BaseProcess = fork.Process(
                            target=self._work, args=(number, list(overrides), sender, held)
                        )
                        process.start()
                        sender.close()
                        running[process.sentinel] = number, process, receiver
                for ended in cast(list[int], wait(list(running))):
                    number, process, receiver = running.pop(ended)
                    results[number] = self._result(number, process, receiver)
        finally:
            _end([process for _, process, _ in running.values()])
        return [results[number] for number in sorted(results)]

    def _work(self, number: int, overrides: list[str], sender: Connection, held: HeldSignals) -> None:
        """Run a job in its own process."""
        held.release()
        assert self.config is not None
        assert self.hydra_context is not None
        assert self.task_function is not None
        from emodissect.app.streams import number_lines

        number_lines(number)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(max((os.cpu_count() or 1) // self.n_jobs, 1))
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        sender.send(str(Path(config.hydra.sweep.dir) / str(OmegaConf.select(config, "hydra.sweep.subdir"))))
        done = run_job(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        sender.send(done.return_value)

    def _result(self, number: int, process: BaseProcess, receiver: Connection) -> JobReturn:
        """A job's return value; for a job that died, the worst value, with the cause as its error."""
        from emodissect.app.cli import ERROR_FILE, leave_error, worst_for

        assert self.config is not None
        folder: Path | None = None
        try:
            folder = Path(receiver.recv())
            value = receiver.recv()
        except EOFError:
            process.join()
            value, code = worst_for(self.config.hydra.sweeper), process.exitcode or 0
            message = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            log.warning("\t#%d : %s", number, message)
            if folder is not None and not (folder / ERROR_FILE).exists():
                leave_error(folder, [], message)
        process.join()
        return JobReturn(_return_value=value, status=JobStatus.COMPLETED)


def _end(processes: Sequence[BaseProcess]) -> None:
    """Terminate the running jobs, giving each time to close its files."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(SECONDS_TO_END)
        if process.is_alive():
            process.kill()
