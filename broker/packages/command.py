"""`pcm package`: build packages, publish them, and look after distribution points."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broker.cli.command_line import (
    DONE,
    FAILED,
    CommandError,
    Parser,
    UsageError,
    argument_errors,
)
from broker.cli.confirm import confirm, require_terminal
from broker.cli.session import name, seconds
from broker.cli.terminal import printable
from broker.content.archive import DEFAULT_LEVEL
from broker.packages.session import (
    file_errors,
    load_keyring,
    load_points,
    load_signer,
    package_errors,
)
from schemas.names import check_name
from schemas.versions import check_version

if TYPE_CHECKING:
    from broker.packages.channels import Promotion
    from broker.packages.publishing import PublishedPackage

_LEVELS = range(1, 20)


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    actions = commands.add_parser(
        "package",
        description="A package is a folder of files with named commands; package.toml describes it."
        " build makes one file of it, publish puts it on a distribution point: a folder,"
        " https://HOST/PATH with PUT, or s3://BUCKET/PATH; PCM_POINTS has the usual ones."
        " pcm send --package runs its commands. A channel, such as production, is a name for"
        " versions.",
    ).add_subparsers(
        dest="action",
        required=True,
        metavar="ACTION",
    )
    _add_local(actions)
    _add_published(actions)


def _add_local(actions: "argparse._SubParsersAction[Parser]") -> None:
    new = actions.add_parser(
        "new",
        help="write a commented package.toml",
        description="Writes a commented package.toml and a script into a new or empty folder. The"
        " package is named as the folder.",
    )
    check = actions.add_parser(
        "check",
        help="check a package's folder",
        description="Checks package.toml and the names, kinds and modes of the files beside it;"
        " prints line and field of each error.",
    )
    build = actions.add_parser(
        "build",
        help="make a package of a folder",
        description="Makes NAME_VERSION.pcmpkg of a folder: an archive, and a manifest with the sum"
        " of each file, signed with PCM_SIGNING_KEY if that is set. The same files give the same"
        " bytes. package.toml itself and .git are left out.",
    )
    for action in (new, check, build):
        action.add_argument("folder", metavar="DIR", type=Path)
    build.add_argument(
        "--out", metavar="FILE", type=Path, help="the file, or its folder (default: here)"
    )
    build.add_argument(
        "--level",
        metavar="N",
        type=_level,
        default=DEFAULT_LEVEL,
        help=f"of zstd, 1 to 19: higher is smaller and slower (default: {DEFAULT_LEVEL})",
    )
    inspect = actions.add_parser(
        "inspect",
        help="check and show a package's file",
        description="Checks each sum in a package's file and shows its manifest.",
    )
    inspect.add_argument("file", metavar="FILE", type=Path)
    inspect.add_argument("--files", action="store_true", help="list the files, too")
    for action in (check, build, inspect):
        action.add_argument("--json", action="store_true", help="print JSON")
    _set_runs((new, _new), (check, _check), (build, _build), (inspect, _inspect))


def _add_published(actions: "argparse._SubParsersAction[Parser]") -> None:
    publish = actions.add_parser(
        "publish",
        help="put a package on a distribution point",
        description="Puts a package on a distribution point. A version that is there never changes:"
        " other content under the same version is refused.",
    )
    publish.add_argument("file", metavar="FILE", type=Path)
    listing = actions.add_parser(
        "list", help="list packages", description="Lists the packages of a distribution point."
    )
    listing.add_argument("name", metavar="NAME", nargs="?", type=name, help="only this package")
    show = actions.add_parser(
        "show", help="show a package", description="Shows the manifest of a published package."
    )
    show.add_argument("wish", metavar="NAME[@VERSION|@CHANNEL]", help="default: highest version")
    show.add_argument("--files", action="store_true", help="list the files, too")
    verify = actions.add_parser(
        "verify",
        help="check all sums of a point",
        description="Reads every file of a distribution point and checks its sum; with"
        " PCM_TRUSTED_KEYS, the signatures of manifests, too.",
    )
    promote = actions.add_parser(
        "promote",
        help="make a channel name a version",
        description="Makes a channel name a version of a package, in a list that is signed with"
        " PCM_SIGNING_KEY if that is set. Each change has the next serial number; readers refuse a"
        " lower one than they have seen.",
    )
    promote.add_argument("--channel", metavar="C", type=name, required=True)
    promote.add_argument(
        "--yes", action="store_true", help="do not ask, where the channel named a higher version"
    )
    remove = actions.add_parser(
        "remove",
        help="remove a version",
        description="Removes a version that no channel names. Its archive stays until pcm package"
        " gc. Jobs that were sent with it wait for it until they expire.",
    )
    for action in (promote, remove):
        action.add_argument("version", metavar="NAME@VERSION", type=_version)
    collect = actions.add_parser(
        "gc",
        help="remove archives of no package",
        description="Removes the archives that no package of a point uses. The point is a folder"
        " or a bucket.",
    )
    collect.add_argument(
        "--older-than", metavar="D", type=seconds, help="keep newer files (default: 1h)"
    )
    collect.add_argument("--dry-run", action="store_true", help="remove nothing")
    for action in (publish, verify, collect):
        action.add_argument(
            "point", metavar="POINT", nargs="?", help="default: the first usual one"
        )
    for action in (listing, show, promote, remove):
        action.add_argument("--point", metavar="POINT", help="default: the usual ones")
    for action in (listing, show, verify):
        action.add_argument("--json", action="store_true", help="print JSON")
    _set_runs((publish, _publish), (listing, _list), (show, _show), (verify, _verify))
    _set_runs((promote, _promote), (remove, _remove), (collect, _collect))


def _set_runs(*runs: tuple[Parser, Callable[[argparse.Namespace], int]]) -> None:
    for action, run in runs:
        action.set_defaults(run=run)


def _level(text: str) -> int:
    with argument_errors():
        if not text.isdecimal() or int(text) not in _LEVELS:
            raise ValueError(f"{text!r}: write a number from 1 to 19")
        return int(text)


def _version(text: str) -> tuple[str, str]:
    with argument_errors():
        package, at, version = text.partition("@")
        if not at:
            raise ValueError(f"{text!r}: write NAME@VERSION")
        return check_name(package), check_version(version)


def _new(arguments: argparse.Namespace) -> int:
    from broker.packages.building.template import new_package

    folder = arguments.folder
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"DIR: {folder}: is not empty")
    with file_errors(folder):
        try:
            files = new_package(folder)
        except ValueError as error:
            raise UsageError(f"DIR: {error}") from error
    for file in files:
        print(file)
    return DONE


def _check(arguments: argparse.Namespace) -> int:
    from broker.packages.building.definition import read_source
    from broker.packages.output import size_text
    from schemas.text import counted

    with file_errors(arguments.folder):
        source = read_source(arguments.folder)
    package = source.package
    if arguments.json:
        fields = {"name": package.name, "version": package.version, "files": len(source.files)}
        print(json.dumps({**fields, "size": source.size, "commands": list(package.commands)}))
    else:
        files = counted(len(source.files), "file")
        commands = ", ".join(package.commands)
        print(f"{package.name}@{package.version}: {files}, {size_text(source.size)}: {commands}")
    return DONE


def _build(arguments: argparse.Namespace) -> int:
    from broker.packages.building.definition import read_source
    from broker.packages.building.package_file import build_package
    from broker.packages.output import size_text
    from broker.packages.progress import ProgressBar

    with file_errors(arguments.folder):
        total = read_source(arguments.folder).size
        with ProgressBar(f"building {arguments.folder.name}", total) as bar:
            built = build_package(
                arguments.folder,
                arguments.out,
                signer=load_signer(),
                level=arguments.level,
                progress=bar,
            )
    manifest = built.manifest
    signed_by = [signature.name for signature in built.signed.signatures]
    if arguments.json:
        fields = {"file": str(built.path), "name": manifest.name, "version": manifest.version}
        print(json.dumps({**fields, "manifest": built.digest, "signed_by": signed_by}))
        return DONE
    signed = f"signed as {signed_by[0]}" if signed_by else "not signed"
    sizes = f"{size_text(manifest.size)} in {size_text(manifest.archive.size)}"
    print(f"{built.path}: {manifest.name}@{manifest.version}, {sizes}, {signed}")
    return DONE


def _inspect(arguments: argparse.Namespace) -> int:
    from broker.packages.building.package_file import check_package, read_package
    from broker.packages.output import print_manifest
    from broker.packages.progress import ProgressBar
    from broker.packages.trust import NotTrusted, signers

    with file_errors(arguments.file):
        package = read_package(arguments.file)
        size = package.manifest.archive.size
        with ProgressBar(f"checking {arguments.file.name}", size) as bar:
            check_package(package, progress=bar)
    keyring = load_keyring()
    note = ""
    try:
        signers(package.manifest, package.signed, keyring)
    except NotTrusted as error:
        note = str(error)
    print_manifest(
        package.manifest,
        package.signed,
        files=arguments.files,
        as_json=arguments.json,
        note=f"not trusted: {note}" if note else "trusted" if keyring else "not checked",
    )
    return FAILED if note else DONE


def _publish(arguments: argparse.Namespace) -> int:
    from broker.packages.building.package_file import read_package
    from broker.packages.progress import ProgressBar
    from broker.packages.publishing import publish_package

    point = load_points(arguments.point)[0]
    with file_errors(arguments.file):
        package = read_package(arguments.file)
    manifest = package.manifest
    with package_errors(), ProgressBar("publishing", manifest.archive.size) as bar:
        is_new = publish_package(package, point, progress=bar)
    state = "published" if is_new else "is there already"
    print(f"{manifest.name}@{manifest.version}: {state}: {point.url}")
    return DONE


def _list(arguments: argparse.Namespace) -> int:
    from broker.packages.channels import read_channels
    from broker.packages.output import print_packages
    from broker.packages.publishing import published_versions, read_published

    keyring = load_keyring()
    found: list[PublishedPackage] = []
    channels: dict[tuple[str, str], list[str]] = {}
    seen = set()
    with package_errors():
        for point in load_points(arguments.point):
            for package, versions in published_versions(point).items():
                for version in versions if arguments.name in (None, package) else ():
                    if (package, version) not in seen:
                        seen.add((package, version))
                        found.append(read_published([point], package, version, keyring))
            for channel in read_channels(point, keyring):
                for entry in channel.packages:
                    channels.setdefault((entry.name, entry.version), []).append(channel.name)
    if arguments.name and not found:
        raise CommandError(f"{arguments.name}: no such package is published")
    print_packages(found, channels, as_json=arguments.json)
    return DONE


def _show(arguments: argparse.Namespace) -> int:
    from broker.packages.output import print_manifest
    from broker.packages.resolve import find_package

    keyring = load_keyring()
    with package_errors():
        package = find_package(arguments.wish, load_points(arguments.point), keyring)
    print_manifest(
        package.manifest,
        package.signed,
        files=arguments.files,
        as_json=arguments.json,
        note="trusted" if keyring else "not checked",
    )
    return DONE


def _verify(arguments: argparse.Namespace) -> int:
    from broker.packages.output import size_text
    from broker.packages.progress import ProgressBar
    from broker.packages.publishing import verify_point

    point = load_points(arguments.point)[0]
    status, count = DONE, 0
    with package_errors(), ProgressBar(f"verifying {point.url}", 0) as bar:
        for checked in verify_point(point, load_keyring(), progress=bar):
            count += 1
            status = FAILED if checked.problem else status
            if arguments.json:
                fields = {"package": checked.name, "size": checked.size}
                print(json.dumps({**fields, "problem": checked.problem or None}))
            else:
                text = checked.problem or f"right, {size_text(checked.size)}"
                print(printable(f"{checked.name}: {text}"))
    if not count and not arguments.json:
        print("no packages")
    return status


def _promote(arguments: argparse.Namespace) -> int:
    from broker.packages.channels import promote_package
    from broker.packages.publishing import read_published

    point = load_points(arguments.point)[0]
    keyring = load_keyring()
    options: dict[str, Any] = {"signer": load_signer(), "keyring": keyring}
    with package_errors():
        package_name, version = arguments.version
        package = read_published([point], package_name, version, keyring)
        plan = promote_package(point, package, arguments.channel, **options, dry_run=True)
        if plan.goes_back and not arguments.yes:
            require_terminal("package promote")
            if not confirm(f"{_promotion_text(plan, arguments)}: back to a lower version?"):
                return FAILED
        done = promote_package(point, package, arguments.channel, **options)
    print(_promotion_text(done, arguments))
    return DONE


def _promotion_text(promotion: "Promotion", arguments: argparse.Namespace) -> str:
    package, version = arguments.version
    former = promotion.former
    if former and former.version == version:
        return f"{arguments.channel}: names {package}@{version} already"
    before = f" (before: {former.version})" if former else ""
    return f"{arguments.channel}: {package}@{version}{before}, list number {promotion.new.serial}"


def _remove(arguments: argparse.Namespace) -> int:
    from broker.packages.publishing import remove_package

    point = load_points(arguments.point)[0]
    package, version = arguments.version
    with package_errors():
        remove_package(point, package, version)
    print(f"{package}@{version}: removed")
    return DONE


def _collect(arguments: argparse.Namespace) -> int:
    from broker.packages.output import size_text
    from broker.packages.publishing import MIN_GARBAGE_AGE, collect_garbage

    point = load_points(arguments.point)[0]
    min_age = MIN_GARBAGE_AGE if arguments.older_than is None else arguments.older_than
    with package_errors():
        removed = collect_garbage(point, min_age, dry_run=arguments.dry_run)
    for file in removed:
        state = "would be removed" if arguments.dry_run else "removed"
        print(f"{file.name}: {state}, {size_text(file.size)}")
    if not removed:
        print("nothing to remove")
    return DONE
