"""Which processes score: ``ExecutorConfig``, a part of ``rap.config``, which has its names,
too."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from .errors import RapConfigError
from .settings import Ge, Gt, Number, Predicate, setting, settings

ExecutorName = Literal["local", "env", "ray"]


def _is_shard(text: str) -> bool:
    """Whether ``text`` is "i/n" with 0 <= i < n."""
    i, slash, n = text.partition("/")
    return bool(slash) and i.isdecimal() and n.isdecimal() and int(i) < int(n)


def _is_share_or_count(gpus: float) -> bool:
    """Whether a worker can be given so many GPUs: a share of one, or whole ones."""
    return gpus <= 1 or gpus == int(gpus)


_TAKES: dict[str, tuple[str, ...]] = {
    "local": (),
    "env": ("shard", "steal", "lease"),
    "ray": (
        *("workers", "min_workers", "gpus_per_worker", "cpus_per_worker", "ray_address"),
        *("max_restarts", "max_shard_failures", "lease"),
    ),
}
"""Executor -> the fields that mean something to it."""


@settings
class ExecutorConfig:
    """Which processes score: one, or many that fill one store."""

    executor: ExecutorName = setting(
        "Who scores: this process alone (local), every process that a launcher has "
        "started with this command, torchrun, Slurm or a loop (env), or workers on a Ray "
        "cluster (ray). Many fill one store on a file system that they share, and how many "
        "they are changes no score.",
        default="local",
    )
    shard: Annotated[str, Predicate(_is_shard)] | None = setting(
        "Executor env: which process this is, i/n with i from 0 to n - 1.",
        default=None,
        none="RANK and WORLD_SIZE, SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT, or "
        "SLURM_PROCID and SLURM_NTASKS",
        expected="None or i/n with 0 <= i < n",
    )
    steal: bool = setting(
        "Executor env: a process that is through with its own shards scores those that are "
        "free, or whose process died. Without it the store may stay in part (rap merge).",
        default=True,
    )
    lease: Annotated[Number, Gt(0)] = setting(
        "Executors env and ray: seconds without a sign of life after which others take "
        "over what a process on another machine was scoring.",
        default=120.0,
        expected="seconds > 0",
    )
    workers: Annotated[int, Ge(1)] | None = setting(
        "Executor ray: processes that score, at most, one model each; fewer score while "
        "the cluster has no room for more.",
        default=None,
        none="as many as the GPUs of the cluster hold, 1 without GPUs",
    )
    min_workers: Annotated[int, Ge(1)] = setting(
        "Executor ray: scoring begins when so many workers have their model.", default=1
    )
    gpus_per_worker: Annotated[Number, Ge(0), Predicate(_is_share_or_count)] | None = (
        setting(
            "Executor ray: GPUs of a worker; less than 1 lets several share one, 2 or more "
            "hold a model that is larger than one, split by layers (needs accelerate), 0 "
            "scores on the CPU.",
            default=None,
            none="1 where the cluster has GPUs, else 0",
            expected="None, a share of one GPU (0 to 1), or a whole number of GPUs",
        )
    )
    cpus_per_worker: Annotated[int, Ge(1)] = setting(
        "Executor ray: CPU cores of a worker, which are its torch threads, too.", default=1
    )
    ray_address: str | None = setting(
        "Executor ray: the cluster, host:port or ray://host:port; auto is one that runs on "
        "this machine.",
        default=None,
        none="the one that this process is connected to, or that RAY_ADDRESS names, else "
        "one on this machine alone, which ends with the run",
        expected="None or an address",
    )
    max_restarts: Annotated[int, Ge(0)] = setting(
        "Executor ray: a worker that died is replaced so many times in a row, without a "
        "shard scored in between; then the run ends.",
        default=3,
    )
    max_shard_failures: Annotated[int, Ge(1)] = setting(
        "Executor ray: a shard whose worker has died so many times is left out; the rest "
        "is scored, and then the run ends with an error that names it.",
        default=3,
    )

    def __post_init__(self) -> None:
        """Nothing that the chosen executor would ignore."""
        for name in sorted({name for names in _TAKES.values() for name in names}):
            default = type(self).__dataclass_fields__[name].default
            value = getattr(self, name)
            if name not in _TAKES[self.executor] and value != default:
                owners = " and ".join(repr(e) for e, own in _TAKES.items() if name in own)
                raise RapConfigError(
                    f"{name} = {value!r}: executor {self.executor!r} takes none, it is for "
                    f"executor {owners}"
                )
        if self.workers is not None and self.min_workers > self.workers:
            raise RapConfigError(
                f"min_workers = {self.min_workers}: expected at most workers = "
                f"{self.workers}"
            )


class ExecutorOptions(TypedDict, total=False):
    """`ExecutorConfig`'s fields as keyword arguments, for type checkers (a test holds the
    two together); ``workers`` is `ScoreOptions`' already."""

    executor: ExecutorName
    shard: str | None
    steal: bool
    lease: float
    min_workers: int
    gpus_per_worker: float | None
    cpus_per_worker: int
    ray_address: str | None
    max_restarts: int
    max_shard_failures: int


def require_whole(executor: ExecutorConfig, what: str) -> None:
    """Raises ``RapConfigError`` where scores may come in part: nothing is chosen of
    these."""
    if not executor.steal:
        raise RapConfigError(
            f"steal = False: {what} needs all scores; score first, merge the stores, and "
            "choose then"
        )
