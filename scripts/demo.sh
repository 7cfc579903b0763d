#!/usr/bin/env bash
# A tiny Qwen3-VL learns the safari: record the oracle, train, then play 200 unseen worlds with everyone.
#     make demo
set -euo pipefail
cd "$(dirname "$0")/.."
config=configs/safari_tiny.json
results=runs/safari_tiny/eval
started=$(date +%s)
# The oracle that is recorded is the one that answers are compared with.
oracle=(max_path=6 max_final_path=6 waypoints=regions thought_form=looking)
reference=("${oracle[@]/#/--oracle=}")
compile=() # a step takes little more than half of the time where there is a C++ compiler
if command -v "${CXX:-g++}" >/dev/null; then compile=(--set model.compile=true); fi

run() { echo "\$ $*"; "$@"; }

# Among many animals most walks that end on one end on another than the target: that has to be seen, too.
run python scripts/generate_oracle.py --config $config --out generated/safari_tiny --episodes 7500 --noise 0.2 \
    --resets 0.5 --near 0.35 --state at_zone=0.5 --vary 'num_animals={"10": 65, "120": 35}' \
    "${reference[@]}" --oracle=false_starts=0.15 --workers 2 --overwrite
run accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
    --num_cpu_threads_per_process "$(nproc)" \
    train.py --config $config --overwrite ${compile[@]+"${compile[@]}"}
for policy in oracle noisy_oracle random; do
    run python eval.py --policy $policy --config $config --out $results/$policy
done
run python eval.py --model tiny --config $config --episodes 50 "${reference[@]}" --out $results/base
run python eval.py --run runs/safari_tiny "${reference[@]}" --out $results/trained
run python eval.py --run runs/safari_tiny --blank-pictures --episodes 50 "${reference[@]}" --out $results/blank
run python eval.py --compare $results/{trained,base,random,noisy_oracle,oracle,blank}
run python scripts/report.py $results/{trained,base,random,noisy_oracle,oracle,blank} --out $results/report.html
echo "$(($(date +%s) - started)) s in all. Open $results/report.html; training curves: tensorboard --logdir runs"
