#!/bin/sh
# The arms on real people: strings of digits of one speaker at a time, who was left out of what the arms learned.
#
#   sh docs/tools/imputer_vs_ctc/people.sh RUNS OUT FSDD [RUN...]
#
# Of each speaker of FSDD (real/fsdd) 300 strings of 3 to 7 of his digits are the test. Every run of RUNS, or those that
# are named (ARM_SEED), goes on for 200 updates on 1,500 strings of the other speakers, and reads them: greedily, and with
# the words of digits. Writes OUT/texts, for table.py. Run again, it goes on where it stopped.
set -e
runs=$1 out=$2 fsdd=$3
shift 3
here=$(dirname "$0")
mkdir -p "$out/texts"
[ $# -gt 0 ] || set -- $(ls "$runs")
join() { # FOLDER OPTIONS...
    folder=$1
    shift
    [ -e "$folder" ] && return
    rm -rf "$folder.part"
    edge-imputer data join "$fsdd" "$folder.part" "$@"
    mv "$folder.part" "$folder"
}
for speaker in jackson lucas yweweler; do
    train="$out/strings/train/$speaker"
    test="$out/strings/test/$speaker"
    join "$train" -n 1500 --hold-out $speaker --split train --seed 1
    join "$test" -n 300 --hold-out $speaker --seed 2
    for run; do
        [ -e "$runs/$run/last.ckpt" ] || continue
        to="$out/runs/$speaker/$run"
        [ -e "$to/done" ] && continue
        from="--init-from $runs/$run/last.ckpt"
        [ -e "$to/last.ckpt" ] && from=--resume
        edge-imputer train "$here/${run%_*}.toml" --data "$train" --out "$to" $from \
            --set run.updates=200 --set run.valid_every=200 --set optimizer.learning_rate=1e-3 --set task.flat_start=0 \
            --seed "${run##*_}"
        touch "$to/done"
    done
    for words in "" "--lexicon $here/../../examples/digits.txt"; do
        python "$here/score.py" "$out/runs/$speaker" "$out/of/$speaker" --data "fsdd=$test" $words \
            --reading 'ctc 1' --reading 'head [1248]' --reading 'head 1+1' --reading 'imitation [1248]'
    done
done
# All three as one data set.
for file in "$out"/of/jackson/*.jsonl; do
    cat "$out"/of/*/"$(basename "$file")" > "$out/texts/$(basename "$file")"
done
