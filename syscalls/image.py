"""Image family: checkpoint, restore, images, remove_image.

An image is a whole process in a file of the kernel's: its tokens, how it samples, and its memory. It is named
by whoever made it, and belongs to the tenant of the process.
"""

from __future__ import annotations

import msgspec

MAX_IMAGE_NAME = 100  # characters


class Checkpoint(msgspec.Struct, frozen=True, tag="checkpoint"):
    """Save a process, in whatever state it is, as an image. Blocks until the image is on the disk.

    The image holds the process as it is at one moment; a running one runs on meanwhile. When this fails,
    there is no image of that name, or with `overwrite` the old one still. The call goes on when the session
    ends.

    Errors: ESRCH, EPERM, EBUSY (it has exited), EINVAL (a name has 1 to 100 of A-Z a-z 0-9 . _ -, and does
    not begin with a dot), EEXIST (there is one of that name), ENOSPC (no room, or the tenant's share of it is
    used up), EIO (the memory could not be written; the message says why), ESHUTDOWN.
    """

    pid: int
    name: str
    overwrite: bool = False  # replace an image of that name


class Checkpointed(msgspec.Struct, frozen=True, tag="checkpointed"):
    """Reply to `Checkpoint`."""

    name: str
    num_bytes: int  # of the file
    num_tokens: int  # of the process
    num_saved_tokens: int  # of those, with keys and values in the image; the rest is computed again
    seconds: float


class Restore(msgspec.Struct, frozen=True, tag="restore"):
    """Create a process from an image, which stays. Replies `Spawned` when the process is there.

    Its output so far can be read from offset 0. It goes on where it was, and emits what the one that was
    saved would have; an interactive one whose turn was over waits for input. A stopped one runs. Memory that
    turns out to be damaged in the file, or gone with the file, is computed again.

    Errors: EINVAL (name or label), ENOENT (no such image), EPERM (another tenant's, and the caller is no
    administrator), ENOEXEC (made for another model, number format, context, kernels or version: the message
    names both; or its grammar cannot be followed, as at spawn), EBADMSG (damaged), ENOMEM, EAGAIN, EDQUOT (a
    limit of the tenant), ENODEV, ESHUTDOWN.
    """

    name: str
    detached: bool = False  # outlives the session that restored it
    auto_reap: bool = False  # reaped when its last read was delivered, no wait needed
    label: str | None = None  # None: the one that it had
    tenant: str | None = None  # whose image; None: the caller's


class Images(msgspec.Struct, frozen=True, tag="images"):
    """List a tenant's images. Errors: EPERM (another tenant's, and the caller is no administrator)."""

    tenant: str | None = None  # None: the caller's


class ImageInfo(msgspec.Struct, frozen=True):
    """One image."""

    name: str
    num_bytes: int
    saved_at: float  # seconds since the epoch
    num_tokens: int = 0
    num_saved_tokens: int = 0  # of those, with keys and values in the image
    num_output_tokens: int = 0
    interactive: bool = False
    model: str = ""
    label: str = ""
    problem: str = ""  # why it cannot be restored here; empty: it can


class ImageList(msgspec.Struct, frozen=True, tag="image_list"):
    """Reply to `Images`, ordered by name."""

    images: tuple[ImageInfo, ...]


class RemoveImage(msgspec.Struct, frozen=True, tag="remove_image"):
    """Delete an image. Processes that were restored from it live on.

    Errors: EINVAL, ENOENT (no such image), EPERM (another tenant's, and the caller is no administrator).
    """

    name: str
    tenant: str | None = None  # whose; None: the caller's
