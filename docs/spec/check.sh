#!/usr/bin/env bash
# Checks the models with spin in every configuration below, one at a time, each in less than 3.8 GB.
# `check.sh large` checks larger ones instead, each in less than 7 GB.
# Prints a line for each (seconds of processor time), and the shortest trail of some that fork.
# Exits 1 if a configuration does not give what is expected of it.
set -euo pipefail
cd "$(dirname "$0")"

for tool in spin gcc; do
    if ! command -v "$tool" > /dev/null; then
        echo "$tool is missing: apt-get install spin gcc"
        exit 1
    fi
done

case "${1:-}" in
    "") table=configurations memory=3800 ;;
    large) table=large_configurations memory=7000 ;;
    *) echo "usage: check.sh [large]"; exit 1 ;;
esac

two="-DPEERS=3 -DFOUNDERS=2 -DCHANGES=1"   # and one learner
three="-DPEERS=4 -DFOUNDERS=3 -DCHANGES=1" # and one learner
four="-DPEERS=4 -DFOUNDERS=4"
five="-DPEERS=5 -DFOUNDERS=5"
joiners="-DPEERS=4 -DFOUNDERS=2 -DCHANGES=2" # two members and two learners
witness="$two -DWITNESSES=2"                 # one worker, one witness, one learner
live="-DPROGRESS -DVIEWS=1 -DSTEPS=0"
forced="-DPEERS=3"

# name, how, expected result, whether to show the trail, definitions. How: `all` states of agreement.pml, a `sample`
# of them (bit-state hashing: not exhaustive), `fair` runs of it, or all states of lineages.pml (`forced`).
configurations() {
    cat << TABLE
rule-survivors       all    fork    show $four  -DVIEWS=1 -DBALLOTS=2 -DCRASHES=1 -DSTEPS=0 -DRULE=SURVIVORS -DCHECK=LIVING
rule-everybody       all    fork    show $three -DVIEWS=1 -DBALLOTS=2 -DCRASHES=2 -DSTEPS=0 -DRULE=EVERYBODY -DCHECK=LIVING
rule-half            all    fork    hide $three -DVIEWS=1 -DBALLOTS=2 -DCRASHES=1 -DSTEPS=0 -DRULE=LOOSE
ours-but-no-nack     all    fork    hide $four  -DVIEWS=1 -DBALLOTS=2 -DCRASHES=1 -DSTEPS=0 -DNO_NACK
ours-but-no-accepted all    fork    hide $four  -DVIEWS=1 -DBALLOTS=2 -DCRASHES=1 -DSTEPS=0 -DNO_ACCEPTED
ours-but-no-view     all    fork    hide $four  -DVIEWS=1 -DBALLOTS=2 -DCRASHES=2 -DSTEPS=0 -DNO_INSTALLED
ours-but-no-freeze   all    broken  hide $two   -DVIEWS=1 -DBALLOTS=1 -DCRASHES=0 -DSTEPS=1 -DNO_FREEZE
ours-but-no-gate     all    broken  hide $two   -DVIEWS=1 -DBALLOTS=1 -DCRASHES=0 -DSTEPS=2 -DNO_GATE
ours-but-no-ground   all    broken  hide $two   -DVIEWS=2 -DBALLOTS=1 -DCRASHES=2 -DSTEPS=1 -DNO_GROUND
ours-but-no-floor    all    broken  hide $two   -DVIEWS=2 -DBALLOTS=1 -DCRASHES=0 -DSTEPS=1 -DNO_FLOOR -DDEMOTE=1
ours-but-no-catch-up all    broken  show $two   -DVIEWS=2 -DBALLOTS=1 -DCRASHES=0 -DSTEPS=1 -DNO_CATCH_UP -DDEMOTE=1
ours-but-no-witness  all    broken  show $witness -DVIEWS=2 -DBALLOTS=1 -DCRASHES=1 -DSTEPS=1 -DNO_WITNESS
ours-gets-far        all    reached hide $two   -DVIEWS=2 -DBALLOTS=1 -DCRASHES=1 -DSTEPS=1 -DCHECK=REACHED
two-join-rounds      all    safe    hide $two   -DVIEWS=2 -DBALLOTS=1 -DCRASHES=2 -DSTEPS=2 -DDEMOTE=1
two-join             all    safe    hide $two   -DVIEWS=2 -DBALLOTS=2 -DCRASHES=1 -DSTEPS=1 -DDEMOTE=1
two-joiners          all    safe    hide $joiners -DVIEWS=2 -DBALLOTS=1 -DCRASHES=2 -DSTEPS=1
two-joiners-ballots  all    safe    hide $joiners -DVIEWS=1 -DBALLOTS=3 -DCRASHES=3 -DSTEPS=0
three-join-ballots   all    safe    hide $three -DVIEWS=1 -DBALLOTS=3 -DCRASHES=3 -DSTEPS=0
three-join-views     all    safe    hide $three -DVIEWS=2 -DBALLOTS=1 -DCRASHES=1 -DSTEPS=1 -DDEMOTE=1
three-join-rounds    all    safe    hide $three -DVIEWS=1 -DBALLOTS=2 -DCRASHES=1 -DSTEPS=2
witness              all    safe    hide $witness -DVIEWS=2 -DBALLOTS=2 -DCRASHES=2 -DSTEPS=1
two-and-a-witness    all    safe    hide -DPEERS=3 -DFOUNDERS=3 -DWITNESSES=4 -DVIEWS=2 -DBALLOTS=2 -DCRASHES=1 -DSTEPS=1
four-crashes         all    safe    hide $four  -DVIEWS=1 -DBALLOTS=2 -DCRASHES=3 -DSTEPS=0 -DCHANGES=1
four-ballots         all    safe    hide $four  -DVIEWS=1 -DBALLOTS=3 -DCRASHES=1 -DSTEPS=0
four-rounds          all    safe    hide $four  -DVIEWS=1 -DBALLOTS=2 -DCRASHES=0 -DSTEPS=1
five-members         all    safe    hide $five  -DVIEWS=1 -DBALLOTS=2 -DCRASHES=1 -DSTEPS=0
five-crashes         sample safe    hide $five  -DVIEWS=1 -DBALLOTS=3 -DCRASHES=3 -DSTEPS=0
five-two-joiners     sample safe    hide -DPEERS=7 -DFOUNDERS=5 -DCHANGES=2 -DVIEWS=2 -DBALLOTS=2 -DCRASHES=3 -DSTEPS=1
three-goes-on        fair   live    hide -DPEERS=3 -DFOUNDERS=3 $live -DBALLOTS=3 -DCRASHES=2 -DHOSTS=1
four-goes-on         fair   live    hide -DPEERS=4 -DFOUNDERS=4 $live -DBALLOTS=2 -DCRASHES=2 -DHOSTS=1
rule-of-all          fair   stuck   hide -DPEERS=3 -DFOUNDERS=3 $live -DBALLOTS=2 -DCRASHES=2 -DHOSTS=0 -DRULE=PLAIN
two-lose-a-host      fair   stuck   hide -DPEERS=3 -DFOUNDERS=2 $live -DBALLOTS=2 -DCRASHES=1 -DHOSTS=1 -DNO_CONDITION
witness-helps        fair   live    hide -DPEERS=3 -DFOUNDERS=3 $live -DBALLOTS=2 -DCRASHES=1 -DHOSTS=1 -DNO_CONDITION
forced               forced safe    hide $forced -DCRASHES=3 -DFORCES=1
forced-twice         forced safe    hide $forced -DCRASHES=0 -DFORCES=2
forced-same-id       forced fork    hide $forced -DCRASHES=0 -DFORCES=1 -DSAME_ID
forced-no-fence      forced broken  hide $forced -DCRASHES=0 -DFORCES=1 -DNO_FENCE
forced-no-memory     forced broken  hide $forced -DCRASHES=0 -DFORCES=1 -DNO_MEMORY
forced-no-split      forced fork    show $forced -DCRASHES=2 -DFORCES=1 -DNO_SPLIT
TABLE
}

large_configurations() {
    cat << TABLE
two-join-large       all    safe    hide $two   -DVIEWS=2 -DBALLOTS=2 -DCRASHES=2 -DSTEPS=1 -DDEMOTE=1
three-views-large    all    safe    hide $three -DVIEWS=2 -DBALLOTS=1 -DCRASHES=2 -DSTEPS=1 -DDEMOTE=1
three-rounds-large   all    safe    hide $three -DVIEWS=1 -DBALLOTS=2 -DCRASHES=2 -DSTEPS=2
four-rounds-crash    all    safe    hide $four  -DVIEWS=1 -DBALLOTS=2 -DCRASHES=1 -DSTEPS=1
four-leave-large     all    safe    hide $four  -DVIEWS=1 -DBALLOTS=2 -DCRASHES=1 -DSTEPS=1 -DCHANGES=1
four-rounds-large    all    safe    hide $four  -DVIEWS=1 -DBALLOTS=2 -DCRASHES=2 -DSTEPS=1
five-crashes-large   all    safe    hide $five  -DVIEWS=1 -DBALLOTS=2 -DCRASHES=2 -DSTEPS=0
forced-twice-large   forced safe    hide $forced -DCRASHES=1 -DFORCES=2
TABLE
}

outcome() { # what spin found in the build directory $1
    if ! grep -q "errors:" "$1/out" || grep -qE "max search depth|out of memory" "$1/out"; then
        echo incomplete
    elif grep -q "errors: 0" "$1/out"; then
        if [ "$2" = fair ]; then echo live; else echo safe; fi
    elif grep -q "acceptance cycle" "$1/out"; then
        echo stuck
    elif grep -q "decided AGAIN" "$1/trail"; then
        echo fork
    elif grep -q "that is far" "$1/trail"; then
        echo reached
    elif grep -q "assertion violated" "$1/out"; then
        echo broken
    else
        echo incomplete
    fi
}

search() { # how, expected: compile pan.c and run it
    local compile="-O2 -DNOREDUCE -DMEMLIM=$memory" run="-m20000"
    case $1 in
        fair) compile+=" -DNFAIR=3" run+=" -a -f -w24" ;;
        sample) compile+=" -DSAFETY -DBITSTATE" run+=" -E -k3 -w27" ;;
        *)
            compile+=" -DSAFETY" run+=" -E -w25"
            if [ "$2" = safe ]; then
                compile+=" -DNO_RESIZE"
            else # -i: look for a trail with fewer steps until there is none
                compile+=" -DREACH" run="-E -i -m200 -w22"
            fi
            ;;
    esac
    # shellcheck disable=SC2086  # words
    gcc $compile -o pan pan.c >> build.log 2>&1
    TIMEFORMAT=%U
    # shellcheck disable=SC2086
    { time timeout -s INT "$limit" ./pan $run > out 2>&1; } 2> seconds
}

check() { # name, how, expected, show or hide, definitions...
    local name=$1 how=$2 expected=$3 show=$4 dir=build/$1 model=agreement.pml got states seconds limit=3600
    shift 4
    if [ "$how" = forced ]; then model=lineages.pml; fi
    if [ "$how" = sample ]; then limit=25; fi
    mkdir -p "$dir"
    cp "$model" "$dir"
    (
        cd "$dir"
        spin -a "$@" "$model" > build.log
        search "$how" "$expected"
        spin -t -T "$@" "$model" | grep -E "^ +([A-H]|so|that|the) " > trail
    ) || true
    touch "$dir/trail" "$dir/out"
    got=$(outcome "$dir" "$how")
    states=$(awk '/states, stored/ { print $1; exit }' "$dir/out")
    seconds=$(cat "$dir/seconds")
    printf '%-21s %-6s expected %-8s got %-11s %10s states %8s s\n' \
        "$name" "$how" "$expected" "$got" "$states" "$seconds"
    if [ "$show" = show ]; then sed 's/^ */    /' "$dir/trail"; fi
    [ "$got" = "$expected" ]
}

rm -rf build
failed=0
while read -r name how expected show definitions; do
    # shellcheck disable=SC2086  # the definitions are words
    check "$name" "$how" "$expected" "$show" $definitions || failed=1
done < <($table)
if [ "$failed" -ne 0 ]; then echo "a configuration did not give what is expected; see docs/spec/build"; fi
exit "$failed"
