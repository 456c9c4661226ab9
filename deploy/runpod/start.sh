#!/usr/bin/env bash
# Starts a worker on a RunPod pod: models and compile caches live on the network volume, so that only the first pod pays for them.
#
#   VOLUME       where the network volume is mounted (/workspace)
#   PULL_MODELS  models to fetch before the start, if they are not there: "wan2.1-vace-1.3b"
#   ON_IDLE      what becomes of the pod when the worker has been idle for WAN_HOST_IDLE_SECONDS: remove (the only way to stop
#                paying for a pod with a network volume), stop, or keep (then RunPod starts the worker anew)
#
# Everything else is a setting of wan-host; what is set already stays, but for WAN_HOST_DATA_DIR, which the image sets.
set -euo pipefail

readonly volume=${VOLUME:-/workspace} on_idle=${ON_IDLE:-keep}
readonly idle_exit=3

fail() {
    echo "start-on-runpod: $*" >&2
    exit 1
}

[[ -d $volume ]] || fail "VOLUME: $volume is not there; attach a network volume, or set VOLUME"
[[ -w $volume ]] || fail "VOLUME: $(id -un) may not write to $volume; build the image with --build-arg RUN_AS=root, or mend its owner"
[[ $on_idle =~ ^(remove|stop|keep)$ ]] || fail "ON_IDLE: '$on_idle' is not allowed; remove, stop or keep are"

cache=$volume/cache
export WAN_HOST_MODELS_DIR=${WAN_HOST_MODELS_DIR:-$volume/models}
export HF_HOME=${HF_HOME:-$cache/huggingface}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$cache/inductor}
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$cache/triton}
export CUDA_CACHE_PATH=${CUDA_CACHE_PATH:-$cache/cuda}
# The spool is a pod's own, and outlives its container: a pod that comes back delivers what it had finished.
export WAN_HOST_DATA_DIR=$volume/pods/${RUNPOD_POD_ID:-here}
export WAN_HOST_WORKER_ID=${WAN_HOST_WORKER_ID:-${RUNPOD_POD_ID:-here}}
mkdir -p "$WAN_HOST_MODELS_DIR" "$HF_HOME" "$TORCHINDUCTOR_CACHE_DIR" "$TRITON_CACHE_DIR" "$CUDA_CACHE_PATH" "$WAN_HOST_DATA_DIR"

for model in ${PULL_MODELS:-}; do
    # One pod at a time fetches; the others find it done. The mark is set when everything has arrived.
    mark=$WAN_HOST_MODELS_DIR/.pulled-${model//\//_}
    (
        flock 9
        [[ -e $mark ]] || { wan-host models pull "$model" && touch "$mark"; }
    ) 9>"$WAN_HOST_MODELS_DIR/.pull.lock"
done

# SIGTERM must reach the worker, and its exit status must come back here: so no exec. A signal ends `wait`, not the worker.
wan-host run &
worker=$!
trap 'signalled=yes; kill -TERM "$worker"' TERM INT
while :; do
    signalled='' status=0
    wait "$worker" || status=$?
    [[ -n $signalled ]] || break
done

if ((status == idle_exit)) && [[ $on_idle != keep ]]; then
    echo "start-on-runpod: the worker was idle: runpodctl $on_idle pod" >&2
    runpodctl "$on_idle" pod "${RUNPOD_POD_ID:?}"
fi
exit "$status"
