"""Real servers for the tests, each a process that can be killed: `python object_server.py s3|http FOLDER PORT LOG`.

    s3      moto's S3, with the files of the folder in the bucket "corpora"
    http    aiohttp's static files, which answer range requests

Every range that is answered is a line of the log: path, first byte, last byte.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def main() -> None:
    kind, folder, port, log = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    {"s3": serve_s3, "http": serve_http}[kind](folder, port, log)


def note(log: Path, path: str, span: str | None) -> None:
    if span and span.startswith("bytes="):
        with open(log, "a") as file:
            file.write(f"{path} {span.removeprefix('bytes=').replace('-', ' ')}\n")


def serve_s3(folder: Path, port: int, log: Path) -> None:
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from moto.s3.models import s3_backends
    from werkzeug.serving import WSGIRequestHandler, run_simple

    # Before the first request is answered: a server that comes back has its objects.
    store = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    store.create_bucket("corpora", "us-east-1")
    for path in folder.rglob("*"):
        if path.is_file():
            store.put_object("corpora", path.relative_to(folder).as_posix(), path.read_bytes())
    application = DomainDispatcherApplication(create_backend_app)

    def logged(environ: Any, respond: Any) -> Any:
        note(log, environ["PATH_INFO"], environ.get("HTTP_RANGE"))
        return application(environ, respond)

    class Quiet(WSGIRequestHandler):
        def log_request(self, *arguments: Any) -> None:
            pass

    run_simple("127.0.0.1", port, logged, threaded=True, request_handler=Quiet)


def serve_http(folder: Path, port: int, log: Path) -> None:
    from aiohttp import web

    @web.middleware
    async def logged(request: Any, handler: Any) -> Any:
        note(log, request.path, request.headers.get("Range"))
        return await handler(request)

    application = web.Application(middlewares=[logged])
    application.router.add_static("/corpora", folder)
    web.run_app(application, host="127.0.0.1", port=port, print=None, access_log=None)


if __name__ == "__main__":
    main()
