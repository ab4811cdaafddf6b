"""Run every benchmark: ``python -m benchmarks``."""

from __future__ import annotations

import platform

import numpy as np
import torch

from benchmarks import bench_allocate, bench_calibrate, bench_loihi, bench_map, bench_prune, bench_vgg


def main() -> None:
    """Print what the machine is, then every measurement."""
    print(
        f"python {platform.python_version()}, numpy {np.__version__}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, {platform.machine()}"
    )
    print("\npruning: score + allocate + masks")
    bench_prune.main()
    print("\nallocation")
    bench_allocate.main()
    print("\nmapping onto cores")
    bench_map.main()
    print("\ncalibration, one thread")
    bench_calibrate.main()
    print("\ncapture to export of VGG16, one thread, each side in a process of its own")
    bench_vgg.main()
    print("\nfixed point: both engines against Lava")
    bench_loihi.main()


if __name__ == "__main__":
    main()
