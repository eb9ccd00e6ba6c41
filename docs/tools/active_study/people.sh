#!/bin/sh
# The corpus of the study of active learning on people: strings of digits by two speakers, and by a third for the test.
#
#   sh docs/tools/active_study/people.sh FSDD OUT
#
# FSDD is real/fsdd. OUT/pool has 1,500 strings of 3 to 7 digits of lucas and yweweler, and as the split test 300 of
# jackson, whom no model of the study has heard. A minute.
set -e
fsdd=$1 out=$2
mkdir -p "$out"
edge-imputer data join "$fsdd" "$out/train" -n 1500 --hold-out jackson --split train --seed 1
edge-imputer data join "$fsdd" "$out/test" -n 300 --hold-out jackson --seed 2
edge-imputer data merge "$out/pool" "$out/train" "$out/test"
