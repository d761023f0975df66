#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Brings this machine to where sevkit can build.
#   setup.sh packages GROUP…   install the missing packages of debian-packages.txt
#   setup.sh python DIR        make or update the virtual environment DIR from requirements.txt
# Exit status 3: something is missing on this host that only its administrator can add.
set -eu
cd "$(dirname "$0")"

missing_packages() {
    for group in "$@"; do
        sed -n "s/^$group *\([^ ]*\).*/\1/p" debian-packages.txt
    done | sort -u | while read -r package; do
        case "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" in
            installed) ;;
            *) printf '%s ' "$package" ;;
        esac
    done
}

install_packages() {
    command -v dpkg-query >/dev/null || {
        echo "setup: this is not a Debian system; debian-packages.txt lists what is needed" >&2
        exit 3
    }
    missing=$(missing_packages "$@")
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" = 0 ]; then
        as_root=
    elif sudo -n true 2>/dev/null; then
        as_root="sudo -n"
    else
        echo "setup: packages are missing; install them with" >&2
        echo "  sudo apt-get install --no-install-recommends $missing" >&2
        exit 3
    fi
    echo "setup: installing $missing"
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    # shellcheck disable=SC2086  # both are lists of words
    if ! { $as_root apt-get update &&
        $as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        echo "setup: apt-get could not install: $missing" >&2
        exit 3
    fi
}

make_environment() {
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
        echo "setup: $python is missing or older than Python 3.11; name another: make PYTHON=…" >&2
        exit 3
    }
    wanted=$(cat requirements.txt pyproject.toml | sha256sum | cut -d ' ' -f 1)
    [ "$(cat "$1/.sevkit-lock" 2>/dev/null)" != "$wanted" ] || return 0
    echo "setup: making the Python environment $1"
    "$python" -m venv --clear "$1"
    "$1/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
    "$1/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
    echo "$wanted" >"$1/.sevkit-lock"
}

command=$1
shift
case $command in
    packages) install_packages "$@" ;;
    python) make_environment "$1" ;;
    *) echo "setup: packages or python" >&2; exit 2 ;;
esac
