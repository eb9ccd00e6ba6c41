#!/bin/sh
# The default voice-command model from nothing: speech, training, bundle, card, and what it reaches.
#
#   sh docs/tools/voice_commands.sh OUT [KOKORO]
#
# OUT/corpus is that of the study (docs/tools/imputer_vs_ctc/corpus.sh, which says what KOKORO is), OUT/model the run,
# OUT/bundle what a device gets. Run again, it goes on where it stopped. An hour and a half of two cores.
set -e
out=$1
here=$(dirname "$0")
[ -e "$out/corpus/train" ] || sh "$here/imputer_vs_ctc/corpus.sh" "$out/corpus" ${2:+"$2"}
resume=
[ -e "$out/model/last.ckpt" ] && resume=--resume
edge-imputer train voice-commands --data "$out/corpus/train" --out "$out/model" $resume
edge-imputer export "$out/model/last.ckpt" --data "$out/corpus/train" --out "$out/bundle" --licence Apache-2.0
edge-imputer verify "$out/bundle"
# Int8 beside the floats it was made of, on voices and on an engine that training did not have.
edge-imputer evaluate "$out/bundle" --compare "$out/model/last.ckpt" --data "$out/corpus/voices" \
    --data "$out/corpus/engine" --out "$out/evaluation" --html
