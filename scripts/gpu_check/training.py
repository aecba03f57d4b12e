"""Trains from the planted store (gpu_check planted) and prints how fast it went and how many steps were sparse.

    training.py TRAINER BATCH STEPS

The store and the autoencoder to start from are in $SCRATCH/planted.
"""

import json
import os
import pathlib
import subprocess
import sys


def main():
    trainer, batch, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    scratch = pathlib.Path(os.environ["SCRATCH"])
    planted, out = scratch / "planted", scratch / "run"
    # A low learning rate: the run is to stay as sparse as it begins.
    command = [trainer, "--store", planted / "acts", "--init-from", planted / "sae", "--out", out, "--batch", batch,
               "--steps", steps, "--lr", "1e-4", "--log-every", "1", "--eval-rows", 16 * batch, "--device", "cuda", "--json"]
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.returncode)
    session = json.loads(done.stdout)["session"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "path" in line]
    sparse = sum(line["path"] == "sparse" for line in lines)
    print(f"{sparse} of {len(lines)} steps were sparse; L0 {lines[0]['l0']:.1f} at first, {lines[-1]['l0']:.1f} at last; "
          f"{session['tokens_per_second'] / 1e6:.3f} M tokens/s, {session['waiting_seconds']:.2f} of {session['seconds']:.2f} s "
          "spent waiting for the store")
    print(json.dumps({"figure": "a step from the store", "seconds": session["seconds"] / session["steps"],
                      "tokens_per_second": session["tokens_per_second"], "waiting_seconds": session["waiting_seconds"]}))
    # Once the lists and the graph are warm: the second half of the run.
    first, last = lines[len(lines) // 2], lines[-1]
    seconds = last["timing"]["seconds"] - first["timing"]["seconds"]
    tokens = last["tokens"] - first["tokens"]
    print(json.dumps({"figure": "the same, second half", "seconds": seconds * batch / tokens, "tokens_per_second": tokens / seconds}))
    print(json.dumps({"figure": "sparse steps", "of": len(lines), "sparse": sparse, "l0": lines[-1]["l0"]}))
    if 2 * sparse < len(lines):
        sys.exit("most steps were dense: this says nothing about sparse training")


if __name__ == "__main__":
    main()
