#!/usr/bin/env bash
# The demo: bake a style and a character into a small image model, prove it, and show it; then the same with a language
# model. `make demo` runs it; so does `bash recipes/demo.sh`, where lorabake[verify] is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

title() { printf '\n\033[1m== %s\033[0m\n' "$1"; }
show() { printf '\033[36m$ %s\033[0m\n' "$*"; "$@" 2>&1; }
if [ ! -t 1 ] || [ -n "${NO_COLOR:-}" ]; then
    title() { printf '\n== %s\n' "$1"; }
    show() { printf '$ %s\n' "$*"; "$@" 2>&1; }
fi

title "What would the bake do? (headers only)"
show lorabake plan recipes/demo.yaml

title "Bake it"
show lorabake bake recipes/demo.yaml --overwrite

title "Is it what the recipe says? By headers, by weights, by pictures"
show lorabake verify recipes/demo.yaml --strengths 0,0.5,1 --report out/report

title "A language model: a LoRA that was trained to talk of dragons"
show lorabake bake recipes/llm.yaml --overwrite
show python recipes/story.py recipes/stories260K
show python recipes/story.py out/dragon
show lorabake verify recipes/llm.yaml --report out/report_llm --quiet

title "Done"
printf '%s\n' \
    "out/report/index.html      the proof, with pictures: open it in a browser" \
    "out/demo.safetensors       the image model with both LoRAs, from recipes/demo.yaml" \
    "out/report_llm/index.html  what base, run time and bake tell" \
    "out/dragon/                the language model, from recipes/llm.yaml" \
    "recipes/                   more recipes to try: single, stacked, per_component, blocks" \
    "README.md                  how to write your own"
