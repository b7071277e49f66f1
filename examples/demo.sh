#!/bin/sh
# The main job from start to end on the bundled driving world: sh examples/demo.sh [FOLDER]
set -eu
folder=${1:-demo}
mkdir -p "$folder"
cd "$folder"
rm -rf driving hf report.html   # the demo starts afresh each time; nothing else in the folder is touched

run() {
    printf '\n\033[1m$ %s\033[0m\n' "$*"
    "$@"
}

run distdata init --preset driving --project driving
cd driving
run distdata plan --budget 4000samples
run distdata plan --budget 4000samples --explain night,snow/occluded_pedestrian
run distdata generate
run distdata sql "select light, weather, sum(kept) kept, sum(target) target from coverage group by all order by all" -f table
run distdata estimate outcome --where "scenario = 'pedestrian_crossing' and decision_point"
run distdata plan --compare fleet,uniform,gate
run distdata verify --replay 1%
run distdata catalog check
run distdata export hf ../hf --overwrite
run distdata report --out ../report.html
cd ..
printf '\n\033[1mTry next\033[0m\n'
printf '  open %s/report.html\n' "$(pwd)"
printf '  cd %s/driving\n' "$(pwd)"
printf '  distdata generate          # again: nothing to do, nothing to pay\n'
printf '  distdata sql "from samples_wide limit 5"\n'
printf '  python -c "import datasets; print(datasets.load_dataset(\\"%s/hf\\"))"\n' "$(pwd)"
