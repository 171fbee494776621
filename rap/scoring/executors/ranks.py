"""Which of many processes this one is, as the launcher says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import RapConfigError


@dataclass(frozen=True, slots=True)
class Rank:
    """Process ``rank`` of ``world``; ``local``: its number on its machine, None if nobody
    says so."""

    rank: int
    world: int
    local: int | None = None

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world}"


def find_rank(environment: Mapping[str, str], shard: str | None = None) -> Rank:
    """``shard`` ("i/n") if it is given; else RANK of WORLD_SIZE (torchrun) or SLURM_PROCID
    of SLURM_NTASKS, and the tasks of a Slurm array times these.

    Raises ``RapConfigError`` where none of them is set, or they make no sense."""
    local = _number(environment, "LOCAL_RANK", "SLURM_LOCALID")
    if shard is not None:
        i, _, n = shard.partition("/")
        return Rank(int(i), int(n), local)
    rank, world = _pair(environment, "RANK", "WORLD_SIZE")
    if rank is None:
        rank, world = _pair(environment, "SLURM_PROCID", "SLURM_NTASKS")
    task, tasks = _task(environment)
    if rank is None and task is None:
        raise RapConfigError(_nobody_said(environment))
    within, width = (0, 1) if rank is None or world is None else (rank, world)
    place, count = (0, 1) if task is None or tasks is None else (task, tasks)
    return Rank(place * width + within, count * width, local)


def find_device(local: int | None, devices: int) -> str:
    """The CUDA device of a process, by its number on its machine and how many devices it
    sees: "cuda:1"; "auto" where there is none, or nobody has numbered the processes.

    Raises ``RapConfigError`` if there are fewer devices than processes."""
    if local is None or devices == 0:
        return "auto"
    if devices == 1:  # the launcher shows each process its own
        return "cuda:0"
    if local >= devices:
        raise RapConfigError(
            f"LOCAL_RANK = {local}: this machine has {devices} devices; start as many "
            "processes, or say --device"
        )
    return f"cuda:{local}"


def device_here(shard: str | None = None) -> str:
    """``find_device`` of this process: what ``load_model`` is to be given."""
    import torch

    local = find_rank(os.environ, shard).local
    return find_device(local, torch.cuda.device_count())


def _pair(environment: Mapping[str, str], name: str, of: str) -> tuple[int | None, int]:
    rank, world = _number(environment, name), _number(environment, of)
    if rank is None and (world is None or name == "SLURM_PROCID"):
        return None, 1
    if rank is None or world is None:
        lacking = name if rank is None else of
        raise RapConfigError(f"executor = 'env': {lacking} is not set, its partner is")
    if rank >= world:
        raise RapConfigError(f"{name} = {rank}: expected less than {of} = {world}")
    return rank, world


def _task(environment: Mapping[str, str]) -> tuple[int | None, int]:
    """The place of a task of a Slurm array, from 0, and how many there are."""
    task = _number(environment, "SLURM_ARRAY_TASK_ID")
    if task is None:
        return None, 1
    count = _number(environment, "SLURM_ARRAY_TASK_COUNT") or 1
    first = _number(environment, "SLURM_ARRAY_TASK_MIN") or 0
    step = _number(environment, "SLURM_ARRAY_TASK_STEP") or 1
    place = (task - first) // step
    if not 0 <= place < count or (task - first) % step:
        raise RapConfigError(
            f"SLURM_ARRAY_TASK_ID = {task}: not one of {count} from {first} in steps of "
            f"{step}; give --shard i/n"
        )
    return place, count


def _number(environment: Mapping[str, str], *names: str) -> int | None:
    """The first of these variables that is set."""
    for name in names:
        text = environment.get(name)
        if text is None or text == "":
            continue
        if not text.isdecimal():
            raise RapConfigError(f"{name} = {text!r}: expected a number from 0 up")
        return int(text)
    return None


def _nobody_said(environment: Mapping[str, str]) -> str:
    text = (
        "executor = 'env': nobody says which process this is: neither RANK and WORLD_SIZE "
        "(torchrun), nor SLURM_ARRAY_TASK_ID or SLURM_PROCID, nor --shard i/n"
    )
    if any(name.startswith("ACCELERATE_") for name in environment):
        text += "; accelerate launch numbers its processes only with --multi_gpu"
    return text
