#!/bin/sh
# One step of a pipeline, driven by exit codes and JSON alone. What comes out of it is promoted only
# if it is shown to be sound.
#
#   step.sh train             take in what is new, train, verify, promote
#   step.sh forget ids.txt    erase the data subjects of a file, one id a line, verify, promote
#
# The exit code is what a scheduler reacts to:
#
#   0    promoted
#   3    a setting, or what doctor found, must be corrected: retrying does not help
#   4    bytes are not what they must be: what was promoted is withdrawn, somebody must look
#   6    too little for an answer, such as too few votes: what was promoted before stays
#   75   somebody else is writing, and still was after all retries: run the same step again later
#   else as `sisa` says; what was promoted before stays
#
# A request that `forget` could not finish is accepted all the same: its influence is out of what
# sisa serves, and the same step finishes it when it is run again.
#
# Environment: WORKSPACE (.), PROMOTED (promoted.json), RETRIES (5), BACKOFF (seconds before the
# first retry, doubled for each further one: 2), PYTHON (python3)
set -u
: "${WORKSPACE:=.}" "${PROMOTED:=promoted.json}" "${RETRIES:=5}" "${BACKOFF:=2}" "${PYTHON:=python3}"

# What a JSON document says went wrong: an error, findings that are errors, checks that failed.
wrong() {
    printf '%s' "$reply" | "$PYTHON" -c '
import json, sys
found = json.load(sys.stdin)
said = [found["error"]] if "error" in found else []
said += [f for f in found.get("findings", ()) if f["severity"] == "error"]
print(*(" ".join((f["message"], f["remedy"])) for f in said), sep="\n")
print(*(c["detail"] for c in found.get("checks", ()) if not c["passed"]), sep="\n")
' >&2
}

# Run a command of sisa; its document is in $reply. Whatever is not 0 ends the step.
run() {
    left=$RETRIES pause=$BACKOFF
    while :; do
        code=0
        reply=$(sisa -C "$WORKSPACE" "$@" --output json) || code=$?
        [ "$code" -eq 75 ] && [ "$left" -gt 0 ] || break
        echo "sisa $1: somebody else is writing; trying again in $pause s" >&2
        sleep "$pause"
        left=$((left - 1)) pause=$((pause * 2))
    done
    [ "$code" -eq 0 ] && return
    echo "sisa $1: exit code $code" >&2
    wrong
    if [ "$code" -eq 4 ] && [ -e "$PROMOTED" ]; then
        mv "$PROMOTED" "$PROMOTED.withdrawn"
    fi
    exit "$code"
}

# Gate and promote: the document of `verify` stands for the generation from now on.
promote() {
    run verify
    printf '%s\n' "$reply" >"$PROMOTED.part"
    mv "$PROMOTED.part" "$PROMOTED"
    echo "promoted: see $PROMOTED" >&2
}

case "${1-} $#" in
"train 1")
    run doctor
    run ingest
    run train
    ;;
"forget 2")
    run forget --file "$2" --yes
    ;;
*)
    echo "usage: step.sh train | step.sh forget FILE" >&2
    exit 2
    ;;
esac
promote
