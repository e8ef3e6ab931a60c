# SPDX-License-Identifier: Apache-2.0
"""Whether the files of TLS can be used, fit together, and for how long."""

import stat
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from protocol.errors import InvalidUsage
from ps_service.doctor.finding import Finding, Measured, error, ok, warning
from ps_service.settings import Settings
from ps_service.tls import advertised_ca, certificates, tls_arguments

SOON_DAYS = 14
GUIDE = "docs/howto/serve-over-tls.md"


def check_tls_files(settings: Settings, now: datetime | None = None) -> Finding:
    """Whether workers would believe the server. Args: now: None: now."""
    try:
        arguments = tls_arguments(settings)
        advertised_ca(settings)
    except InvalidUsage as met:
        return error(met.detail, f"see {GUIDE}")
    if not arguments:
        behind = "; only an ingress that speaks TLS is to reach it" if settings.insecure else ""
        return ok(f"no TLS, on {settings.host}{behind}")
    assert settings.tls_cert is not None and settings.tls_key is not None
    return _of(settings.tls_cert, settings.tls_key, now or datetime.now(UTC))


def _of(cert_file: Path, key_file: Path, now: datetime) -> Finding:
    chain = certificates(cert_file, "--tls-cert")
    names = _names(chain[0])
    first = min(chain, key=lambda each: each.not_valid_after_utc)
    days = (first.not_valid_after_utc - now).days
    whose = "the certificate" if first is chain[0] else "a certificate of the chain"
    measured: dict[str, Measured] = {"days": days, "names": ", ".join(names)}
    if now > first.not_valid_after_utc:
        said = f"{cert_file}: {whose} has expired, at {_day(first.not_valid_after_utc)}"
        return error(said, "renew it and restart the server: workers refuse it", **measured)
    begins = max(each.not_valid_before_utc for each in chain)
    if now < begins:
        return error(
            f"{cert_file} is valid from {_day(begins)}, which is to come",
            "look at this machine's clock, or at who issued it",
            **measured,
        )
    if not names:
        return error(
            f"{cert_file} names no host and no address",
            f"issue one with a subjectAltName, by which workers ask for the server: {GUIDE}",
            **measured,
        )
    said = f"{cert_file}, for {', '.join(names)}: {whose} expires in {days} days"
    if days < SOON_DAYS:
        return warning(said, "renew it and restart the server, which reads it at its start", **measured)
    if stat.S_IMODE(key_file.stat().st_mode) & stat.S_IROTH:
        return warning(f"everybody on this machine can read {key_file}", f"chmod o= {key_file}", **measured)
    return ok(said, **measured)


def _day(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def _names(certificate: x509.Certificate) -> list[str]:
    """Hosts and addresses that it is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    hosts = names.get_values_for_type(x509.DNSName)
    return [*hosts, *(str(address) for address in names.get_values_for_type(x509.IPAddress))]
