"""Profiles the kernels of a sparse step with Nsight Compute: what bounds each of them.

    ncu.py PROGRAM ARGUMENT...

Prints the profile, and the metrics below as figures; the report file goes to $OUT, for Nsight Compute elsewhere. Exits with 77
where there is no ncu, or it may not read the counters.
"""

import csv
import io
import json
import os
import pathlib
import subprocess
import sys

import machine

KERNELS = r"regex:^(encode_wgmma|encode_mma|recheck|decode|backward_update)"
# Four kernels a step; the first steps are dense or cold.
SKIPPED, PROFILED = 12, 4
SECTIONS = ["SpeedOfLight", "MemoryWorkloadAnalysis", "ComputeWorkloadAnalysis", "Occupancy", "LaunchStats", "SchedulerStats",
            "WarpStateStats", "InstructionStats"]
# Nsight Compute's names, and ours.
METRICS = {
    "gpu__time_duration.sum": "duration",
    "dram__bytes_read.sum": "memory_read",
    "dram__bytes_write.sum": "memory_written",
    "lts__t_bytes.sum": "l2",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory_percent",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed": "l2_percent",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "sm_percent",
    "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active": "tensor_percent",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps_percent",
    "launch__registers_per_thread": "registers",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "issue_percent",
}
NOT_PERMITTED = ["ERR_NVGPUCTRPERM", "LibraryNotLoaded", "Failed to initialize the profiler"]


def main():
    ncu = machine.tool("ncu")
    if ncu is None:
        print("there is no ncu here")
        sys.exit(77)
    report = pathlib.Path(os.environ["OUT"]) / "gpu-check-a.ncu-rep"
    sections = [argument for section in SECTIONS for argument in ("--section", section)]
    # The card's clocks are not ours to set.
    command = [ncu, "--clock-control", "none", "--kernel-name", KERNELS, "--launch-skip", SKIPPED, "--launch-count", PROFILED,
               *sections, "--metrics", ",".join(METRICS), "--force-overwrite", "--export", report, *sys.argv[1:]]
    done = subprocess.run([*map(str, command)], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print(done.stdout)
    if reason := next((words for words in NOT_PERMITTED if words in done.stdout), None):
        print(f"ncu cannot read the counters of this machine ({reason})")
        sys.exit(77)
    if done.returncode != 0 or not report.exists():
        sys.exit(f"ncu exited with {done.returncode}")
    print(exported(ncu, report, "details"))
    print_figures(exported(ncu, report, "raw", "--csv"))


def exported(ncu, report, page, *more):
    command = [ncu, "--import", str(report), "--page", page, *more]
    return subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout


def print_figures(text):
    """The second line of ncu's CSV has the units."""
    table = text[text.find('"ID"'):]
    rows = list(csv.DictReader(io.StringIO(table)))
    if not rows:
        return
    units, *kernels = rows
    for kernel in kernels:
        figure = {"figure": kernel.get("Kernel Name", "?")}
        figure |= {name: f"{kernel[metric]} {units[metric]}".strip() for metric, name in METRICS.items() if kernel.get(metric)}
        print(json.dumps(figure))


if __name__ == "__main__":
    main()
