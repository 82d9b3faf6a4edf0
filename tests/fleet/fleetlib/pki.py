# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The depot's certificate authority: made once per cache, trusted by every node image, its key never in an image."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from .host import CACHE, lock, run

DEPOT_HOST = "depot.gpufleet.test"
CA = CACHE / "ca"
DAYS = "3650"
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def ca_certificate() -> Path:
    """The CA's certificate (PEM), made on first use."""
    path = CA / "ca.crt"
    if not path.exists():
        with lock("ca"):
            if not path.exists():
                _make_ca()
    return path


def ca_sha256() -> str:
    """Which CA this is: part of every image's recipe."""
    return hashlib.sha256(ca_certificate().read_bytes()).hexdigest()


def _make_ca() -> None:
    CA.mkdir(parents=True, exist_ok=True, mode=0o700)
    key, part = CA / "ca.key", CA / "ca.crt.part"
    subject = "/O=gpufleet.llm test fleet/CN=gpufleet test depot CA"
    new = ["openssl", "req", "-x509", *NEW_KEY, "-keyout", str(key), "-out", str(part), "-days", DAYS, "-subj", subject]
    extensions = ("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign")
    run([*new, *(flag for extension in extensions for flag in ("-addext", extension))])
    key.chmod(0o600)
    os.replace(part, CA / "ca.crt")


def server_certificate(folder: Path, names: list[str]) -> tuple[Path, Path]:
    """(certificate, key) of a server with those DNS names or addresses, signed by the CA, below folder."""
    ca = ca_certificate()
    folder.mkdir(parents=True, exist_ok=True)
    cert, key, request, extensions = (
        folder / name for name in ("server.crt", "server.key", "server.csr", "server.ext")
    )
    alt = ",".join(("IP:" if name.replace(".", "").isdigit() else "DNS:") + name for name in names)
    extensions.write_text(
        f"subjectAltName={alt}\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n", encoding="utf-8"
    )
    run(["openssl", "req", "-new", *NEW_KEY, "-keyout", str(key), "-out", str(request), "-subj", f"/CN={names[0]}"])
    sign = ["openssl", "x509", "-req", "-in", str(request), "-CA", str(ca), "-CAkey", str(CA / "ca.key")]
    sign += ["-CAcreateserial", "-CAserial", str(folder / "serial"), "-days", DAYS, "-extfile", str(extensions)]
    run([*sign, "-out", str(cert)])
    key.chmod(0o600)
    for path in (request, extensions):
        path.unlink()
    return cert, key
