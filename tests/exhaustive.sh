#!/usr/bin/env bash
# The tests that take hours: every fault and death over both stores, the suite over PostgreSQL,
# thousands of kills, long chaos, fuzzing at length. `cargo test` runs a part of each but the last.
#
#     tests/exhaustive.sh                every part, about five hours; an interrupted run goes on
#     tests/exhaustive.sh PART...        these parts, again if need be
#     tests/exhaustive.sh --list         the parts, and which are done
#     tests/exhaustive.sh --sample SEED  minutes: a piece of each part, which the seed chooses
#
# target/exhaustive/STATE/ keeps what each part printed, in PART.log once it has passed, where STATE
# is that of the working tree: after a change everything is to be done again.
set -euo pipefail
cd "$(dirname "$0")/.."

# Modules of tests/it that run over either store; the test `architecture` holds this list complete.
EITHER_STORE="access admin_key approvals audit enforcement errors follow grants identities lifecycle
    limits lookup reaping reconciliation removal renewal repeats revocation sharing"
FUZZ_TARGETS=$(basename -s .rs -a fuzz/fuzz_targets/*.rs)

parts() {
    for store in sqlite postgres; do echo "matrix-$store" "deaths-$store" "kills-$store"; done
    echo changes chaos-of-two chaos-of-three
    for module in $EITHER_STORE; do echo "postgres-$module"; done
    for target in $FUZZ_TARGETS; do echo "fuzz-$target"; done
}

# it [NAME=VALUE]... FILTER...: integration tests with these variables, and what they print.
it() {
    local settings=()
    while [[ $1 == *=* ]]; do settings+=("$1"); shift; done
    env "${settings[@]}" cargo test --locked --test it -- --show-output "$@"
}

# over STORE [NAME=VALUE]... FILTER...
over() { it "CREDBROKER_TEST_STORE=$1" "${@:2}"; }

# fuzz TARGET SECONDS
fuzz() {
    command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz@0.13.2
    mkdir -p "fuzz/corpus/$1"
    cargo fuzz run -s none "$1" "fuzz/corpus/$1" "fuzz/seeds/$1" -- \
        -max_total_time="$2" -verbosity=0 -print_final_stats=1
}

part() {
    local whole=CREDBROKER_TEST_WHOLE=1
    case $1 in
        matrix-*) over "${1#*-}" $whole faults::matrix:: ;;
        deaths-*) over "${1#*-}" $whole faults::deaths:: ;;
        kills-*) over "${1#*-}" $whole faults::kills:: ;;
        changes) it $whole audit::rewriting:: audit::tampering:: ;;
        chaos-of-two) it $whole CREDBROKER_TEST_BROKERS=2 several::chaos:: ;;
        chaos-of-three) it $whole several::chaos:: ;;
        postgres-*) over postgres "${1#*-}::" ;;
        fuzz-*) fuzz "${1#*-}" 600 ;;
    esac
}

# A piece of what only the exhaustive run has: the seed chooses modules, cases, kills and target.
sample() {
    local modules=($EITHER_STORE) targets=($FUZZ_TARGETS)
    export CREDBROKER_TEST_SEED=$1
    local first=$(($1 % ${#modules[@]}))
    local chosen="${modules[first]}:: ${modules[(first + 7) % ${#modules[@]}]}::"
    local target=${targets[$1 % ${#targets[@]}]}
    echo "seed $1: over PostgreSQL faults:: and $chosen; 100 kills; fuzzing $target"
    over postgres faults::matrix:: faults::deaths:: $chosen
    it CREDBROKER_TEST_KILLS=100 faults::kills::
    fuzz "$target" 30
    echo "seed $1: passed"
}

# run PART: unless it has passed in this state of the tree; its log is named so only when it has.
run() {
    local log="$done_here/$1"
    echo "== $1: running, see $log.running"
    if ! part "$1" >"$log.running" 2>&1; then
        tail -n 30 "$log.running"
        echo "== $1: failed; the whole output is in $log.running"
        return 1
    fi
    mv "$log.running" "$log.log"
    grep -hE '^test result: |violations|^skipped over|^stat::number_of_executed_units' "$log.log" | sort | uniq -c
}

state=$({ git rev-parse HEAD && git diff HEAD; } | git hash-object --stdin | cut -c1-12)
done_here=target/exhaustive/$state
case ${1-} in
    --list)
        for part in $(parts); do
            if [ -e "$done_here/$part.log" ]; then echo "$part (done)"; else echo "$part"; fi
        done
        ;;
    --sample)
        [[ ${2-} =~ ^[0-9]+$ ]] || { echo "usage: tests/exhaustive.sh --sample NUMBER" >&2; exit 2; }
        sample "$2"
        ;;
    *)
        for part in "$@"; do
            parts | tr ' ' '\n' | grep -qx -- "$part" ||
                { echo "there is no part $part; tests/exhaustive.sh --list names them" >&2; exit 2; }
        done
        mkdir -p "$done_here"
        failed=
        for part in ${@:-$(parts)}; do
            if [ $# = 0 ] && [ -e "$done_here/$part.log" ]; then
                echo "== $part: done"
            else
                run "$part" || failed="$failed $part"
            fi
        done
        [ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
        ;;
esac
