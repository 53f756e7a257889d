#!/bin/sh
# Create or update the virtual environment: envs/create.sh .venv [cpu|cuda|volta]
# All packages and versions are those of cpu.txt; the target says only which build of torch is wanted.
set -eu
venv=$1
target=${2:-cpu}
requirements=$(dirname "$0")/cpu.txt

fail() {
    echo "$1" >&2
    exit 1
}

case $target in
    cpu | cuda) build= ;;  # any build will do for cpu; cuda is checked below
    volta) build=+cu126 ;; # the last builds with kernels for compute capability 7.0
    *) fail "There is no target $target: envs/create.sh $venv cpu, cuda or volta" ;;
esac

python=
for name in python3.11 python3.12 python3.13 python3.14 python3; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$name
        break
    fi
done
[ -n "$python" ] || fail "Python 3.11 or newer is needed: apt-get install python3 python3-venv"

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    package=python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        echo "Installing $package"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null
    else
        fail "$python cannot make virtual environments: apt-get install $package"
    fi
fi

if ! "$venv/bin/python" -c '' 2>/dev/null; then
    echo "Creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi

pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"
}

# by itself: some packages build against it, and where the index has a smaller build it is taken
torch=$(grep '^torch==' "$requirements")$build
echo "Installing $torch and its dependencies, the larger part of the download"
pip install "$torch" || {
    [ -n "$build" ] || exit 1
    fail "Is PyTorch's index ${build#+} in PIP_EXTRA_INDEX_URL? Without it pip does not find $torch: envs/README.md"
}
if [ "$target" = cuda ] && ! "$venv/bin/python" -W ignore -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then
    fail "$venv has a build of $torch without CUDA: take PyTorch's index for the CPU out of PIP_EXTRA_INDEX_URL, remove $venv and try again"
fi
echo "Installing the other packages"
pip install --requirement "$requirements"
# an image has the packages only: takd.def
[ ! -e "$(dirname "$0")/../pyproject.toml" ] || pip install --no-deps --editable "$(dirname "$0")/.."
