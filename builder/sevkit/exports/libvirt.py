# SPDX-License-Identifier: Apache-2.0
"""A domain of libvirt, with launchSecurity where the guest's memory is encrypted.

Elements: libvirt's documentation "Domain XML format" and its schema domaincommon.rng. Never asks a
libvirt.
"""

from xml.etree import ElementTree

from sevkit.exports.subject import Subject
from sevkit.guest.channel import PORT_NAME
from sevkit.guest.qemu import POLICIES, console_is_virtio, in_memory

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"


def domain(subject: Subject) -> bytes:
    """The domain's XML.

    A guest without SEV runs emulated, and its firmware finds the hashes that it checks in memory,
    where QEMU's generic loader puts them (``qemu:commandline``).
    """
    ElementTree.register_namespace("qemu", QEMU_NAMESPACE)
    spec, mode = subject.spec, subject.mode
    root = ElementTree.Element("domain", type="kvm" if mode else "qemu")
    _text(root, "name", subject.name)
    _text(root, "title", subject.notes()[0])
    _text(root, "description", "\n".join(subject.notes()))
    _text(root, "memory", str(spec.memory_mib), unit="MiB")
    _text(root, "vcpu", str(spec.vcpus))
    _boot(ElementTree.SubElement(root, "os"), subject)
    features = ElementTree.SubElement(root, "features")
    for name in ("acpi", "apic"):
        ElementTree.SubElement(features, name)
    ElementTree.SubElement(features, "vmport", state="off")
    if mode:
        cpu = ElementTree.SubElement(root, "cpu", mode="custom", match="exact", check="none")
        _text(cpu, "model", spec.cpu, fallback="forbid")
    else:
        ElementTree.SubElement(root, "cpu", mode="maximum")
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        _text(root, event, "destroy")
    _devices(ElementTree.SubElement(root, "devices"), is_virtio=console_is_virtio(spec.cmdline))
    if mode:
        _security(root, subject)
    elif spec.hashes_at is not None and spec.firmware is not None:
        line = ElementTree.SubElement(root, f"{{{QEMU_NAMESPACE}}}commandline")
        for word in in_memory(spec.hashes_at, spec.hashes):
            ElementTree.SubElement(line, f"{{{QEMU_NAMESPACE}}}arg", value=word)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode").encode() + b"\n"


def _boot(boot: ElementTree.Element, subject: Subject) -> None:
    spec = subject.spec
    _text(boot, "type", "hvm", arch="x86_64", machine="q35")
    if spec.firmware is not None and spec.in_flash(subject.mode):
        _text(boot, "loader", str(spec.firmware), readonly="yes", type="pflash", stateless="yes")
    elif spec.firmware is not None:
        _text(boot, "loader", str(spec.firmware), type="rom")
    _text(boot, "kernel", str(spec.kernel))
    if spec.initramfs is not None:
        _text(boot, "initrd", str(spec.initramfs))
    _text(boot, "cmdline", spec.cmdline)


def _devices(devices: ElementTree.Element, *, is_virtio: bool) -> None:
    ElementTree.SubElement(devices, "controller", type="usb", model="none")
    ports = ElementTree.SubElement(
        devices, "controller", type="virtio-serial", model="virtio-non-transitional"
    )
    ElementTree.SubElement(ports, "driver", iommu="on")
    console = ElementTree.SubElement(devices, "console", type="pty")
    ElementTree.SubElement(console, "target", type="virtio" if is_virtio else "serial")
    agent = ElementTree.SubElement(devices, "channel", type="unix")
    ElementTree.SubElement(agent, "target", type="virtio", name=PORT_NAME)
    ElementTree.SubElement(devices, "memballoon", model="none")


def _security(root: ElementTree.Element, subject: Subject) -> None:
    is_snp = subject.mode == "sev-snp"
    security = ElementTree.SubElement(
        root,
        "launchSecurity",
        type="sev-snp" if is_snp else "sev",
        kernelHashes="yes" if subject.is_hashed else "no",
    )
    _text(security, "cbitpos", str(subject.launch.c_bit))
    _text(security, "reducedPhysBits", str(subject.launch.reduced_phys_bits))
    policy = POLICIES[subject.mode_name]
    _text(security, "policy", f"{policy:#010x}" if is_snp else f"{policy:#06x}")
    if (signed := subject.id_block) is not None:
        record = signed.record()
        if record["author_key_enabled"]:
            security.set("authorKey", "yes")
        _text(security, "idBlock", record["id_block"])
        _text(security, "idAuth", record["id_auth"])


def _text(parent: ElementTree.Element, name: str, text: str, **attributes: str) -> None:
    ElementTree.SubElement(parent, name, attributes).text = text
