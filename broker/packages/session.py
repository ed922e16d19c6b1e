"""What the commands for packages share: points, keys, and errors in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydantic import ValidationError

from broker.cli.command_line import CommandError, UsageError
from broker.content.archive import WrongContent
from broker.packages.building.definition import WrongPackage
from broker.packages.channels import WrongChannel
from broker.packages.points.point import Point, PointError, open_point
from broker.packages.publishing import NotPublished
from broker.packages.resolve import CannotResolve
from broker.packages.trust import NotTrusted
from broker.settings import DispatcherSettings, load
from broker.signing.resign_policy import keyring_of
from broker.signing.signer import Signer
from schemas import explain

if TYPE_CHECKING:
    from broker.signing.trusted_keys import Keyring


@contextmanager
def package_errors() -> Iterator[None]:
    """Map errors of packages to one-line messages.

    Raises:
        UsageError: what was given is wrong.
        CommandError: a point or its content is not as it should be.
    """
    try:
        yield
    except (WrongPackage, CannotResolve) as error:
        raise UsageError(str(error)) from error
    except ValidationError as error:
        raise UsageError(explain(error)) from error
    except (WrongContent, WrongChannel, NotPublished, NotTrusted, PointError) as error:
        raise CommandError(str(error)) from error


@contextmanager
def file_errors(path: object) -> Iterator[None]:
    """Map errors of a file or folder that was given; see `package_errors`."""
    with package_errors():
        try:
            yield
        except OSError as error:
            raise UsageError(f"{error.filename or path}: {error.strerror or error}") from error
        except WrongContent as error:
            raise UsageError(str(error)) from error


def load_points(address: str | None = None) -> list[Point]:
    """Return the distribution point of an address, or those of the settings.

    Raises:
        UsageError: an address is wrong, or none is given.
    """
    addresses = [address] if address else load(DispatcherSettings).points
    if not addresses:
        raise UsageError("POINT: give one, or set PCM_POINTS")
    try:
        return [open_point(one) for one in addresses]
    except PointError as error:
        option = "POINT" if address else "PCM_POINTS"
        raise UsageError(f"{option}: {error}") from error


def load_keyring() -> "Keyring | None":
    """Return the keys of PCM_TRUSTED_KEYS; None where none are set."""
    return keyring_of(load(DispatcherSettings).trusted_keys)


def load_signer() -> Signer | None:
    """Return the signer of PCM_SIGNING_KEY; None where no key is set."""
    return Signer.load(load(DispatcherSettings).signing_key)
