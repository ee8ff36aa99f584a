"""Engines: who does which share of a long job, on one machine or many.

What a share leaves behind is named by content: rows in a store, rows of a scorecard, partial statistics in files. So
shares may be done in any order, by anyone and more than once, and whoever reads the whole afterwards gets what one
process alone would have got. No worker talks to another while it works.
"""

import atexit
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from probing.core.errors import ProbingError
from probing.core.packages import require
from probing.core.progress import Progress
from probing.store.shares import Share, array_share, ranks_share

if TYPE_CHECKING:
    from types import ModuleType

Work = Callable[[Share], object]
"""Does a share of a job, and leaves what it found where all workers can read it; done twice, it leaves the same."""

_PATIENCE = timedelta(days=30)  # shares may be of very different sizes


class EngineError(ProbingError, RuntimeError):
    """A job whose workers fail again and again."""


@runtime_checkable
class Engine(Protocol):
    """Has every share of a job done."""

    def leads(self) -> bool:
        """Whether this process goes on to read what all shares left behind."""

    def run(self, work: Work) -> bool:
        """Do this process's share, or have all done; return whether all are known to be done."""


@dataclass(frozen=True)
class Local:
    """This process alone."""

    def leads(self) -> bool:
        return True

    def run(self, work: Work) -> bool:
        work(Share())
        return True


@dataclass(frozen=True)
class Torchrun:
    """The ranks of a `torchrun`: each does its share, then all wait for each other, and rank 0 goes on.

    There is no process group while they work. A rank that fails ends the others, as `torchrun` does; started again it
    goes on from what was stored.
    """

    def leads(self) -> bool:
        return ranks_share().index == 0

    def run(self, work: Work) -> bool:
        share = ranks_share()
        work(share)
        _meet(share)
        return True


@dataclass(frozen=True)
class SlurmArray:
    """The tasks of a SLURM array: each does its share and ends; a job that depends on the array reads the whole."""

    def leads(self) -> bool:
        return False

    def run(self, work: Work) -> bool:
        work(array_share())
        return False


@dataclass(frozen=True)
class RayActors:
    """Actors of a Ray cluster, or of this machine if there is none; who dies is started again, and its share done again.

    The cluster is the one of `RAY_ADDRESS`, or one that this process has joined. One that is started here listens on
    this machine alone, and reports to nobody.

    Attributes:
        actors: how many; by default one for each CPU of the cluster.
        shares: how many the job is cut into; by default eight for each actor, so that little is lost with one.
        restarts: of each actor, and tries of each share, before the job is given up.
        gpus: of each actor; parts of one are allowed.
    """

    actors: int | None = None
    shares: int | None = None
    restarts: int = 3
    gpus: float = 0.0

    def leads(self) -> bool:
        return True

    def run(self, work: Work) -> bool:
        ray = require("ray")
        own = not ray.is_initialized()
        if own:
            _join(ray)
        try:
            self._deal(ray, work)
        finally:
            if own:
                ray.shutdown()
        return True

    def _deal(self, ray: Any, work: Work) -> None:  # ray's actors are made at run time
        count = self.actors or max(1, int(ray.cluster_resources().get("CPU", 1)))
        shares = [Share(i, self.shares or 8 * count) for i in range(self.shares or 8 * count)]
        kind = ray.remote(num_cpus=1, num_gpus=self.gpus, max_restarts=self.restarts, max_task_retries=self.restarts)(_Actor)
        sent = ray.put(work)
        idle = [kind.remote() for _ in range(min(count, len(shares)))]
        busy: dict[Any, tuple[Any, Share]] = {}
        waiting = iter(shares)
        with Progress(len(shares), f"Shares, {len(idle)} actors") as bar:
            while True:
                while idle and (share := next(waiting, None)) is not None:
                    actor = idle.pop()
                    busy[actor.do.remote([sent], share)] = (actor, share)
                if not busy:
                    return
                [done], _ = ray.wait(list(busy), num_returns=1)
                actor, share = busy.pop(done)
                self._take(ray, done, share)
                idle.append(actor)
                bar.advance(1, computed=True)

    def _take(self, ray: Any, done: Any, share: Share) -> None:
        """Raise what a share raised."""
        try:
            ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayActorError:
            raise EngineError(
                f"{share} ended its worker {self.restarts + 1} times: it may need more memory than there is; try fewer "
                "actors, or --engine local to see why."
            ) from None


class _Actor:
    """Does shares in a process of its own."""

    def __init__(self) -> None:
        self._work: Work | None = None

    def do(self, sent: list[Any], share: Share) -> None:
        """Do a share of work that the driver holds, fetched with the first."""
        if self._work is None:
            import ray

            self._work = ray.get(sent[0])
        assert self._work is not None
        self._work(share)


ENGINES: Mapping[str, Callable[[], Engine]] = {
    "local": Local,
    "torchrun": Torchrun,
    "slurm": SlurmArray,
    "ray": RayActors,
}


def _join(ray: "ModuleType") -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level="error")
    else:
        ray.init(
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            _node_ip_address="127.0.0.1",
        )


def _meet(share: Share) -> None:
    """Wait until all ranks have come here."""
    from torch import distributed

    if share.count == 1:
        return
    if not distributed.is_initialized():
        distributed.init_process_group("gloo", timeout=_PATIENCE)
        atexit.register(distributed.destroy_process_group)  # not before: a group can't be made twice
    distributed.barrier()
