"""Cortical Experts: our balanced k-means beside `k-means-constrained`, in one run.

Both sort the same neurons into 64 equal clusters, taking turns; times are medians of the rounds.
Before each timed run the same method runs untimed, since whoever comes after the other finds its
memory given back and its caches cold (which doubles our time on the smaller layer).
`k-means-constrained` (exact assignment by min-cost flow) runs with one initialisation and its own
defaults otherwise; ours runs as `cluster_neurons` calls it, and once more until nothing is left to
gain. A layer of a 7B model is measured with ours only: the other takes too long there. Prints a
table, the load of the machine before and after, and, last, a line of JSON.

Both may use the same number of threads, which is given to torch and to the OpenBLAS below
`k-means-constrained`. Where other work runs on the machine, take one: with more, both wait for
each other's threads to get a turn. The ratio of CPU times bears such work better than that of
wall times.

    pip install k-means-constrained
    python benchmarks/clustering.py [--model NAME] [--layer 13] [--rounds 3] [--threads 1] [--large]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from pacellm_rag.models.loading import load_model
from pacellm_rag.pace.architectures import find_feed_forwards
from pacellm_rag.pace.clustering import balanced_kmeans, inertia
from pacellm_rag.pace.expert_map import first_rows

EXPERTS = 64
TO_THE_END = 1000
Method = Callable[[torch.Tensor, int], torch.Tensor]


def k_means_constrained() -> Any:
    """The class to compare with."""
    try:
        return importlib.import_module("k_means_constrained").KMeansConstrained
    except ImportError:
        sys.exit("k-means-constrained is not installed. Run: pip install k-means-constrained")


def theirs(peer: Any) -> Method:
    """Clusters with k-means-constrained."""

    def cluster(rows: torch.Tensor, seed: int) -> torch.Tensor:
        unit = torch.nn.functional.normalize(rows.double(), dim=1).numpy()
        least = len(rows) // EXPERTS
        most = -(-len(rows) // EXPERTS)
        settings = {"size_min": least, "size_max": most, "n_init": 1, "random_state": seed}
        return torch.from_numpy(peer(EXPERTS, **settings).fit(unit).labels_).long()

    return cluster


def ours(rows: torch.Tensor, seed: int) -> torch.Tensor:
    """Clusters as `cluster_neurons` does."""
    return balanced_kmeans(rows, EXPERTS, seeds=(seed,))


def ours_to_the_end(rows: torch.Tensor, seed: int) -> torch.Tensor:
    """Clusters until no exchange lowers the inertia."""
    return balanced_kmeans(rows, EXPERTS, seeds=(seed,), rounds=TO_THE_END)


def measure(
    name: str, rows: torch.Tensor, methods: dict[str, Method], rounds: int
) -> list[dict[str, Any]]:
    """One row of the table for each method, the peer first."""
    times: dict[str, list[tuple[float, float, float]]] = {method: [] for method in methods}
    for seed in range(rounds):
        for method, cluster in methods.items():
            cluster(rows, seed)
            wall, cpu = time.perf_counter(), time.process_time()
            labels = cluster(rows, seed)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            sizes = torch.bincount(labels, minlength=EXPERTS)
            assert int(sizes.max() - sizes.min()) <= 1, f"{method} is not balanced"
            times[method].append((inertia(rows, labels), wall, cpu))
    found: list[dict[str, Any]] = []
    for method, runs in times.items():
        values = [statistics.median(column) for column in zip(*runs, strict=True)]
        found.append(
            {
                "layer": name,
                "neurons": len(rows),
                "hidden": rows.shape[1],
                "method": method,
                "inertia": values[0],
                "wall_s": values[1],
                "cpu_s": values[2],
                "inertia_ratio": values[0] / found[0]["inertia"] if found else None,
                "speedup_wall": found[0]["wall_s"] / values[1] if found else None,
                "speedup_cpu": found[0]["cpu_s"] / values[2] if found else None,
            }
        )
        print(format_row(found[-1]), flush=True)
    return found


def format_row(row: dict[str, Any]) -> str:
    """A line of the table."""
    shape = f"{row['neurons']}x{row['hidden']}"
    against = [
        "-" if row[key] is None else f"{row[key]:.{digits}f}"
        for key, digits in (("inertia_ratio", 4), ("speedup_wall", 1), ("speedup_cpu", 1))
    ]
    return (
        f"| {row['layer']:<22} | {shape:>10} | {row['method']:<19} | {row['inertia']:>9.1f} "
        f"| {against[0]:>6} | {row['wall_s']:>8.3f} | {row['cpu_s']:>8.3f} "
        f"| {against[1]:>7} | {against[2]:>7} |"
    )


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--layer", type=int, default=13)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, with other seeds")
    parser.add_argument("--threads", type=int, default=1, help="for both methods")
    parser.add_argument("--large", action="store_true", help="also a layer of a 7B model")
    arguments = parser.parse_args()
    if os.environ.get("OPENBLAS_NUM_THREADS") != str(arguments.threads):
        os.environ["OPENBLAS_NUM_THREADS"] = str(arguments.threads)  # is read at import only
        os.execv(sys.executable, [sys.executable, *sys.argv])
    peer = k_means_constrained()
    torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model, device="cpu")
    real = first_rows(find_feed_forwards(model.module)[arguments.layer]).float()
    random = torch.randn(4864, 896, generator=torch.Generator().manual_seed(0))
    methods = {
        "k-means-constrained": theirs(peer),
        "ours": ours,
        "ours, to the end": ours_to_the_end,
    }
    load = [os.getloadavg()[0]]
    print(
        f"| {'layer':<22} | {'shape':>10} | {'method':<19} | {'inertia':>9} | {'ratio':>6} "
        f"| {'wall s':>8} | {'CPU s':>8} | {'x wall':>7} | {'x CPU':>7} |"
    )
    print("|" + "|".join("-" * width for width in (24, 12, 21, 11, 8, 10, 10, 9, 9)) + "|")
    rows = measure(f"layer {arguments.layer} of the model", real, methods, arguments.rounds)
    rows += measure("random", random, methods, arguments.rounds)
    if arguments.large:
        large = torch.randn(18944, 3584, generator=torch.Generator().manual_seed(0))
        rows += measure("random, 7B", large, {"ours": ours}, 1)
    load.append(os.getloadavg()[0])
    print(
        f"\nThreads of each: {arguments.threads}. Load of the machine ({os.cpu_count()} cores) "
        f"before and after: {load[0]:.1f}, {load[1]:.1f}."
    )
    summary = {
        "benchmark": "clustering",
        "experts": EXPERTS,
        "model": model.name,
        "rounds": arguments.rounds,
        "threads": arguments.threads,
        "load": load,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "rows": [
            {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows
        ],
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
