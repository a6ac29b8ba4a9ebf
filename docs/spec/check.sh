#!/usr/bin/env bash
# Checks agreement.pml with spin in every configuration below, two at a time, each in less than 3.8 GB.
# `check.sh large` checks larger ones instead, one at a time, each in less than 7 GB.
# Prints a line for each (seconds of processor time), and the shortest trail of the two rules that fork.
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
    "") jobs=2 memory=3800 ;;
    large) jobs=1 memory=7000 ;;
    *) echo "usage: check.sh [large]"; exit 1 ;;
esac

two="-DPEERS=3 -DFOUNDERS=2 -DCHANGES=1"   # and one learner
three="-DPEERS=4 -DFOUNDERS=3 -DCHANGES=1" # and one learner
four="-DPEERS=4 -DFOUNDERS=4"

# name, expected result, whether to show the trail, definitions
configurations() {
    cat << TABLE
rule-survivors       fork    show $four  -DVIEWS=1 -DBALLOTS=2 -DCRASHES=1 -DSTEPS=0 -DRULE=SURVIVORS -DCHECK=LIVING
rule-everybody       fork    show $three -DVIEWS=1 -DBALLOTS=2 -DCRASHES=2 -DSTEPS=0 -DRULE=EVERYBODY -DCHECK=LIVING
ours-but-no-nack     fork    hide $four  -DVIEWS=1 -DBALLOTS=2 -DCRASHES=1 -DSTEPS=0 -DNO_NACK
ours-but-no-accepted fork    hide $four  -DVIEWS=1 -DBALLOTS=2 -DCRASHES=1 -DSTEPS=0 -DNO_ACCEPTED
ours-but-no-view     fork    hide $four  -DVIEWS=1 -DBALLOTS=2 -DCRASHES=2 -DSTEPS=0 -DNO_INSTALLED
ours-but-no-freeze   broken  hide $two   -DVIEWS=1 -DBALLOTS=1 -DCRASHES=0 -DSTEPS=1 -DNO_FREEZE
ours-but-no-gate     broken  hide $two   -DVIEWS=1 -DBALLOTS=1 -DCRASHES=0 -DSTEPS=2 -DNO_GATE
ours-but-no-ground   broken  hide $two   -DVIEWS=2 -DBALLOTS=1 -DCRASHES=2 -DSTEPS=1 -DNO_GROUND
ours-but-no-floor    broken  hide $two   -DVIEWS=2 -DBALLOTS=1 -DCRASHES=0 -DSTEPS=1 -DNO_FLOOR -DDEMOTE=1
ours-gets-far        reached hide $two   -DVIEWS=2 -DBALLOTS=1 -DCRASHES=1 -DSTEPS=1 -DCHECK=REACHED
two-join-rounds      safe    hide $two   -DVIEWS=2 -DBALLOTS=1 -DCRASHES=2 -DSTEPS=2 -DDEMOTE=1
two-join             safe    hide $two   -DVIEWS=2 -DBALLOTS=2 -DCRASHES=2 -DSTEPS=1 -DDEMOTE=1
three-join-ballots   safe    hide $three -DVIEWS=1 -DBALLOTS=3 -DCRASHES=3 -DSTEPS=0
three-join-votes     safe    hide $three -DVIEWS=2 -DBALLOTS=2 -DCRASHES=3 -DSTEPS=0
three-join-views     safe    hide $three -DVIEWS=2 -DBALLOTS=1 -DCRASHES=2 -DSTEPS=1 -DDEMOTE=1
three-join-rounds    safe    hide $three -DVIEWS=1 -DBALLOTS=2 -DCRASHES=2 -DSTEPS=2
four-crashes         safe    hide $four  -DVIEWS=1 -DBALLOTS=2 -DCRASHES=3 -DSTEPS=0 -DCHANGES=1
four-ballots         safe    hide $four  -DVIEWS=1 -DBALLOTS=3 -DCRASHES=1 -DSTEPS=0
four-rounds          safe    hide $four  -DVIEWS=1 -DBALLOTS=2 -DCRASHES=1 -DSTEPS=1
four-views           safe    hide $four  -DVIEWS=2 -DBALLOTS=1 -DCRASHES=1 -DSTEPS=1
TABLE
}

large_configurations() {
    cat << TABLE
four-votes-large     safe    hide $four  -DVIEWS=2 -DBALLOTS=2 -DCRASHES=1 -DSTEPS=0
four-leave-large     safe    hide $four  -DVIEWS=1 -DBALLOTS=2 -DCRASHES=1 -DSTEPS=1 -DCHANGES=1
four-rounds-large    safe    hide $four  -DVIEWS=1 -DBALLOTS=2 -DCRASHES=2 -DSTEPS=1
TABLE
}

outcome() { # what spin found in the build directory $1
    if grep -q "errors: 0" "$1/out" && ! grep -qE "not completed|max search depth|out of memory" "$1/out"; then
        echo safe
    elif ! grep -q "assertion violated" "$1/out"; then
        echo incomplete
    elif grep -q "decided AGAIN" "$1/trail"; then
        echo fork
    elif grep -q "that is far" "$1/trail"; then
        echo reached
    else
        echo broken
    fi
}

check() { # name, expected, show or hide, definitions...
    local name=$1 expected=$2 show=$3 dir=build/$1 got states seconds
    shift 3
    mkdir -p "$dir"
    cp agreement.pml "$dir"
    (
        cd "$dir"
        TIMEFORMAT=%U
        spin -a "$@" agreement.pml > build.log
        if [ "$expected" = safe ]; then
            gcc -O2 -DSAFETY -DNOREDUCE -DNO_RESIZE -DMEMLIM=$memory -o pan pan.c >> build.log
            { time ./pan -E -m10000 -w25 > out 2>&1; } 2> seconds
            : > trail
        else # -i: look for a trail with fewer steps until there is none
            gcc -O1 -DSAFETY -DNOREDUCE -DREACH -DMEMLIM=$memory -o pan pan.c >> build.log
            { time ./pan -E -i -m200 -w22 > out 2>&1; } 2> seconds
            spin -t -T "$@" agreement.pml | grep -E "^ +([A-D]|so|that) " > trail || true
        fi
    ) || true
    got=$(outcome "$dir")
    states=$(awk '/states, stored/ { print $1; exit }' "$dir/out")
    seconds=$(cat "$dir/seconds")
    {
        printf '%-21s expected %-8s got %-11s %10s states %8s s\n' "$name" "$expected" "$got" "$states" "$seconds"
        if [ "$show" = show ]; then sed 's/^ */    /' "$dir/trail"; fi
    } > "$dir/line"
    cat "$dir/line"
    [ "$got" = "$expected" ]
}

rm -rf build
failed=0
running=()
while read -r name expected show definitions; do
    if [ ${#running[@]} -ge "$jobs" ]; then
        wait "${running[0]}" || failed=1
        running=("${running[@]:1}")
    fi
    # shellcheck disable=SC2086  # the definitions are words
    check "$name" "$expected" "$show" $definitions &
    running+=($!)
done < <(if [ "$jobs" = 1 ]; then large_configurations; else configurations; fi)
for job in "${running[@]}"; do
    wait "$job" || failed=1
done
if [ "$failed" -ne 0 ]; then echo "a configuration did not give what is expected; see docs/spec/build"; fi
exit "$failed"
