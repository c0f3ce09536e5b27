"""What must hold of a file before PyTorch reads it: it is whole, and needs no more memory than its size."""

import zipfile
import zlib
from pathlib import Path

from esformer.checkpoint.content import CheckpointError

CHUNK = 1 << 20


def check_archive(path: Path) -> None:
    """Verify the checksum of every entry of a zip file that `torch.save` wrote, which `torch.load` does not.

    PyTorch compresses nothing, so compressed or shared entries, which could become any amount of memory, are refused.
    Files that are no zip files (of PyTorch before 1.6) have no checksums, and pass.

    Raises:
        CheckpointError: an entry is not what was written, or is larger than the file.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # as PyTorch tells them apart
            return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            for entry in entries:
                if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                    raise CheckpointError(f"{path} is damaged or forged: PyTorch compresses nothing")
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise CheckpointError(f"{path} is damaged or forged: it claims to hold more than its size")
            if len({entry.filename for entry in entries}) != len(entries):
                raise CheckpointError(f"{path} is damaged or forged: two of its entries have one name")
            for entry in entries:
                with archive.open(entry) as stored:
                    while stored.read(CHUNK):  # which raises BadZipFile at the end, if its checksum is another
                        pass
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        part = str(error).partition("for file ")[2].strip("'")
        where = f" ({part} is not as it was written)" if part and part.isprintable() and len(part) < 100 else ""
        raise CheckpointError(f"{path} is damaged, or is no file of weights{where}") from None
