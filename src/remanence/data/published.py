"""Corpora known by name: where they are published, how the published work prepared them, and what must come out.

Hashes. Those of the WikiText-2 texts and of WikiText-103's validation and test texts were computed from the files.
Those of the archives, and of enwik8 and text8, are the ones that several independent public projects state for the
publishers' files. PG-19's publisher states an MD5 for each of its files, and they are checked against that. Sizes of
the result (tokens, vocabulary) come from the papers and are checked at the end of every preparation.
"""

from __future__ import annotations

import binascii
import platform
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from remanence.data.fetch import Remote, digest_of, fetch, fetch_json
from remanence.data.sources import Source, standard_library
from remanence.data.spool import DocumentRule
from remanence.errors import InputError

Where = Literal["train", "validation", "test", "all"]
Sourced = list[tuple[Where, Source]]
"""Sources with the split each belongs to; "all" is cut into splits."""

_SPLITS: tuple[Where, ...] = ("train", "validation", "test")
_WHOLE: Where = "all"
_SUFFIXES = ("", ".xz", ".gz", ".zst", ".bz2")
_CONNECTIONS = 16
_BOOK = re.compile(r"(train|validation|test)/[A-Za-z0-9_-]{1,100}\.txt")
MOST_PAGES = 1000
"""Of a list of files, a thousand names each; a server that never ends is left."""


@dataclass(frozen=True)
class Text:
    """One text file of a published corpus."""

    where: Where
    name: str
    folder: str = ""
    """Its folder inside the archive."""
    digest: str | None = None

    @property
    def member(self) -> str:
        return f"{self.folder}/{self.name}" if self.folder else self.name


@dataclass(frozen=True)
class Published:
    """A corpus with a name. `sources` finds or fetches its files."""

    name: str
    title: str
    licence: str
    homepage: str
    tokenizer: str
    vocab_size: int | None = None
    """Asked of a tokenizer that is trained."""
    documents: DocumentRule = "none"
    archive: Remote | None = None
    texts: tuple[Text, ...] = ()
    sizes: Mapping[str, int] | None = None
    """Bytes of each split where one text is cut into them."""
    fixed_splits: bool = True
    words_count_lines: bool = False
    """True where the published word count has one `<eos>` for every line."""
    expected: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """What a split must count in the end: {"words" or "bytes" or "documents": {split: count}}."""
    expected_vocabulary: int | None = None
    """With the published tokenizer."""

    def sources(self, folder: Path | None, cache: Path, mirror: str | None, advance: Callable[[int], None]) -> Sourced:
        """The files, from a folder where they already lie, or fetched. Raises InputError when they cannot be had."""
        if folder is not None:
            return self._in(folder)
        assert self.archive is not None
        archive = self.archive
        if mirror is not None:
            archive = replace(archive, urls=(f"{mirror.rstrip('/')}/{archive.name}", *archive.urls))
        return self._from_archive(fetch(archive, cache, advance))

    def _in(self, folder: Path) -> Sourced:
        if not folder.is_dir():
            raise InputError(f"There is no folder {folder}; name with --from the one that holds {self._wanted()}.")
        if all(self._find(folder, text) for text in self.texts):
            found: Sourced = []
            for text in self.texts:
                path = self._find(folder, text)
                assert path is not None
                found.append((text.where, Source(path.name, path, given=True, digest=text.digest)))
            return found
        if self.archive is not None and (folder / self.archive.name).is_file():
            path = folder / self.archive.name
            if (got := digest_of(path, self.archive.digest)) != self.archive.digest:
                raise InputError(
                    f"{path} has the hash {got} and the published file has {self.archive.digest}; it is another "
                    "version or was altered, so fetch it anew."
                )
            return self._from_archive(path)
        raise InputError(f"The folder {folder} does not hold {self._wanted()}; name the one that does.")

    def _from_archive(self, path: Path) -> Sourced:
        found: Sourced = []
        for text in self.texts:
            found.append((text.where, Source(text.name, path, member=text.member, given=True, digest=text.digest)))
        return found

    def _find(self, folder: Path, text: Text) -> Path | None:
        for path in (folder / text.name, folder / text.member):
            for suffix in _SUFFIXES:
                if (candidate := path.with_name(path.name + suffix)).is_file():
                    return candidate
        return None

    def _wanted(self) -> str:
        names = ", ".join(text.name for text in self.texts)
        return names if self.archive is None else f"{names} or {self.archive.name}"


@dataclass(frozen=True)
class StandardLibrary(Published):
    """The source of the Python that runs this, which lies on the machine already."""

    def sources(self, folder: Path | None, cache: Path, mirror: str | None, advance: Callable[[int], None]) -> Sourced:
        if folder is not None or mirror is not None:
            raise InputError("python-stdlib is read from the running Python; leave --from and --mirror out.")
        return [(_WHOLE, source) for source in standard_library()]


@dataclass(frozen=True)
class Books(Published):
    """PG-19: a public bucket with one file a book, listed with sizes and MD5 by its publisher."""

    host: str = "https://storage.googleapis.com"
    bucket: str = "deepmind-gutenberg"

    def sources(self, folder: Path | None, cache: Path, mirror: str | None, advance: Callable[[int], None]) -> Sourced:
        if folder is None:
            return self._fetched(cache, (mirror or self.host).rstrip("/"), advance)
        found: Sourced = []
        for where in _SPLITS:
            books = sorted(path for path in (folder / where).glob("*.txt*") if path.is_file())
            if not books:
                raise InputError(
                    f"The folder {folder} has no books in {where}/*.txt; name with --from the one that holds train, "
                    "validation and test."
                )
            for path in books:
                found.append((where, Source(f"{where}/{path.name}", path)))
        return found

    def _fetched(self, cache: Path, host: str, advance: Callable[[int], None]) -> Sourced:
        found: Sourced = []
        with ThreadPoolExecutor(_CONNECTIONS, "fetch") as pool:
            try:
                for where in _SPLITS:
                    remotes = sorted(self._listed(host, where), key=lambda remote: remote.name)
                    paths = pool.map(lambda remote: fetch(remote, cache, advance), remotes)
                    for remote, path in zip(remotes, paths, strict=True):
                        found.append((where, Source(f"{where}/{path.name}", path, digest=remote.digest)))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return found

    def _listed(self, host: str, where: str) -> Iterator[Remote]:
        page = ""
        for _ in range(MOST_PAGES):
            query = {"prefix": f"{where}/", "fields": "nextPageToken,items(name,size,md5Hash)", "maxResults": "1000"}
            query |= {"pageToken": page} if page else {}
            listing = fetch_json(f"{host}/storage/v1/b/{self.bucket}/o?{urllib.parse.urlencode(query)}")
            try:
                yield from self._books(listing, host, where)
                page = str(listing.get("nextPageToken", "")).encode("ascii").decode()
            except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
                raise InputError(
                    f"The list of files at {host} is damaged ({type(error).__name__}: {error}); try again later, or "
                    "fetch the files by other means and name their folder with --from."
                ) from None
            if not page:
                return

    def _books(self, listing: dict[str, Any], host: str, where: str) -> Iterator[Remote]:
        """The books on one page of the list."""
        for item in listing.get("items", []):
            name = item["name"]
            # The name becomes a path below the cache, so nothing but a plain book is accepted.
            if _BOOK.fullmatch(name) and name.startswith(f"{where}/"):
                url = f"{host}/{self.bucket}/{urllib.parse.quote(name)}"
                digest = f"md5:{_hexadecimal(item['md5Hash'])}"
                yield Remote(f"{self.name}/{name}", (url,), digest, int(item["size"]))


def _hexadecimal(base64: str) -> str:
    return binascii.a2b_base64(base64).hex()


def _wikitext(
    name: str, title: str, archive_digest: str, digests: tuple[str | None, str, str], train: int, words: int
) -> Published:
    publisher = "https://wikitext.smerity.com"
    mirror = "https://s3.amazonaws.com/research.metamind.io/wikitext"
    files = ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens")
    return Published(
        name=name,
        title=title,
        licence="CC BY-SA 3.0",
        homepage=f"{publisher}/",
        tokenizer="word",
        archive=Remote(f"{name}-v1.zip", (f"{publisher}/{name}-v1.zip", f"{mirror}/{name}-v1.zip"), archive_digest),
        texts=tuple(
            Text(where, file, name, digest) for where, file, digest in zip(_SPLITS, files, digests, strict=True)
        ),
        words_count_lines=True,
        expected={"words": {"train": train, "validation": 217_646, "test": 245_569}},
        expected_vocabulary=words,
    )


def _mahoney(name: str, title: str, digest: str, size: int, text_digest: str, tokenizer: str) -> Published:
    splits = {"train": 90_000_000, "validation": 5_000_000, "test": 5_000_000}
    return Published(
        name=name,
        title=title,
        licence="GFDL (text of Wikipedia, 2006; CC BY-SA since 2009)",
        homepage="http://mattmahoney.net/dc/textdata.html",
        tokenizer=tokenizer,
        archive=Remote(
            f"{name}.zip",
            (f"http://mattmahoney.net/dc/{name}.zip", f"https://data.deepai.org/{name}.zip"),
            digest,
            size,
        ),
        texts=(Text("all", name, digest=text_digest),),
        sizes=splits,
        expected={"bytes": splits},
        expected_vocabulary=27 if tokenizer == "char" else None,
    )


LEGACY_ENWIK8_SYMBOLS = 204

PUBLISHED: Mapping[str, Published] = {
    corpus.name: corpus
    for corpus in (
        _wikitext(
            "wikitext-2",
            "WikiText-2: 720 good and featured articles of English Wikipedia as word tokens",
            "sha256:92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c",
            (
                "sha256:9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
                "sha256:f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
                "sha256:d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
            ),
            2_088_628,
            33_278,
        ),
        _wikitext(
            "wikitext-103",
            "WikiText-103: 28,595 good and featured articles of English Wikipedia as word tokens",
            "sha256:242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590",
            (
                None,
                "sha256:9aee9f52d6e77de6c7751fc5e7c44287db3ec0eaf15477098acc6b93c1c4250b",
                "sha256:56db52eb157b1ab5c89646eef70510c1eca6e12a3bfdb99f0d6b05b4eacb75b9",
            ),
            103_227_021,
            267_735,
        ),
        _mahoney(
            "enwik8",
            "enwik8: the first 100,000,000 bytes of an English Wikipedia dump of 2006",
            "sha256:547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
            36_445_475,
            "sha256:2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
            "byte",
        ),
        _mahoney(
            "text8",
            "text8: 100,000,000 characters of cleaned English Wikipedia text of 2006, a to z and blank",
            "sha256:a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
            31_344_016,
            "md5:3bea1919949baf155f99411df5fada7e",
            "char",
        ),
        Books(
            name="pg19",
            title="PG-19: books from Project Gutenberg published before 1919, one document a book",
            licence="Apache 2.0 (the collection); the books are in the public domain in the United States",
            homepage="https://github.com/google-deepmind/pg19",
            tokenizer="bpe",
            vocab_size=32_000,
            documents="file",
            expected={"documents": {"train": 28_602, "validation": 50, "test": 100}},
        ),
        StandardLibrary(
            name="python-stdlib",
            title=f"The standard library of Python {platform.python_version()}, one document a module, without tests",
            licence="PSF-2.0",
            homepage="https://docs.python.org/3/license.html",
            tokenizer="byte",
            documents="file",
            fixed_splits=False,
        ),
    )
}
