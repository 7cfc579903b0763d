#!/usr/bin/env bash
# A tiny Qwen3-VL learns to click: render pages in Chromium, train, measure on 500 unseen pages, then act in a live browser.
#     make demo-browser
set -euo pipefail
cd "$(dirname "$0")/.."
config=configs/computer_use_tiny.json
data=generated/computer_use_tiny
test=generated/computer_use_tiny_test
results=runs/computer_use_tiny/eval
started=$(date +%s)

compile=$(command -v g++ >/dev/null && echo true || echo false) # twice as fast

run() { echo "\$ $*"; "$@"; }

# Without Chromium the first command says in one line how to install it.
run python scripts/generate_ui.py --families simple --pages 2000 --rows-per-page 4 --questions-per-page 0 --workers 2 --out $data --overwrite
run python scripts/generate_ui.py --families simple --pages 500 --rows-per-page 1 --questions-per-page 0 --workers 2 --seed-start 2500000 \
    --out $test --overwrite
run accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
    --num_cpu_threads_per_process "$(nproc)" \
    train.py --config $config --overwrite --set model.compile=$compile
run python eval.py --model tiny_screens --config $config --suite clicks --data $test --out $results/base
run python eval.py --run runs/computer_use_tiny --suite clicks --data $test --out $results/clicks
for policy in oracle random; do
    run python eval.py --policy $policy --config $config --suite browser --episodes 100 --out $results/$policy
done
run python eval.py --run runs/computer_use_tiny --suite browser --episodes 100 --out $results/browser
run python eval.py --compare $results/{clicks,base}
run python eval.py --compare $results/{browser,random,oracle}
echo "$(($(date +%s) - started)) s in all. Open $results/clicks/report.html and $results/browser/report.html"
