#!/usr/bin/env bash
# The whole recipe for a tiny Qwen3-VL: varied worlds, the full game, longer; then the demo's worlds, the full
# game, and the held-out suites by difficulty.
#     make demo-full
set -euo pipefail
cd "$(dirname "$0")/.."
config=configs/safari_tiny_full.json
trained=runs/safari_tiny_full
results=$trained/results
started=$(date +%s)
oracle=(max_path=6 max_final_path=6 waypoints=regions thought_form=looking)
reference=("${oracle[@]/#/--oracle=}")
game=(rules=catch width=50 height=50 num_trees=300 num_animals=60 num_targets=[0.6,0.25,0.15] max_turns=180)
compile=() # a step takes little more than half of the time where there is a C++ compiler
if command -v "${CXX:-g++}" >/dev/null; then compile=(--set model.compile=true); fi

run() { echo "\$ $*"; "$@"; }

run accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
    --num_cpu_threads_per_process "$(nproc)" \
    train.py --config $config --overwrite ${compile[@]+"${compile[@]}"}
run python eval.py --run $trained "${reference[@]}" --out $results/demo
run python eval.py --run $trained "${game[@]/#/--rule=}" "${reference[@]}" --out $results/game
run python eval.py --policy oracle --config $config "${game[@]/#/--rule=}" "${reference[@]}" --out $results/game_oracle
run python eval.py --run $trained --suites difficulty "${reference[@]}" --out $results/suites
echo "$(($(date +%s) - started)) s in all"
