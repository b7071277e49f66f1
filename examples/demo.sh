#!/bin/sh
# The whole loop on four slices of the bundled driving world: sh examples/demo.sh [FOLDER]
set -eu
folder=${1:-demo}
mkdir -p "$folder"
cd "$folder"
rm -rf driving report.html   # the demo starts afresh each time; nothing else in the folder is touched

run() {
    printf '\n\033[1m$ %s\033[0m\n' "$*"
    "$@"
}

tell() {
    printf '\n%s\n' "$*"
}

run distdata init --preset driving-mini --project driving
cd driving
tell "A first corpus, bought as the fleet drives: clear days are frequent, snowy nights are rare."
run distdata plan --budget 2000samples
run distdata generate
tell "The teacher's side of the gate, bought once for all students."
run distdata plan --purpose gate
run distdata generate
tell "A student, and the gate: slice by slice, student against teacher under the same noise."
run distdata train
run distdata gate || true   # exit code 3: not every slice is green
tell "Why? Retraining is cheap and finds out: other weights, a quarter of the data, a wider student. Only where more data
is what helps are draws bought, and a student that is green everywhere is confirmed on untouched seeds and promoted."
run distdata cycle || true   # exit code 3: a person is needed, and the last line says why
tell "Where the money went, and who answers from now on."
run distdata sql "select slice, sum(kept)::int kept, round(100 * sum(fleet_share), 1) fleet_percent, round(sum(usd), 4) usd from coverage group by all order by kept" -f table
run distdata sql "select slice, student_id, share, fallback, horizon_s from routing" -f table
run distdata status
run distdata report --out ../report.html
cd ..
printf '\n\033[1mTry next\033[0m\n'
printf '  open %s/report.html\n' "$(pwd)"
printf '  cd %s/driving\n' "$(pwd)"
printf '  distdata cycle             # again: nothing to do, nothing to pay\n'
printf '  distdata sql "select slice, cause, evidence from causes" -f table\n'
printf '  distdata plan --compare fleet,gate\n'
printf '  distdata promote --rollback "only to see it"\n'
