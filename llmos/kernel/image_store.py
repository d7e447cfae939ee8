"""The folder of process images: names, one subfolder for each tenant, whole files or none, limits.

Plain blocking code, run in threads. An image is written under a temporary name, flushed, and only then
given its own: whatever happens in between leaves the old image, or none. The kernel holds a lock on each
temporary file for as long as it is being written, so that a kernel that starts can tell leftovers from
another kernel's work.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import urllib.parse
import uuid
from pathlib import Path

import attrs

from llmos.proc.image import DamagedImage, Image, Summary, UnknownVersion, encode_tail, read_tail
from syscalls.errno import Errno, SyscallError
from syscalls.image import MAX_IMAGE_NAME
from syscalls.paths import state_folder

NAME = re.compile(rf"(?!\.)[A-Za-z0-9._-]{{1,{MAX_IMAGE_NAME}}}\Z")
PART = ".part"  # how temporary names end; they begin with a dot, as no image's does


def default_image_folder() -> Path:
    """$XDG_STATE_HOME/llmos/images, else ~/.local/state/llmos/images."""
    return state_folder() / "images"


def check_name(name: str) -> None:
    """Raise SyscallError EINVAL unless this can be an image's name."""
    if not NAME.match(name):
        raise SyscallError(
            Errno.EINVAL,
            f"image name {name[: MAX_IMAGE_NAME + 1]!r}: 1 to {MAX_IMAGE_NAME} of A-Z a-z 0-9 . _ -, and no "
            "dot at the beginning",
        )


@attrs.define(eq=False)
class Draft:
    """An image that is being written. The driver writes to its path, the kernel to its descriptor."""

    path: Path  # temporary
    target: Path
    overwrite: bool
    fd: int | None  # locked; None: closed


@attrs.frozen
class Entry:
    """One file of a tenant's folder."""

    name: str
    num_bytes: int
    saved_at: float  # of the file
    summary: Summary | None  # None: there is a problem
    problem: str = ""


@attrs.define(eq=False)
class ImageStore:
    """Images on the disk.

    Args:
        folder: made when the first image is written; readable by the kernel's user only.
        limit_bytes: that one tenant's images may take; None: as much as the disk has.
    """

    folder: Path = attrs.field(factory=default_image_folder)
    limit_bytes: int | None = None

    def remove_leftovers(self) -> int:
        """Delete what kernels that were killed had begun to write; returns how many files. Raises OSError."""
        num_removed = 0
        for path in self.folder.glob(f"*/.*{PART}"):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
                num_removed += 1
            except BlockingIOError:
                pass  # somebody writes it
            finally:
                os.close(fd)
        return num_removed

    # --- writing -----------------------------------------------------------------------------------------

    def begin(self, tenant: str, name: str, num_bytes: int, *, overwrite: bool) -> Draft:
        """Open a draft of an image that will take about so many bytes.

        Raises:
            SyscallError: EINVAL, EEXIST, ENOSPC.
            OSError: the folder cannot be written.
        """
        check_name(name)
        folder = self._folder_of(tenant)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = folder / name
        self._check_free(target, overwrite)
        self._check_limit(tenant, target, num_bytes)
        disk = os.statvfs(folder)
        if num_bytes > (free := disk.f_bavail * disk.f_frsize):
            raise SyscallError(
                Errno.ENOSPC, f"image {name} takes {num_bytes} bytes; the disk has {free} to give"
            )
        while True:
            path = folder / f".{uuid.uuid4().hex}{PART}"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return Draft(path, target, overwrite, fd)
            os.close(fd)  # a kernel that starts took it for a leftover, in the moment before the lock

    def commit(self, draft: Draft, tenant: str, image: Image) -> int:
        """Give a draft whose frames are written its description and its name; returns its size in bytes.

        Raises:
            SyscallError: EEXIST, ENOSPC: another image came first.
            OSError: it could not be written.
        """
        assert draft.fd is not None
        tail = memoryview(encode_tail(image))
        end = image.num_frame_bytes + len(tail)
        self._check_limit(tenant, draft.target, end)
        os.ftruncate(draft.fd, image.num_frame_bytes)
        while tail:
            tail = tail[os.pwrite(draft.fd, tail, end - len(tail)) :]
        os.fsync(draft.fd)
        if draft.overwrite:
            draft.path.replace(draft.target)
        else:
            try:
                os.link(draft.path, draft.target)
            except FileExistsError:
                self._check_free(draft.target, False)
                raise
            draft.path.unlink()
        folder = os.open(draft.target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return end

    def discard(self, draft: Draft) -> None:
        """Close a draft; if it was not committed nothing is left of it. Idempotent."""
        if draft.fd is not None:
            fd, draft.fd = draft.fd, None
            draft.path.unlink(missing_ok=True)
            os.close(fd)

    # --- reading -----------------------------------------------------------------------------------------

    def read(self, tenant: str, name: str) -> tuple[Image, Path]:
        """Read an image's description; returns it and the file, which has the frames.

        Raises:
            SyscallError: EINVAL, ENOENT, EBADMSG, ENOEXEC.
            OSError: it cannot be read.
        """
        path = self._existing(tenant, name)
        try:
            with path.open("rb") as file:
                return read_tail(file, Image), path
        except FileNotFoundError:
            raise self._not_found(name) from None
        except DamagedImage as error:
            raise SyscallError(Errno.EBADMSG, f"image {name} {error}") from None
        except UnknownVersion as error:
            raise SyscallError(Errno.ENOEXEC, f"image {name} {error}") from None

    def entries(self, tenant: str) -> list[Entry]:
        """A tenant's images by name, damaged ones too. Raises OSError."""
        entries = []
        for path in self._files_of(tenant):
            try:
                with path.open("rb") as file:
                    status = os.fstat(file.fileno())
                    try:
                        summary, problem = read_tail(file, Summary), ""
                    except (DamagedImage, UnknownVersion) as error:
                        summary, problem = None, str(error)
            except FileNotFoundError:
                continue  # removed meanwhile
            entries.append(Entry(path.name, status.st_size, status.st_mtime, summary, problem))
        return entries

    def remove(self, tenant: str, name: str) -> None:
        """Delete an image. Raises SyscallError: EINVAL, ENOENT; OSError."""
        try:
            self._existing(tenant, name).unlink()
        except FileNotFoundError:
            raise self._not_found(name) from None

    # --- inside ------------------------------------------------------------------------------------------

    def _folder_of(self, tenant: str) -> Path:
        return self.folder / (urllib.parse.quote(tenant, safe="").replace(".", "%2E") or "%")

    def _files_of(self, tenant: str) -> list[Path]:
        return sorted(path for path in self._folder_of(tenant).glob("*") if NAME.match(path.name))

    def _existing(self, tenant: str, name: str) -> Path:
        check_name(name)
        return self._folder_of(tenant) / name

    def _not_found(self, name: str) -> SyscallError:
        return SyscallError(Errno.ENOENT, f"no image {name}")

    def _check_free(self, target: Path, overwrite: bool) -> None:
        if not overwrite and target.exists():
            raise SyscallError(Errno.EEXIST, f"there is an image {target.name}; it was not replaced")

    def _check_limit(self, tenant: str, target: Path, num_bytes: int) -> None:
        if self.limit_bytes is None:
            return
        used = 0
        for path in self._files_of(tenant):
            if path != target:
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    used += path.stat().st_size
        if used + num_bytes > self.limit_bytes:
            raise SyscallError(
                Errno.ENOSPC,
                f"image {target.name} takes {num_bytes} bytes; {tenant} uses {used} of {self.limit_bytes} "
                "for its other images",
            )
