#!/usr/bin/env bash
# From text to a compared sweep on a machine with a GPU. scripts/gpu-check comes first: it says whether the kernels compute what
# they should on this GPU, and how fast they are.
set -euo pipefail

model=openai-community/gpt2
store=stores/gpt2-6

# What it will take: rows, disk, memory, time.
activation-dump --model "$model" --layer 6 --tokens 300M --device cuda --out "$store" --dry-run
activation-dump --model "$model" --layer 6 --tokens 300M --device cuda --out "$store"

# Three penalties at once, half precision in the products.
sae-trainer sweep --store "$store" --device cuda --precision bf16 \
    --l0-coefficient 5e-5,7e-5,1.4e-4 --out runs/l0

# Side by side, then in the model, then what the features of one respond to.
sae-trainer compare runs/l0 --plot runs/l0.svg
sae-trainer eval runs/l0/* --store "$store" --model "$model"
sae-trainer features runs/l0/l0-coefficient-7e-5 --store "$store" --model "$model" --tokens 10M
sae-trainer report runs/l0 --model "$model" --out report
