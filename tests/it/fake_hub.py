"""A model hub in small: the requests that a client makes to list and fetch one model, answered from a folder.

`fake_hub.py FOLDER TOKEN` serves FOLDER, and FOLDER.gguf as `tiny.gguf`, as every `owner/name`, at one commit, which `main`
stands for. The owner decides the manners: files of `gated` are given for TOKEN only, weights of `broken` are an error page,
`missing` has nothing. Like the real one it lists in pages, and sends weights from another address than small files.
Requests are logged on standard error.
"""

import hashlib
import json
import pathlib
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

FOLDER, TOKEN = pathlib.Path(sys.argv[1]), sys.argv[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {path.relative_to(FOLDER).as_posix(): path.read_bytes() for path in sorted(FOLDER.rglob("*")) if path.is_file()}
FILES["tiny.gguf"] = FOLDER.with_suffix(".gguf").read_bytes()
FILES["pytorch_model.bin"] = b"a pickle, which nobody should fetch"
ENTRIES_A_PAGE = 3


def is_large(name):
    return name.endswith((".safetensors", ".gguf", ".bin"))


def etag(name):
    content = FILES[name]
    return hashlib.sha256(content).hexdigest() if is_large(name) else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        url = urlsplit(self.path)
        match url.path.strip("/").split("/"):
            case ["api", "models", "missing", *_]:
                # To strangers the hub does not say whether a private model exists.
                self.answer(401, X_Error_Code="RepoNotFound", X_Error_Message="Invalid username or password.")
            case ["api", "models", _, _, "revision" | "tree", revision] if revision not in ("main", COMMIT):
                self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id: " + revision)
            case ["api", "models", _, _, "revision", _]:
                self.answer(200, json.dumps({"sha": COMMIT}).encode())
            case ["api", "models", *_, "tree", _]:
                self.tree(url)
            case [owner, model, "resolve", revision, *name]:
                self.file(owner, model, revision, "/".join(name))
            case ["cdn", "broken", *_]:
                self.answer(403, b"<Error><Code>AccessDenied</Code></Error>")
            case ["cdn", _, *name]:
                self.answer(200, FILES["/".join(name)])
            case _:
                self.answer(404)

    do_HEAD = do_GET

    def tree(self, url):
        first = int(parse_qs(url.query).get("cursor", ["0"])[0])
        entries = [{"type": "file", "oid": etag(name), "size": len(content), "path": name} for name, content in FILES.items()]
        page, rest = entries[first : first + ENTRIES_A_PAGE], entries[first + ENTRIES_A_PAGE :]
        host = self.headers["Host"]
        link = f'<http://{host}{url.path}?recursive=true&cursor={first + ENTRIES_A_PAGE}>; rel="next"'
        self.answer(200, json.dumps(page).encode(), **({"Link": link} if rest else {}))

    def file(self, owner, model, revision, name):
        sent = self.headers.get("Authorization")
        if owner == "gated" and sent != f"Bearer {TOKEN}":
            message = f"Access to model {owner}/{model} is restricted. You must have access to it."
            self.answer(403 if sent else 401, X_Error_Code="GatedRepo", X_Error_Message=message)
        elif name not in FILES or revision not in ("main", COMMIT):
            self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        elif is_large(name):
            facts = {"X_Linked_Etag": f'"{etag(name)}"', "X_Linked_Size": str(len(FILES[name]))}
            place = f"http://{self.headers['Host']}/cdn/{owner}/{name}"
            self.answer(302, X_Repo_Commit=COMMIT, Location=place, **facts)
        else:
            self.answer(200, FILES[name], X_Repo_Commit=COMMIT, ETag=f'"{etag(name)}"')


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
print(f"Running on http://127.0.0.1:{server.server_port}", file=sys.stderr, flush=True)
server.serve_forever()
