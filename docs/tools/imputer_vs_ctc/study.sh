#!/bin/sh
# The study "Imputer against CTC": trains every arm with three seeds and reads it on everything.
#
#   sh docs/tools/imputer_vs_ctc/study.sh CORPUS OUT NOISE COFFEE
#
# CORPUS is what corpus.sh wrote, NOISE a folder of recorded noise, COFFEE real/coffee_commands. Writes OUT/runs/ARM_SEED and
# OUT/texts, for table.py. Run again, it goes on where it stopped. Half an hour of one core a run, 14 runs; a quarter of an
# hour of one core a run for reading.
set -e
corpus=$1 out=$2 noise=$3 coffee=$4
here=$(dirname "$0")
mkdir -p "$out/runs"
for run in variants_1 joint_1 consistent_1 ctc_deep_1 ctc_compute_1 self_conditioned_1 \
    shared_2 ctc_deep_2 ctc_compute_2 self_conditioned_2 \
    shared_3 ctc_deep_3 ctc_compute_3 self_conditioned_3; do
    to="$out/runs/$run"
    [ -e "$to/done" ] && continue
    resume=
    [ -e "$to/last.ckpt" ] && resume=--resume
    edge-imputer train "$here/${run%_*}.toml" --data "$corpus/train" --out "$to" --seed "${run##*_}" $resume
    touch "$to/done"
done
hear() { # OPTIONS...
    python "$here/score.py" "$out/runs" "$out/texts" "$@"
}
set -f # the patterns are score.py's
hear --data "voices=$corpus/voices"
arms="--reading ctc?1 --reading head?[1248] --reading head?1+1 --reading imitation?[1248]"
hear --data "engine=$corpus/engine" --noise "$noise" $arms
hear --data "voices=$corpus/voices" --noise "$noise" $arms
# A search takes longer than the network: some readings, and of one seed where there is noise or another engine.
arms="--reading ctc?1 --reading head?[14] --reading imitation?4"
hear --data "voices=$corpus/voices" --lexicon $arms
hear --data "voices=$corpus/voices" --data "engine=$corpus/engine" --noise "$noise" --lexicon $arms --run '*_1'
hear --data "coffee=$coffee" --grammar "$here/../../examples/coffee.jsgf" $arms
