#!/bin/sh
# Install what `make` needs on a new Debian or Ubuntu machine.
#   setup.sh python DIR   a virtual environment with the locked packages and this project
#   setup.sh bench DIR    another, with the locked packages that `make bench` compares with
#   setup.sh rabbitmq     the rabbitmq-server program, without starting its service
#   setup.sh nginx        a web server, of the tests of packages, without starting its service
#   setup.sh chromium     the browser of some tests, which are skipped without it
set -eu

packages() {
    echo "installing $* (Debian packages)"
    as_root=
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || { echo "install these as root, then try again: $*" >&2; exit 1; }
        as_root=sudo
    fi
    log=$(mktemp)
    if ! { $as_root apt-get update -q &&
           # RUNLEVEL=1: the package's own service is not started.
           $as_root env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
               apt-get install -y -q --no-install-recommends "$@"; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        exit 1
    fi
    rm -f "$log"
}

case $1 in
python | bench)
    python=${PYTHON:-python3}
    [ "$python" != python3 ] || command -v python3 >/dev/null || packages python3-venv
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        { echo "Python 3.11 or newer is needed; name it: make PYTHON=python3.12" >&2; exit 1; }
    "$python" -c 'import ensurepip, venv' 2>/dev/null || packages python3-venv
    echo "setting up $2"
    rm -rf "$2"
    "$python" -m venv "$2"
    pip="$2/bin/python -m pip --disable-pip-version-check --quiet install"
    if [ "$1" = bench ]; then
        # For the C programs; without these packages they are not measured.
        echo '#include <amqp.h>' | cc -E - >/dev/null 2>&1 ||
            (packages gcc libc6-dev librabbitmq-dev) || true
        $pip --require-hashes -r benchmarks/requirements.lock
    else
        $pip --require-hashes -r tests/requirements.lock
        $pip --no-deps --no-build-isolation -e .
    fi
    ;;
rabbitmq)
    if [ ! -e /usr/lib/rabbitmq/bin/rabbitmq-server ] && ! command -v rabbitmq-server >/dev/null; then
        packages rabbitmq-server
        if [ -d /run/systemd/system ]; then
            sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
            $sudo systemctl disable --quiet --now rabbitmq-server || true
        fi
    fi
    ;;
nginx)
    command -v nginx >/dev/null || [ -e /usr/sbin/nginx ] || packages nginx
    ;;
chromium)
    command -v chromium >/dev/null || command -v chromium-browser >/dev/null || packages chromium
    ;;
*)
    sed -n '2,7p' "$0"
    exit 2
    ;;
esac
