#!/usr/bin/env bash
# The demo: plan, bake and inspect an image checkpoint, then bake a language model and let it talk.
# `make demo` runs it; so does `bash recipes/demo.sh`, where lorabake is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

title() { printf '\n\033[1m== %s\033[0m\n' "$1"; }
show() { printf '\033[36m$ %s\033[0m\n' "$*"; "$@" 2>&1; }
if [ ! -t 1 ] || [ -n "${NO_COLOR:-}" ]; then
    title() { printf '\n== %s\n' "$1"; }
    show() { printf '$ %s\n' "$*"; "$@" 2>&1; }
fi

title "Make a small Stable Diffusion 1.x checkpoint and three LoRAs"
show python recipes/make_inputs.py

title "What would the bake do? (headers only)"
show lorabake plan recipes/demo.yaml -o out/demo.safetensors

title "Bake it"
show lorabake bake recipes/demo.yaml -o out/demo.safetensors --overwrite

title "What is in the new file?"
show lorabake inspect out/demo.safetensors

title "A real language model: a LoRA that was trained to talk of dragons"
show lorabake bake recipes/llm.yaml -o out/dragon --overwrite
show python recipes/story.py recipes/stories260K
show python recipes/story.py out/dragon

title "Done"
printf '%s\n' \
    "out/demo.safetensors       the image checkpoint, from recipes/demo.yaml" \
    "out/dragon/                the language model, from recipes/llm.yaml" \
    "recipes/                   more recipes to try: single, stacked, per_component, blocks" \
    "README.md                  how to write your own"
