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
export WAN_HOST_WAN21_LORAS_DIR=${WAN_HOST_WAN21_LORAS_DIR:-$volume/loras}
mkdir -p "$WAN_HOST_MODELS_DIR" "$HF_HOME" "$TORCHINDUCTOR_CACHE_DIR" "$TRITON_CACHE_DIR" "$CUDA_CACHE_PATH" "$WAN_HOST_DATA_DIR" \
    "$WAN_HOST_WAN21_LORAS_DIR" "$cache/wan21"
# what wan21 has measured of a GPU holds for the next pod, too
[[ -e $WAN_HOST_DATA_DIR/wan21 ]] || ln -s "$cache/wan21" "$WAN_HOST_DATA_DIR/wan21"

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

# RunPod gives every pod a key for itself in RUNPOD_API_KEY; runpodctl is not in every image.
end_pod() {
    python3 - "$on_idle" <<'PYTHON'
import os, sys, urllib.request
address = os.environ.get("RUNPOD_API", "https://rest.runpod.io/v1") + "/pods/" + os.environ["RUNPOD_POD_ID"]
address, method = (address, "DELETE") if sys.argv[1] == "remove" else (address + "/stop", "POST")
headers = {"Authorization": "Bearer " + os.environ["RUNPOD_API_KEY"]}
urllib.request.urlopen(urllib.request.Request(address, method=method, headers=headers), timeout=30)
PYTHON
}

if ((status == idle_exit)) && [[ $on_idle != keep ]]; then
    echo "start-on-runpod: the worker was idle; this pod is told to end ($on_idle)" >&2
    end_pod || fail "ON_IDLE: RunPod was not told to $on_idle this pod, which goes on and is paid for"
fi
exit "$status"
