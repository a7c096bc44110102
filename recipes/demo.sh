#!/usr/bin/env bash
# The demo: bake a style and a character into a small image model, prove it, and show it; then the same with a language
# model. `make demo` runs it; so does `bash recipes/demo.sh`, where lorabake[verify] is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

# The models are so small that a second thread costs more than it brings, above all on a machine with other work.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

bold='' blue='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\033[1m' blue=$'\033[36m' plain=$'\033[0m'
fi
step=0 steps=7
title() {
    step=$((step + 1))
    printf '\n%s== %d of %d, after %d s: %s%s\n' "$bold" "$step" "$steps" "$SECONDS" "$1" "$plain"
}
show() { printf '%s$ %s%s\n' "$blue" "$*" "$plain"; "$@" 2>&1; }

title "What would the bake do? (headers only)"
show lorabake plan recipes/demo.yaml

title "Bake it"
show lorabake bake recipes/demo.yaml --overwrite

title "Is it what the recipe says? By headers, by weights, by pictures (half a minute)"
show lorabake verify recipes/demo.yaml --strengths 0,0.5,1 --report out/report

title "A language model: bake a LoRA that was trained to talk of dragons"
show lorabake bake recipes/llm.yaml --overwrite

title "The story by the base, then by the bake"
show python recipes/story.py recipes/stories260K
show python recipes/story.py out/dragon

title "Is the language model what its recipe says?"
show lorabake verify recipes/llm.yaml --report out/report_llm --quiet

title "Done"
printf '%s\n' \
    "out/report/index.html      the proof, with pictures: open it in a browser" \
    "out/demo.safetensors       the image model with both LoRAs, from recipes/demo.yaml" \
    "out/report_llm/index.html  what base, run time and bake tell" \
    "out/dragon/                the language model, from recipes/llm.yaml" \
    "recipes/                   more recipes to try: single, stacked, per_component, blocks" \
    "README.md                  how to write your own"
