"""Private copies of packages, in which their commands run.

A copy is unpacked from the archive, and each file is verified as it is written. It belongs to the
user of the command, who may write to it: the cache stays as it is. Before another command, each of
its files is verified again; what a command has changed is unpacked anew. A user's copy is never
used by another user, root included.
"""

import os
from contextlib import suppress
from pathlib import Path

from agents.content.cache import VerifiedManifest, open_archive
from agents.content.contents import remove_tree
from broker.content.archive import WrongContent, check_archive, unpack
from broker.content.folder import verify_folder

_SHOWN = 16


class PackageCopies:
    """The copies of one package for one job."""

    def __init__(self, package: VerifiedManifest, archive: Path, folder: Path) -> None:
        """Create the object, and no file.

        Args:
            package: the package.
            archive: its archive.
            folder: the job's own folder.
        """
        self.package = package
        self._archive = archive
        self._folder = folder

    def check(self) -> None:
        """Check the archive's sum.

        Raises:
            WrongContent: it is not the manifest's.
            OSError: it cannot be read.
        """
        with os.fdopen(open_archive(self._archive), "rb") as archive:
            check_archive(self.package.manifest, archive)

    def open(self, user: int, group: int) -> Path:
        """Return the copy of a user, in which each file is the manifest's.

        Raises:
            WrongContent: the archive is not the manifest's.
            OSError: the disk does not take the copy.
        """
        path = self._folder / f"{self.package.digest[:_SHOWN]}-{user}"
        if path.exists():
            with suppress(WrongContent):
                verify_folder(self.package.manifest, path)
                return path
            remove_tree(path)
        self._unpack(path)
        if user != os.geteuid():
            _give(path, user, group)
        return path

    def _unpack(self, path: Path) -> None:
        self._folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._folder.chmod(0o711)
        path.mkdir(mode=0o700)
        try:
            with os.fdopen(open_archive(self._archive), "rb") as archive:
                check_archive(self.package.manifest, archive)
                archive.seek(0)
                unpack(self.package.manifest, archive, path)
        except BaseException:
            remove_tree(path)
            raise


def _give(path: Path, user: int, group: int) -> None:
    """Give a copy to a user; the folder around it comes last, so that nothing changes meanwhile."""
    for folder, folders, files in os.walk(path, topdown=False):
        for name in (*files, *folders):
            os.chown(Path(folder, name), user, group, follow_symlinks=False)
    os.chown(path, user, group)
