"""Troubles with certificates, credentials, and files that are read again."""

import contextlib
import http.server
import socket
import subprocess
import threading

from .broker import until
from .story import story

CA_CONFIG = """
[ca]
default_ca = ours
[ours]
database = {0}/index
crlnumber = {0}/number
default_md = sha256
crl_extensions = extensions
[extensions]
authorityKeyIdentifier = keyid:always
"""
USABLE = 'blobcast_vendor_key_usable{key="main"}'
FAILED = 'blobcast_acme_orders_total{result="failed"}'


@story("CertificateExpiring", "CertificateEnds", "CredentialExpiring", "RevocationListLate")
def expiry(at):
    """Certificates, a token and a list of revoked certificates that are good for hours or days, or no more."""
    settings = {}
    for listener, days in ("ingest", 3), ("grpc", 1):
        certificate, key = self_signed(at.directory / listener, days)
        settings |= {f"{listener}.tls_certificate_file": certificate, f"{listener}.tls_key_file": key}
    authority, key = self_signed(at.directory / "authority", 365)
    crl = revocation_list(at.directory, authority, key)
    broker = at.broker(settings | {"grpc.tls_client_ca_file": authority, "grpc.tls_client_crl_file": crl})
    broker.add_credential("callback soon", "--expires-in", "2d")
    until(
        "the token to be known",
        lambda: [name for name in broker.metrics() if name.startswith("blobcast_credential_expiry")],
    )
    at.scrape(broker, 3)
    at.scrape(
        broker, 70,
        {
            "CertificateExpiring": "notAfter=",
            "CertificateEnds": "notAfter=",
            "CredentialExpiring": "Usage: blobcast token rotate",
            "RevocationListLate": "nextUpdate=",
        },
        **{"YOUR_HOST:443": "{}:{}".format(*broker.ingest), "CRL_FILE": crl},
    )  # fmt: skip


def self_signed(path, days):
    certificate, key = path.with_suffix(".pem"), path.with_suffix(".key")
    openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", days,
        "-subj", f"/CN={path.name}", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate,
    )  # fmt: skip
    return certificate, key


def revocation_list(directory, authority, key):
    """One that should have been replaced a second later."""
    crl, config = directory / "crl.pem", directory / "ca.cnf"
    config.write_text(CA_CONFIG.format(directory))
    (directory / "index").touch()
    (directory / "number").write_text("01\n")
    openssl("ca", "-gencrl", "-config", config, "-cert", authority, "-keyfile", key, "-crlsec", "1", "-out", crl)
    return crl


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@story("ReloadRefused")
def reload(at):
    """A configuration with a mistake."""
    broker = at.broker()
    at.scrape(broker, 3)
    broker.write_config({"log.retention_age_max": "nonsense"})
    broker.reload()
    at.scrape(broker, 3, {"ReloadRefused": "retention_age_max"})


@story("VendorKeyRefused")
def vendor_key(at):
    """The vendor takes no key, and then a new one."""
    with vendor(401) as refusing:
        broker = at.broker({"reconcile.enabled": "true", "reconcile.base_url": refusing})
        at.scrape(broker, 3)
        broker.add_vendor_key("main", "not-a-good-one")
        until("the key to be refused", lambda: broker.metrics().get(USABLE) == 0)
        at.scrape(broker, 3, {"VendorKeyRefused": "the vendor refuses the key"})


@contextlib.contextmanager
def vendor(status):
    """A vendor that has one answer to everything, and its URL."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@story("AcmeFailing")
def certificate_authority(at):
    """The authority takes connections, and then goes away."""
    with socket.create_server(("127.0.0.1", 0)) as authority:
        url = f"https://127.0.0.1:{authority.getsockname()[1]}/dir"
        broker = at.broker({"acme.domains": "hooks.example.test", "acme.directory_url": url})
        at.scrape(broker, 3)
    until("the order to fail", lambda: broker.metrics()[FAILED])
    at.scrape(broker, 18, {"AcmeFailing": "no certificate"})
