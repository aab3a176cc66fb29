"""Files that are there whole or not at all."""

import contextlib
import io
import os
import secrets
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from ddpm import UserError, printable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def write_whole(path: str | Path, write, durable: bool = False) -> None:
    """Write a file so that nobody ever finds half of it. Raises OSError.

    write(file) writes into memory, where a full disk cannot confuse a library. The bytes go to a name of their own
    beside `path` and are renamed. durable: they are on the disk before they get their name, and the name is too
    before this returns, so that what is deleted afterwards is deleted in the knowledge that this file is there, even
    if the power fails.
    """
    content, path = io.BytesIO(), Path(path)
    write(content)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.getbuffer())
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable and os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_left_overs(folder: Path, days: float = 7) -> None:
    """Remove what processes that were killed while they wrote have left: files and folders named *.tmp, and so many
    days old, that no process may still be writing them."""
    for path in folder.glob("*.tmp"):
        with contextlib.suppress(OSError):  # another process was faster
            if time.time() - path.stat().st_mtime >= 86400 * days:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def reading(path: str | Path, what: str, remedy: str, missing: str = "no such file"):
    """Within it, whatever a damaged file makes a reader raise becomes a UserError: it is not `what` it should be."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: {missing}") from None
    except Exception as error:  # damaged bytes make a reader fail in any way at all
        reason = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        reason = reason.replace(f" {str(path)!r}", "")
        raise UserError(f"{path}: damaged, or not {what} ({reason[:100]}); {remedy}") from None


def is_whole(path: str | Path) -> bool:
    """Are the bytes of this ZIP file (torch.save and np.savez write such) the ones that were written? Raises OSError if it
    cannot be opened, which says nothing about them."""
    with open(path, "rb") as content:
        try:
            with zipfile.ZipFile(content) as file:
                return file.testzip() is None
        except Exception:  # damaged bytes make zipfile raise nearly anything
            return False


def hold(folder: Path) -> BinaryIO:
    """An open file: until it is closed, or this process ends in whatever way, no other gets one of this folder. Where the
    system or the disk knows no locks, all do. Raises UserError, OSError."""
    file = open(folder / ".lock", "wb")  # noqa: SIM115
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        remedy = "stop it, or name another folder with --out"
        raise UserError(f"{folder}: another train.py is writing there; {remedy}") from None
    except OSError:
        pass  # as on some network disks
    return file


def check_writable(folder: str | Path, flag: str = "--out") -> None:
    """Make the folder, or raise UserError; what cannot be written must fail before the work, not after."""
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{flag} {folder}: cannot write there ({error.strerror}); name another folder") from None


def check_file(path: str | Path, flag: str = "--out") -> None:
    """The same for a file that will be written. Raises UserError."""
    if Path(path).is_dir():
        raise UserError(f"{flag} {path}: a folder; name a file in it")
    check_writable(Path(path).parent, flag)


@contextlib.contextmanager
def all_or_nothing(folder: Path, flag: str = "--out"):
    """Yields a temporary folder. What lies in it at the end moves to the same places in `folder`; of a set that could
    not be made whole nothing stays. Raises UserError if `folder`, which `flag` named, cannot be written to."""
    was_there = folder.exists()
    check_writable(folder, flag)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".", suffix=".tmp") as place:
            yield Path(place)
            files = [path for path in Path(place).rglob("*") if path.is_file()]
            for file in sorted(files, key=lambda path: -len(path.parts)):  # a list at the top after what it lists
                target = folder / file.relative_to(place)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
    except BaseException:
        if not was_there:
            with contextlib.suppress(OSError):  # another program has begun to write there
                folder.rmdir()
        raise


def refuse_overwriting(folder: str | None, written: Iterable[str], read: Iterable[str | Path | None]) -> None:
    """Raises UserError if a file that is read lies in the folder under a name that will be written there."""
    here = os.path.realpath(folder or "")
    there = {os.path.basename(path) for path in read if path and os.path.realpath(os.path.dirname(path)) == here}
    if folder and (lost := sorted(there.intersection(written))):
        raise UserError(f"--out {folder}: {lost[0]} there is read, and would be overwritten; name another folder")


def make_folder(named: str, stem: str) -> str:
    """The folder to write to: the one that --out names, or a new one, stem-TIME, which is nobody else's: of two programs
    that start in one second the second one waits for the next. Raises UserError if it cannot be written to."""
    while not named:
        folder = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        try:
            os.makedirs(folder)
            named = folder
        except FileExistsError:
            time.sleep(0.1)
        except OSError:
            named = folder  # check_writable says why
    check_writable(named)
    return named


def make_samples_folder(named: str) -> str:
    """`make_folder` for what sample.py draws or restores, with a word where there are images already."""
    folder = make_folder(named, "results/samples")
    if (Path(folder) / "grid.png").exists():
        print(printable(f"note: {folder} holds images already; those of other names stay among the new ones"))
    return folder
