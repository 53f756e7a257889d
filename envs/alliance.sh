# Clusters of the Digital Research Alliance of Canada: source envs/alliance.sh [FOLDER]
#
# Loads the modules and enters the virtual environment in FOLDER (~/takd-env), at every login; makes it at the first
# call, on a login node, and again after alliance.txt has changed. Jobs inherit both from the shell that starts
# Snakemake. Wheels come from the cluster's wheelhouse, --no-index; of what it lacks, the versions that cpu.txt names
# are fetched first, for which login nodes have internet and compute nodes often do not.
# TAKD_MODULES="StdEnv/2023 gcc arrow/25.0.0 python/3.12" loads others.
# shellcheck shell=bash

_takd_make() { # folder, folder of this file
    local folder=$1 here=$2 log=$1/install.log missing fetched=" "
    local install=("$folder/bin/python" -m pip --disable-pip-version-check install --no-index)

    echo "Making $folder: some minutes, its log is in $log"
    rm -f "$folder/complete"
    virtualenv --no-download --quiet "$folder" || return
    mkdir -p "$folder/fetched"
    if ! "$folder/bin/python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("pyarrow") is None)'; then
        echo "The module arrow has no pyarrow for this Python: 'module spider pyarrow' lists the versions, TAKD_MODULES names one" >&2
        return 1
    fi
    "${install[@]}" --quiet --upgrade pip || return
    until "${install[@]}" --find-links "$folder/fetched" --requirement "$here/alliance.txt" >"$log" 2>&1; do
        missing=$(sed -n 's/^ERROR: No matching distribution found for \([A-Za-z0-9._-]*\).*/\1/p' "$log" | tail -n 1)
        if [[ -z $missing || $fetched == *" $missing "* ]]; then
            tail -n 20 "$log" >&2
            echo "The wheels of envs/alliance.txt do not go together: see $log" >&2
            return 1
        fi
        echo "The wheelhouse lacks $missing: fetching it"
        if ! "$folder/bin/python" -m pip --disable-pip-version-check download --quiet --no-deps \
            --dest "$folder/fetched" --constraint "$here/cpu.txt" "$missing"; then
            echo "Neither the wheelhouse nor the index has a $missing that fits envs/alliance.txt and this Python: 'avail_wheels $missing --all-versions' lists what there is, TAKD_MODULES names another Python, and support builds wheels on request" >&2
            return 1
        fi
        fetched+="$missing "
    done
    (cd "$here/.." && echo "$PWD/src") >"$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/takd.pth" || return
    touch "$folder/complete"
}

_takd_enter() {
    local folder=${1:-$HOME/takd-env} here modules
    here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) || return
    if ! command -v module >/dev/null; then
        echo "There is no command 'module': this is not a cluster of the Alliance; elsewhere, make env (envs/README.md)" >&2
        return 1
    fi
    if [[ -n ${SCRATCH:-} && $folder/ == "$SCRATCH"/* ]]; then
        echo "$folder is on scratch, where old files are removed one by one: take a folder in home or project" >&2
        return 1
    fi
    # the modules first: an environment does not see a pyarrow that is loaded after it
    if [[ $(type -t deactivate) == function ]]; then deactivate; fi
    read -ra modules <<<"${TAKD_MODULES:-StdEnv/2023 gcc arrow python/3.11}"
    module load "${modules[@]}" || return
    if [[ ! -e $folder/complete || $here/alliance.txt -nt $folder/complete ]]; then
        _takd_make "$folder" "$here" || return
    fi
    # shellcheck disable=SC1091
    source "$folder/bin/activate" || return
    # the hub's own transfer protocol fails on these clusters, says their documentation
    export HF_HUB_DISABLE_XET=1
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    echo "This changes the shell that you are in: source $0" >&2
    exit 1
fi
_takd_enter "$@"
