#!/usr/bin/env bash
# torchvision 0.29.1 (with torch 2.14.1), Debian's dataset-fashion-mnist: a valid Fashion-MNIST is written over.
#
# Expected: FashionMNIST(root) reads the four archives that lie in root/FashionMNIST/raw under their published names,
#   and FashionMNIST(root, download=True) fetches nothing: "If dataset is already downloaded, it is not downloaded
#   again." What is fetched takes the place of a file at the earliest when it is known to be better.
# Seen: with download=False, "Dataset not found": archives alone are no data set. With download=True, the archives of
#   Debian's package have other MD5s than the published ones, for their headers lack the name and tell another time:
#   with both put back, and all else the same bytes, the MD5s are those that torchvision knows. So each is opened for
#   writing and filled with whatever the mirror answers, before that is looked at: the login page of a network takes
#   the place of 26 MB of images (the mirror is a plain http address, for which such a network answers), and only then
#   comes "File not found or corrupted." Unpacked with gunzip, the same four files are read by the same call, without a
#   check of any sum.
# Why it matters: who has no network, or one that asks to log in, has the data only as a package; setting download=True,
#   as every tutorial does, destroys the copy. A reader of gzip files would be expected to care for the content.
set -euo pipefail
export OMP_NUM_THREADS=1 no_proxy=127.0.0.1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
(cd "$folder" && apt-get download -qq dataset-fashion-mnist=0.0~git20200523.55506a9-1 2>/dev/null && dpkg-deb -x ./*.deb deb)

"$folder/env/bin/python" -W ignore - "$folder" <<'PY'
import contextlib
import gzip
import hashlib
import io
import shutil
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from torchvision.datasets import FashionMNIST

root = Path(sys.argv[1])
raw = root / "FashionMNIST/raw"
shutil.copytree(root / "deb/usr/share/datasets/fashion-mnist", raw)
images = raw / "train-images-idx3-ubyte.gz"
for file, published in FashionMNIST.resources:
    debian = (raw / file).read_bytes()
    time = 1504176606 if file.startswith("train") else 1504176627  # 2017-08-31
    header = debian[:3] + b"\x08" + struct.pack("<I", time) + debian[8:10] + file.removesuffix(".gz").encode() + b"\0"
    ours, with_header = (hashlib.md5(archive).hexdigest() for archive in (debian, header + debian[10:]))
    print(f"{file}: MD5 {ours} in Debian, {with_header} with name and time in its header, published {published}")
    assert debian[3] == 0 and with_header == published != ours
assert sorted(path.name for path in raw.iterdir()) == sorted(file for file, _ in FashionMNIST.resources)


class LoginPage(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(200)
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(b"<html>Please log in to use this network.</html>")

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), LoginPage)
threading.Thread(target=server.serve_forever, daemon=True).start()
FashionMNIST.mirrors = [f"http://127.0.0.1:{server.server_port}/"]


def answer(**how):
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return f"read, {len(FashionMNIST(root, **how))} images"
    except RuntimeError as error:
        return " ".join(str(error).split())


size = images.stat().st_size
refused = answer()
print(f"{images.name}, {size} bytes, valid; download=False: {refused}")
assert "Dataset not found" in refused and images.stat().st_size == size
destroyed = answer(download=True)
print(f"download=True: {destroyed}\n  and the file is now {images.read_bytes()!r}")
assert "File not found or corrupted" in destroyed and images.read_bytes().startswith(b"<html>")
for path in (root / "deb/usr/share/datasets/fashion-mnist").iterdir():
    (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
for how in ({}, {"download": True}):
    print(f"unpacked by gunzip, {how}: {answer(**how)}")
    assert answer(**how) == "read, 60000 images"
PY
