"""Channels: signed lists of which version of a package a name such as `production` means."""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from broker.packages.points.point import CannotList, NotThere, Point, PointError, read_file
from broker.packages.trust import NotTrusted, signers
from broker.settings import state_folder
from schemas import ChannelList, InvalidMessage, RequiredPackage, SignedText
from schemas.errors import PcmError
from schemas.packages.channel import CHANNEL_LIMIT
from schemas.packages.paths import channel_path
from schemas.versions import version_key

if TYPE_CHECKING:
    from broker.packages.publishing import PublishedPackage
    from broker.signing.signer import Signer
    from broker.signing.trusted_keys import Keyring

_SUFFIX = ".list"


class WrongChannel(PcmError):
    """A channel's list cannot be used: it is missing, damaged, not trusted, or an old one."""


class Promotion(NamedTuple):
    """What a promotion changed: the former version, if there was one, and the new list."""

    former: RequiredPackage | None
    new: ChannelList

    @property
    def goes_back(self) -> bool:
        """Whether the channel named a higher version before."""
        now = self.former and self.new.find(self.former.name)
        return bool(
            self.former and now and version_key(now.version) < version_key(self.former.version)
        )


def read_channel(
    points: Sequence[Point], channel: str, keyring: "Keyring | None" = None
) -> ChannelList:
    """Return the list of a channel from the first point that has it.

    The greatest serial number that this user has seen of the channel on these points is remembered
    in ~/.local/state/pcm/channels.json.

    Raises:
        WrongChannel: no point has it, it is not signed by a trusted key that may publish what it
            names, or it is older than one that was seen.
    """
    problems = []
    for point in points:
        try:
            found = _read(point, channel, keyring)
        except NotThere:
            problems.append(f"{point.url} does not have it")
        except (PointError, InvalidMessage, NotTrusted) as error:
            problems.append(str(error))
        else:
            _check_serial(points, found)
            return found
    raise WrongChannel(f"channel {channel}: {'; '.join(problems) or 'there is no point'}")


def _read(point: Point, channel: str, keyring: "Keyring | None") -> ChannelList:
    place = f"{point.url}: {channel_path(channel)}"
    try:
        signed = SignedText.read(read_file(point, channel_path(channel), CHANNEL_LIMIT))
        found = ChannelList.read(signed.text)
    except InvalidMessage as error:
        raise InvalidMessage(f"{place}: is not a channel's list: {error}") from None
    if found.name != channel:
        raise InvalidMessage(f"{place}: is the list of {found.name}")
    try:
        signers(found, signed, keyring)
    except NotTrusted as error:
        raise NotTrusted(f"{place}: {error}") from None
    return found


def promote_package(
    point: Point,
    package: "PublishedPackage",
    channel: str,
    *,
    signer: "Signer | None" = None,
    keyring: "Keyring | None" = None,
    dry_run: bool = False,
) -> Promotion:
    """Make a channel name a version of a package; return what that changes.

    Args:
        point: the point with the channel's list.
        package: the version, which the point has.
        channel: the channel's name; a new one is made.
        signer: signs the list.
        keyring: checks the present list, if keys are trusted.
        dry_run: change nothing.

    Raises:
        WrongChannel: the present list cannot be used, or was changed by another at the same time.
        PointError: the point cannot be used.
    """
    chosen = RequiredPackage(
        name=package.manifest.name, version=package.manifest.version, manifest=package.digest
    )
    try:
        former = _read(point, channel, keyring)
        _check_serial([point], former)
    except NotThere:
        former = None
    except (InvalidMessage, NotTrusted) as error:
        raise WrongChannel(str(error)) from error
    packages = {one.name: one for one in (former.packages if former else ())}
    promotion = Promotion(
        packages.get(chosen.name),
        ChannelList(
            name=channel,
            serial=max(former.serial if former else 0, _seen([point], channel)) + 1,
            packages=tuple(sorted({**packages, chosen.name: chosen}.values(), key=str)),
        ),
    )
    if not dry_run and promotion.former != chosen:
        _write(point, promotion.new, signer)
    return promotion


def _write(point: Point, new: ChannelList, signer: "Signer | None") -> None:
    text = new.body()
    signatures = (signer.sign(new, text),) if signer else ()
    body = SignedText(text=text.decode(), signatures=signatures).body()
    point.write(channel_path(new.name), BytesIO(body), len(body))
    if read_file(point, channel_path(new.name), CHANNEL_LIMIT) != body:
        raise WrongChannel(
            f"channel {new.name}: another administrator changed it at the same time; try again"
        )
    _check_serial([point], new)


def read_channels(point: Point, keyring: "Keyring | None" = None) -> list[ChannelList]:
    """Return the lists of all channels of a point; a web server cannot name them: none.

    Raises:
        PointError: the point cannot be used.
        WrongChannel: a list cannot be used.
    """
    with suppress(CannotList):
        files = sorted(file.path for file in point.walk("channels"))
        names = [path.partition("/")[2].removesuffix(_SUFFIX) for path in files]
        try:
            return [_read(point, name, keyring) for name in names]
        except (InvalidMessage, NotTrusted) as error:
            raise WrongChannel(str(error)) from error
    return []


def channels_of(point: Point, name: str, version: str) -> list[str]:
    """Return the channels of a point that name a version of a package."""
    return [
        channel.name
        for channel in read_channels(point)
        if (found := channel.find(name)) and found.version == version
    ]


def _check_serial(points: Sequence[Point], found: ChannelList) -> None:
    """Remember the serial number of a list.

    Raises:
        WrongChannel: it is less than the greatest that was seen.
    """
    key = _key(points, found.name)
    with _locked_serials() as serials:
        seen = serials.get(key, 0)
        if found.serial < seen:
            raise WrongChannel(
                f"channel {found.name}: its list number {found.serial} is older than number {seen},"
                f" which was seen at {points[0].url}; is the point an old copy?"
            )
        serials[key] = found.serial


def _seen(points: Sequence[Point], channel: str) -> int:
    with _locked_serials() as serials:
        return serials.get(_key(points, channel), 0)


def _key(points: Sequence[Point], channel: str) -> str:
    return " ".join([*(point.url for point in points), channel])


@contextmanager
def _locked_serials() -> Iterator[dict[str, int]]:
    """Read the serial numbers that were seen, and write them if they change."""
    folder = state_folder()
    path = folder / "channels.json"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (folder / "channels.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = _read_serials(path)
            after = dict(before)
            yield after
            if after != before:
                temporary = path.with_name(f".{path.name}.{os.getpid()}")
                temporary.write_text(json.dumps(after, indent=1), encoding="utf-8")
                temporary.replace(path)
    except OSError as error:
        raise WrongChannel(f"{path}: cannot be used: {error.strerror}") from error


def _read_serials(path: Path) -> dict[str, int]:
    try:
        serials = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): int(serial) for name, serial in serials.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError):
        raise WrongChannel(f"{path}: is damaged; if you remove it, it is made again") from None
