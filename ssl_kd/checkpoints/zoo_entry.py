"""One row of the zoo: a published teacher, where its file lives, under which licence, what it scored."""

from __future__ import annotations

from dataclasses import dataclass

META = "https://dl.fbaipublicfiles.com"
APACHE, MIT, NC = "Apache-2.0", "MIT", "CC-BY-NC-4.0"
DINOV3 = "DINOv3 License"  # its own: gated, with conditions


@dataclass(frozen=True)
class Entry:
    """One published teacher. Scores are top-1 in percent, on ImageNet-1k unless the note says otherwise.

    parameters: of the backbone, in millions. size: of the file, in bytes. sha256, md5: all or the first 8 or more
    hexadecimal digits. url: None when there is nothing to download in PyTorch's format; the note then says what to do.
    """

    name: str
    method: str
    network: str
    width: int
    file: str
    url: str | None
    licence: str
    source: str
    parameters: int | None = None
    size: int | None = None
    knn: float | None = None
    linear: float | None = None
    sha256: str | None = None
    md5: str | None = None
    aliases: tuple[str, ...] = ()
    format: str = ""  # that reads it, where its shapes are those of another file
    note: str = ""

    @property
    def non_commercial(self) -> bool:
        """Whether the publisher says, somewhere, that the weights are not for commercial use."""
        return "NC" in self.licence
