"""Files from the network: resumed when cut, from a mirror when the publisher fails, checked by hash before use."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remanence.errors import InputError
from remanence.files import parse_json

ATTEMPTS = 5
"""Times in a row that an address may fail without sending a byte."""
PAUSE = 1.0
"""Seconds before the second attempt; doubled for each further one."""
TIMEOUT = 30.0
LARGEST_LIST = 1 << 24
"""Bytes of a list of files."""
LARGEST = 1 << 33
"""Bytes that are taken of a file whose size is not known beforehand."""
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Remote:
    """A file on the network, the same bytes at every address."""

    name: str
    """Where it goes below the cache folder."""
    urls: tuple[str, ...]
    """The publisher first, then mirrors."""
    digest: str
    """"sha256:..." or, where the publisher states only that, "md5:..."."""
    size: int | None = None


def cache_folder() -> Path:
    """Where fetched files are kept: $REMANENCE_CACHE, or `remanence` in the user's cache folder."""
    if chosen := os.environ.get("REMANENCE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "remanence"


def digest_of(path: Path, digest: str) -> str:
    """The digest of a file, by the algorithm of the one given."""
    algorithm = digest.partition(":")[0]
    with open(path, "rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def fetch(remote: Remote, cache: Path, advance: Callable[[int], None] = lambda size: None) -> Path:
    """The file, fetched unless the cache has it already, with the digest it must have.

    What arrived before a cut or an interrupt stays beside it as `NAME.part` and is not fetched again. `advance` hears
    of bytes, also of those that were there. Raises InputError when no address gives the file, or none the right one.
    """
    path = cache / remote.name
    if path.exists():
        if digest_of(path, remote.digest) == remote.digest:
            advance(path.stat().st_size)
            return path
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    reasons = []
    for url in remote.urls:
        host = urllib.parse.urlsplit(url).netloc
        try:
            _download(url, part, remote.size, advance)
        except _Failed as error:
            reasons.append(f"{host}: {error}")
            continue
        got = digest_of(part, remote.digest)
        if got == remote.digest:
            os.replace(part, path)
            return path
        part.unlink()
        reasons.append(f"{host}: the file has the hash {got} instead of {remote.digest}")
    raise InputError(
        f"{remote.name} could not be fetched ({'; '.join(reasons)}); try again later, or fetch it by other means and "
        "name its folder with --from."
    )


def fetch_json(url: str) -> Any:
    """A JSON document. Raises InputError when it cannot be had."""
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            with _open(url, 0) as response:
                text = response.read(LARGEST_LIST + 1)
                if len(text) > LARGEST_LIST:
                    raise ValueError(f"it has more than {LARGEST_LIST:,} bytes")
                return parse_json(text.decode("utf-8"))
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = _reason(error)
    host = urllib.parse.urlsplit(url).netloc
    raise InputError(
        f"The list of files at {host} could not be fetched ({reason}); try again later, or fetch the files by other "
        "means and name their folder with --from."
    )


class _Failed(Exception):
    """An address did not give the whole file."""


def _download(url: str, part: Path, size: int | None, advance: Callable[[int], None]) -> None:
    """Fill `part` up to the whole file, going on where it ends."""
    failures = 0
    reported = 0

    def report(have: int) -> None:
        nonlocal reported
        if have > reported:
            advance(have - reported)
            reported = have

    while True:
        have = part.stat().st_size if part.exists() else 0
        report(have)
        if size is not None and have >= size:
            return
        before = have
        try:
            if _continue(url, part, have, size, report):
                return
            reason = "the connection was cut"
        except urllib.error.HTTPError as error:
            if error.code == 416:
                # There is nothing beyond what we have; the hash tells whether that is the file.
                return
            if error.code < 500 and error.code != 429:
                raise _Failed(_reason(error)) from None
            reason = _reason(error)
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "filename", None) is not None:
                raise
            reason = _reason(error)
        have = part.stat().st_size if part.exists() else 0
        failures = 0 if have > before else failures + 1
        if failures >= ATTEMPTS:
            raise _Failed(reason)
        if failures:
            time.sleep(PAUSE * 2 ** (failures - 1))


def _continue(url: str, part: Path, have: int, size: int | None, report: Callable[[int], None]) -> bool:
    """Ask for the rest of a file and write what comes; True when it came to its end."""
    with _open(url, have) as response:
        if have and not (response.status == 206 and _range_start(response) == have):
            have = 0
        length = response.headers.get("Content-Length")
        end = have + int(length) if length is not None and length.isdigit() else None
        with open(part, "r+b" if have else "wb") as file:
            file.seek(have)
            file.truncate()
            while block := response.read(_BLOCK):
                # A server that never ends must not fill the disk.
                if have + len(block) > (LARGEST if size is None else size):
                    part.unlink()
                    raise _Failed(f"it sends more than the {LARGEST if size is None else size:,} bytes of the file")
                _write(file, block, part)
                have += len(block)
                report(have)
    return end is None or have >= end


def _write(file: Any, block: bytes, part: Path) -> None:
    try:
        file.write(block)
    except OSError as error:
        # Named, so that it is not taken for a failure of the network.
        raise OSError(error.errno, error.strerror, str(part)) from None


def _open(url: str, have: int) -> http.client.HTTPResponse:
    headers = {"User-Agent": "remanence", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)


def _range_start(response: http.client.HTTPResponse) -> int | None:
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    start = rest.partition("-")[0]
    return int(start) if unit == "bytes" and start.isdigit() else None


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP status {error.code}"
    reason = getattr(error, "reason", None) or error
    return str(reason) or type(reason).__name__
