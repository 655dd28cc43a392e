# SPDX-License-Identifier: MIT
"""The certificates of a chip, as somebody checks them who knows AMD's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from svsmd.host.certificate_table import CertificateGuid, certificate_table
from svsmd.snp.certificate_chain import CertificateChain, Chip, certificate_chain
from svsmd.snp.entropy import EntropySource
from svsmd.snp.firmware_version import TCB_VERSION, TcbVersion
from tests.psp_bench import Bench
from tests.verifier import ARK, ASK, VCEK, Chain, certificates_of

EPOCH = 1_767_225_600
POWER_ON = datetime.fromtimestamp(EPOCH, UTC)
LAST_SECOND = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


def chip_of(bench: Bench, tcb: TcbVersion = TCB_VERSION) -> Chip:
    return Chip(bench.psp.chip_id, tcb, bench.psp.vcek_public_key)


def made(seed: bytes = b"test", epoch: int = EPOCH) -> CertificateChain:
    return certificate_chain(EntropySource(seed), chip_of(Bench(seed)), epoch)


def parsed(chain: CertificateChain) -> Chain:
    return Chain(
        *(x509.load_der_x509_certificate(der) for der in (chain.ark, chain.ask, chain.vcek))
    )


@pytest.fixture(scope="module")
def chain() -> Chain:
    return parsed(made())


def test_the_chain_verifies(chain: Chain):
    chain.verify(POWER_ON)
    chain.verify(POWER_ON + timedelta(days=6 * 365))


def test_reports_verify_against_the_chain(chain: Chain):
    bench = Bench()
    bench.launch()
    report = bench.report(2).report
    chain.verify_report(report)
    changed = bytearray(report)
    changed[0x90] ^= 1
    with pytest.raises(InvalidSignature):
        chain.verify_report(bytes(changed))


def test_the_vcek_names_chip_and_tcb(chain: Chain):
    assert chain.hwid == Bench().psp.chip_id
    assert chain.tcb == TCB_VERSION
    assert chain.product == "Milan-B1"


def test_versions_above_127_are_positive_numbers():
    tcb = TcbVersion.of(BOOT_LOADER=1, TEE=2, SNP=255, MICROCODE=128)
    chain = certificate_chain(EntropySource(b""), chip_of(Bench(), tcb), EPOCH)
    assert parsed(chain).tcb == tcb


def test_authorities_say_that_they_are_not_amds(chain: Chain):
    for certificate in (chain.ark, chain.ask):
        oid = x509.ObjectIdentifier("2.16.840.1.113730.1.13")
        comment = certificate.extensions.get_extension_for_oid(oid).value
        assert isinstance(comment, x509.UnrecognizedExtension)
        assert comment.value[2:].startswith(b"Emulated by svsmd")


def test_key_identifiers_link_the_chain(chain: Chain):
    def identifiers(certificate: x509.Certificate) -> tuple[bytes | None, bytes]:
        extensions = certificate.extensions
        own = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        issuer = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        return issuer.key_identifier, own

    ark_issuer, ark = identifiers(chain.ark)
    ask_issuer, ask = identifiers(chain.ask)
    assert ark_issuer == ask_issuer == ark != ask


def test_seed_and_date_are_the_chain():
    first = made()
    assert made() == first
    other, later = made(b"other"), made(epoch=EPOCH + 1)
    for name in ("ark", "ask", "vcek"):
        assert len({getattr(chain, name) for chain in (first, other, later)}) == 3
    # The date does not change a key.
    keys = [parsed(chain).ark.public_key() for chain in (first, later, other)]
    assert keys[0] == keys[1] != keys[2]


def test_a_chain_of_another_machine_does_not_mix(chain: Chain):
    other = parsed(made(b"other"))
    with pytest.raises(InvalidSignature):
        Chain(other.ark, chain.ask, chain.vcek).verify(POWER_ON)
    with pytest.raises(InvalidSignature):
        Chain(other.ark, other.ask, chain.vcek).verify(POWER_ON)


@pytest.mark.parametrize(
    ("epoch", "start", "end"),
    [
        (0, datetime(1969, 12, 31, tzinfo=UTC), datetime(1976, 12, 30, tzinfo=UTC)),
        (EPOCH, datetime(2025, 12, 31, tzinfo=UTC), datetime(2032, 12, 30, tzinfo=UTC)),
        (253_402_300_799, LAST_SECOND - timedelta(days=1), LAST_SECOND),
        ((1 << 40) - 1, LAST_SECOND - timedelta(days=1), LAST_SECOND),
    ],
)
def test_dates_of_a_vcek(epoch: int, start: datetime, end: datetime):
    vcek = parsed(made(epoch=epoch)).vcek
    assert (vcek.not_valid_before_utc, vcek.not_valid_after_utc) == (start, end)


def test_table():
    certificates = {CertificateGuid.VCEK: b"vcek", CertificateGuid.ARK: b"the ark"}
    table = certificate_table(certificates)
    # RFC 4122's order of the GUID, which is not Microsoft's.
    assert table[:24] == bytes.fromhex("63da758de6644564adc5f4b93be8accd") + bytes(
        [72, 0, 0, 0, 4, 0, 0, 0]
    )
    assert table[72:] == b"vcekthe ark"
    assert certificates_of(table) == {VCEK: b"vcek", ARK: b"the ark"}


def test_a_table_with_the_chain_fits_what_linux_offers():
    chain = made()
    table = certificate_table(
        {
            CertificateGuid.VCEK: chain.vcek,
            CertificateGuid.ASK: chain.ask,
            CertificateGuid.ARK: chain.ark,
        }
    )
    assert certificates_of(table) == {VCEK: chain.vcek, ASK: chain.ask, ARK: chain.ark}
    assert len(table) <= 0x4000
