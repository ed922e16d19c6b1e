"""The commented `package.toml` that `pcm package new` writes."""

from pathlib import Path

from broker.packages.building.definition import DEFINITION
from schemas.names import check_name

TEMPLATE = """\
# A package: this file, and beside it the files that its commands need.
#   pcm package check {folder}     finds what is wrong here
#   pcm package build {folder}     makes {name}_0.1.pcmpkg

name = "{name}"
version = "0.1"             # compared as Debian does; Python's 1.0rc1 is before 1.0
publisher = ""              # for people
comment = ""                # its purpose, for people
# platforms = ["linux/x86_64"]           # default: any

# Each command runs in the package's folder, with PCM_PACKAGE_DIR, PCM_PACKAGE_NAME and
# PCM_PACKAGE_VERSION set. A program with a slash, such as ./setup.sh, is a file of the package.
[commands.install]
argv = ["./setup.sh", "install"]
background = true           # by the service agent; false: offered to the user, in the user's name
# timeout = "10m"                        # default: 1h
# success_exit_codes = [0]
# restart_exit_codes = [3010]            # a success after which the machine must be restarted
# run_as = "postgres"                    # default: root, or the service agent's user

[commands.uninstall]
argv = ["./setup.sh", "uninstall"]
background = true

# Exit 0: the package is there. Then install and upgrade run nothing.
# [detect]
# argv = ["test", "-e", "/usr/local/bin/{name}"]
# background = true
# timeout = "1m"

# Runs after install, upgrade and repair; if it fails, the job is failed.
# [verify]
# argv = ["/usr/local/bin/{name}", "--version"]
# background = true
#
# These stand above the first [table]:
# on_failed_verify = "uninstall"         # undo what verify found wrong
# requires = ["python3-base >= 1.2"]     # installed first
# conflicts = ["old-{name} < 2"]
"""

_SCRIPT = """\
#!/bin/sh
# {name}: install, uninstall
set -eu
case $1 in
install) echo "installed $PCM_PACKAGE_NAME $PCM_PACKAGE_VERSION" ;;
uninstall) echo "uninstalled $PCM_PACKAGE_NAME" ;;
*) echo "usage: $0 install|uninstall" >&2; exit 2 ;;
esac
"""


def new_package(folder: str | Path) -> list[Path]:
    """Write a commented definition and a script into a new or empty folder; return both.

    The package is named as the folder.

    Raises:
        ValueError: the folder's name is not a package's name.
        OSError: the folder is not empty, or cannot be written.
    """
    folder = Path(folder)
    name = check_name(folder.resolve().name)
    folder.mkdir(exist_ok=True)
    definition, script = folder / DEFINITION, folder / "setup.sh"
    for file, text in ((definition, TEMPLATE), (script, _SCRIPT)):
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text.replace("{name}", name).replace("{folder}", folder.name))
    script.chmod(0o755)
    return [definition, script]
