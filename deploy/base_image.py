"""Container images for a Dockerfile that serves an engine by TensorRT, by JetPack."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError


@dataclass(frozen=True)
class BaseImage:
    """A container image that holds CUDA, TensorRT with its bindings and trtexec, for one JetPack.

    Attributes:
        jetpack: the releases whose driver it fits.
        image: its name and tag.
        source: the page that lists it.
    """

    jetpack: tuple[str, ...]
    image: str
    source: str


_L4T = "https://catalog.ngc.nvidia.com/orgs/nvidia/containers/l4t-jetpack/tags"
# Their tags are in use in public Dockerfiles; none was pulled or run by us.
BASE_IMAGES = (
    BaseImage(("5.1",), "nvcr.io/nvidia/l4t-jetpack:r35.4.1", _L4T),
    BaseImage(("6.0",), "nvcr.io/nvidia/l4t-jetpack:r36.3.0", _L4T),
    BaseImage(("6.1", "6.2"), "nvcr.io/nvidia/l4t-jetpack:r36.4.0", _L4T),
)


def base_image(jetpack: str | None) -> BaseImage:
    """The image of a JetPack release.

    Raises:
        InputError: the table has none.

    >>> base_image("6.2.1").image
    'nvcr.io/nvidia/l4t-jetpack:r36.4.0'
    """
    release = ".".join((jetpack or "").split(".")[:2])
    for row in BASE_IMAGES:
        if release in row.jetpack:
            return row
    known = ", ".join(release for row in BASE_IMAGES for release in row.jetpack)
    raise InputError(
        f"--emit dockerfile: no base image is known for JetPack {jetpack or 'of this device'}; "
        f"known: {known}; --emit systemd needs none"
    )
