"""Fetching: resumed when cut, from a mirror when the publisher fails, never accepted with another hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from remanence.data.fetch import ATTEMPTS, Remote, cache_folder, fetch, fetch_json
from remanence.errors import InputError

from .conftest import Server

BODY = bytes(range(256)) * 4000


def remote(server: Server, *paths: str, digest: str | None = None, size: int | None = None) -> Remote:
    digest = digest or "sha256:" + hashlib.sha256(BODY).hexdigest()
    return Remote("text.zip", tuple(server.url + path for path in paths or ("/text.zip",)), digest, size)


def test_a_file_is_fetched_and_kept(server: Server, tmp_path: Path) -> None:
    server.files["/text.zip"] = BODY
    path = fetch(remote(server), tmp_path)
    assert path.read_bytes() == BODY
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_file_that_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_bytes(BODY)
    assert fetch(remote(server), tmp_path).read_bytes() == BODY
    assert not server.asked


def test_a_file_that_was_altered_is_fetched_again(server: Server, tmp_path: Path) -> None:
    server.files["/text.zip"] = BODY
    (tmp_path / "text.zip").write_bytes(b"altered")
    assert fetch(remote(server), tmp_path).read_bytes() == BODY


def test_a_cut_connection_is_resumed_where_it_was_cut(server: Server, tmp_path: Path) -> None:
    server.files["/text.zip"] = BODY
    server.cuts = [1000, 70_000, 5]
    assert fetch(remote(server), tmp_path).read_bytes() == BODY
    assert [span for _, span in server.asked] == [None, "bytes=1000-", "bytes=71000-", "bytes=71005-"]


def test_what_an_earlier_run_fetched_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    server.files["/text.zip"] = BODY
    (tmp_path / "text.zip.part").write_bytes(BODY[:5000])
    assert fetch(remote(server), tmp_path).read_bytes() == BODY
    assert server.asked == [("/text.zip", "bytes=5000-")]


@pytest.mark.parametrize("size", [None, len(BODY)])
def test_a_run_that_was_cut_before_the_check_needs_only_the_check(
    server: Server, tmp_path: Path, size: int | None
) -> None:
    server.files["/text.zip"] = BODY
    (tmp_path / "text.zip.part").write_bytes(BODY)
    assert fetch(remote(server, size=size), tmp_path).read_bytes() == BODY
    assert len(server.asked) == (size is None)


def test_a_server_without_ranges_is_read_from_the_beginning(server: Server, tmp_path: Path) -> None:
    server.files["/text.zip"] = BODY
    server.honours_ranges = False
    (tmp_path / "text.zip.part").write_bytes(b"z" * 5000)
    assert fetch(remote(server), tmp_path).read_bytes() == BODY


def test_the_mirror_serves_when_the_publisher_has_gone(server: Server, tmp_path: Path) -> None:
    server.files["/mirror.zip"] = BODY
    assert fetch(remote(server, "/gone.zip", "/mirror.zip"), tmp_path).read_bytes() == BODY


def test_the_mirror_serves_when_the_publisher_sends_something_else(server: Server, tmp_path: Path) -> None:
    server.files = {"/text.zip": b"<html>", "/mirror.zip": BODY}
    assert fetch(remote(server, "/text.zip", "/mirror.zip"), tmp_path).read_bytes() == BODY


def test_the_mirror_goes_on_where_the_publisher_broke_off(server: Server, tmp_path: Path) -> None:
    server.files = {"/text.zip": BODY, "/mirror.zip": BODY}
    server.cuts = [2000] + [0] * ATTEMPTS
    assert fetch(remote(server, "/text.zip", "/mirror.zip"), tmp_path).read_bytes() == BODY
    assert server.asked[-1] == ("/mirror.zip", "bytes=2000-")


def test_a_server_that_is_busy_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.files["/text.zip"] = BODY
    server.refuses = [503, 429]
    assert fetch(remote(server), tmp_path).read_bytes() == BODY


def test_a_file_with_another_hash_is_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    server.files["/text.zip"] = b"something else"
    with pytest.raises(InputError, match=r"has the hash sha256:.* instead of sha256:") as caught:
        fetch(remote(server), tmp_path)
    assert "--from" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_publishers_md5_is_checked_where_there_is_no_sha256(server: Server, tmp_path: Path) -> None:
    server.files["/text.zip"] = BODY
    right = "md5:" + hashlib.md5(BODY).hexdigest()
    assert fetch(remote(server, digest=right), tmp_path / "a").read_bytes() == BODY
    with pytest.raises(InputError, match="has the hash md5:"):
        fetch(remote(server, digest="md5:" + "0" * 32), tmp_path / "b")


def test_a_server_that_always_breaks_off_is_given_up_and_what_came_is_kept(server: Server, tmp_path: Path) -> None:
    server.files["/text.zip"] = BODY
    server.cuts = [3000] + [0] * 20
    with pytest.raises(InputError, match="the connection was cut"):
        fetch(remote(server), tmp_path)
    assert (tmp_path / "text.zip.part").read_bytes() == BODY[:3000]


def test_a_server_that_is_not_there_is_told_by_its_name(tmp_path: Path, server: Server) -> None:
    gone = Remote("text.zip", ("http://127.0.0.1:1/text.zip",), "sha256:0")
    with pytest.raises(InputError, match=r"127\.0\.0\.1:1: .*refused"):
        fetch(gone, tmp_path)


def test_progress_hears_of_every_byte_once(server: Server, tmp_path: Path) -> None:
    server.files["/text.zip"] = BODY
    server.cuts = [1000, 5000]
    heard: list[int] = []
    fetch(remote(server), tmp_path, heard.append)
    assert sum(heard) == len(BODY)


def test_a_list_of_files_that_is_no_json_is_refused(server: Server) -> None:
    server.files["/list"] = b"<html>"
    with pytest.raises(InputError, match="The list of files"):
        fetch_json(server.url + "/list")


def test_the_cache_is_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REMANENCE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("REMANENCE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "remanence"
