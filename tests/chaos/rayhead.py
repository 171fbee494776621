"""A Ray cluster of this machine: two cores, 100 MB of objects; it ends with stdin."""

from __future__ import annotations

import sys
import warnings


def main() -> None:
    warnings.simplefilter("ignore")  # Ray's own
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 << 20,
    )
    print("address", ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    main()
