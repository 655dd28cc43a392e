# SPDX-License-Identifier: MIT
"""The command line. Data goes to stdout, talk to stderr; a mistake of the user is one line.

Everything but click is imported where it is used: `svsmd --version` must not wait for the engine.

Spec: docs/cli.md.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NoReturn, TypeVar

import click

from svsmd import __version__
from svsmd.config import (
    DEFAULT_MEMORY,
    DEMO_RTC,
    DEMO_SEED,
    MAX_DISKS,
    MIB,
    Decompress,
    DiskConfig,
    MachineConfig,
    OnReboot,
    format_size,
    parse_disk,
    parse_size,
)
from svsmd.errors import ExitCode, UserError

if TYPE_CHECKING:
    from svsmd.endpoint import Endpoint
    from svsmd.gdbstub.machine_target import MachineTarget
    from svsmd.machine import Machine

T = TypeVar("T")

RANDOM_SEED_SIZE: Final = 32
"""Bytes of a seed that nobody gave."""
DEFAULT_GDB: Final = "tcp:127.0.0.1:1234"
DEFAULT_SERIAL: Final = "telnet:127.0.0.1:5555"
DEFAULT_GUEST_VMPL: Final = 2

EXISTING_FILE: Final = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


def _option_value(parse: Callable[[str], T]) -> Callable[[str], T]:
    """`parse`, with its `UserError`s as click's, which add the name of the option."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except UserError as error:
            hint = f" ({error.hint})" if error.hint else ""
            raise click.BadParameter(error.message + hint) from None

    return convert


def _parse_endpoint(text: str) -> "Endpoint":
    from svsmd.endpoint import parse_endpoint

    return parse_endpoint(text)


def _parse_seed(text: str) -> bytes:
    if text == "random":
        return os.urandom(RANDOM_SEED_SIZE)
    digits = text.removeprefix("0x")
    try:
        return bytes.fromhex("0" * (len(digits) % 2) + digits)
    except ValueError:
        raise UserError(f"{text!r} is neither hexadecimal digits nor `random`") from None


def _parse_address(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        raise UserError(f"{text!r} is not a hexadecimal address") from None


def _machine_options(command: Callable[..., int]) -> Callable[..., int]:
    """The options that decide what is launched; `run` and `measure` have them."""
    options = (
        click.argument("image", metavar="[demo]", required=False),
        click.option(
            "--kernel", type=EXISTING_FILE, metavar="FILE", help="Boot this kernel: bzImage or ELF."
        ),
        click.option(
            "--decompress",
            type=click.Choice([choice.value for choice in Decompress]),
            default=Decompress.HOST.value,
            show_default=True,
            help="Who unpacks a bzImage: this program, or its own code in the guest.",
        ),
        click.option(
            "--initrd", type=EXISTING_FILE, metavar="FILE", help="Initial RAM disk of the kernel."
        ),
        click.option("--append", default="", metavar="TEXT", help="Command line of the guest."),
        click.option(
            "--memory",
            type=_option_value(parse_size),
            default=format_size(DEFAULT_MEMORY),
            show_default=True,
            metavar="SIZE",
            help="RAM, such as 512M or 2G.",
        ),
        click.option(
            "--cpus", type=int, default=1, show_default=True, metavar="N", help="Number of vCPUs."
        ),
        click.option(
            "--guest-vmpl",
            type=int,
            metavar="N",
            help=f"VMPL of the guest: 1, 2 or 3.  [default: {DEFAULT_GUEST_VMPL}]",
        ),
        click.option(
            "--archive",
            type=EXISTING_FILE,
            metavar="FILE",
            help="Modules of the SVSM: a tar file with their programs and svsm.toml.",
        ),
        click.option("--no-svsm", is_flag=True, help="No SVSM: the guest runs at VMPL0."),
        click.option(
            "--secure-tsc",
            is_flag=True,
            help="Secure TSC: the host has no hand in the guest's TSC. Takes Linux 6.14 or newer.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _machine_config(
    *,
    image: str | None,
    kernel: Path | None,
    decompress: str,
    initrd: Path | None,
    append: str,
    memory: int,
    cpus: int,
    guest_vmpl: int | None,
    no_svsm: bool,
    archive: Path | None,
    secure_tsc: bool,
    disk: Sequence[DiskConfig] = (),
    seed: bytes | None = None,
    rtc: int | None = None,
    name: str = "default",
    on_reboot: OnReboot = OnReboot.RESTART,
) -> MachineConfig:
    """The machine that the options describe. Only the demo guest has a fixed seed and date."""
    if image not in (None, "demo"):
        raise UserError(f"there is no image {image!r}", hint="`demo`, or --kernel FILE")
    if image is not None and kernel is not None:
        raise UserError("the demo guest and --kernel exclude each other")
    demo = kernel is None
    if seed is None:
        seed = DEMO_SEED if demo else os.urandom(RANDOM_SEED_SIZE)
    if rtc is None:
        rtc = DEMO_RTC if demo else int(time.time())
    present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if memory > present:
        raise UserError(
            f"memory of {format_size(memory)} is more than this computer has, {present // MIB}M"
        )
    if guest_vmpl is None:
        guest_vmpl = 0 if no_svsm else DEFAULT_GUEST_VMPL
    return MachineConfig(
        seed=seed,
        rtc=rtc,
        name=name,
        memory=memory,
        cpus=cpus,
        kernel=kernel,
        decompress=Decompress(decompress),
        initrd=initrd,
        append=append,
        disks=tuple(disk),
        svsm=not no_svsm,
        archive=archive,
        guest_vmpl=guest_vmpl,
        secure_tsc=secure_tsc,
        on_reboot=on_reboot,
    )


def _print_version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from importlib import metadata

        python = ".".join(map(str, sys.version_info[:3]))
        click.echo(f"svsmd {__version__} (unicorn {metadata.version('unicorn')}, Python {python})")
        context.exit()


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=False,
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the versions of svsmd and its engine.",
)
def cli() -> None:
    """An AMD SEV-SNP machine made of software, with an SVSM inside."""


@cli.command()
@_machine_options
@click.option("--name", default="default", show_default=True, help="Name of the machine.")
@click.option(
    "--disk",
    type=_option_value(parse_disk),
    multiple=True,
    metavar="FILE[,ro]",
    help=f"Raw image that the guest gets as a disk; ro: only to read. Up to {MAX_DISKS}.",
)
@click.option(
    "--gdb",
    type=_option_value(_parse_endpoint),
    default=DEFAULT_GDB,
    show_default=True,
    metavar="ENDPOINT",
    help="Where debuggers attach; null is nowhere.",
)
@click.option(
    "--serial",
    type=_option_value(_parse_endpoint),
    default=DEFAULT_SERIAL,
    show_default=True,
    metavar="ENDPOINT",
    help="Where the guest's serial console is.",
)
@click.option(
    "--svsm-console",
    type=_option_value(_parse_endpoint),
    default="null",
    show_default=True,
    metavar="ENDPOINT",
    help="Where the SVSM's messages go.",
)
@click.option("--expose", is_flag=True, help="Allow endpoints that other machines can reach.")
@click.option("-S", "--paused", is_flag=True, help="Wait for a debugger before the first step.")
@click.option(
    "--clock",
    type=click.Choice(["real", "virtual"]),
    default="real",
    show_default=True,
    help="While all vCPUs are halted: sleep, or jump to the next timer.",
)
@click.option(
    "--seed",
    type=_option_value(_parse_seed),
    metavar="HEX|random",
    help="Source of all randomness.  [default: fixed for demo, else random]",
)
@click.option(
    "--rtc",
    type=int,
    metavar="EPOCH",
    help="Date at power-on, in seconds since 1970.  [default: fixed for demo, else now]",
)
@click.option(
    "--on-reboot",
    type=click.Choice([choice.value for choice in OnReboot]),
    default=OnReboot.RESTART.value,
    show_default=True,
    help="What a reset of the guest does.",
)
@click.option(
    "--time-limit",
    type=float,
    metavar="SECONDS",
    help="End after so much wall time, with exit code 5.",
)
@click.option("-v", "--verbose", count=True, help="Say more; twice, even more.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
def run(
    *,
    gdb: "Endpoint",
    serial: "Endpoint",
    svsm_console: "Endpoint",
    expose: bool,
    paused: bool,
    clock: str,
    on_reboot: str,
    time_limit: float | None,
    verbose: int,
    quiet: bool,
    **machine_options: object,
) -> int:
    """Run a machine: the demo guest, or a kernel, under the SVSM."""
    machine = _machine_config(**machine_options, on_reboot=OnReboot(on_reboot))  # type: ignore[arg-type]  # as click parsed them

    # What imports and a launch make stays: looking for garbage in it takes longer each time.
    gc.disable()

    from svsmd.payload import read_payload

    payload = read_payload(machine)  # goes on while the rest is imported

    import trio

    from svsmd import daemon, logs
    from svsmd.machine import build_machine
    from svsmd.runner import Clock

    def build_target(machine: "Machine") -> "MachineTarget":
        from svsmd.gdbstub.machine_target import MachineTarget

        return MachineTarget(machine)

    def build(config: MachineConfig) -> "Machine":
        machine = build_machine(config, payload=payload)
        gc.freeze()
        gc.enable()
        return machine

    logs.configure(-1 if quiet else verbose)
    config = daemon.RunConfig(
        machine=machine,
        gdb=gdb,
        serial=serial,
        svsm_console=svsm_console,
        paused=paused,
        clock=Clock(clock),
        time_limit=time_limit,
        expose=expose,
        verbose=verbose > 0,
    )
    return trio.run(
        partial(
            daemon.run,
            config,
            build_machine=build,
            build_target=build_target,
            say=(lambda _line: None) if quiet else say,
        )
    )


@cli.command()
@_machine_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def measure(*, as_json: bool, **machine_options: object) -> int:
    """Print the launch digest of what `run` would launch."""
    from svsmd.machine import build_machine

    # Neither of the two is measured.
    config = _machine_config(**machine_options, seed=DEMO_SEED, rtc=DEMO_RTC)  # type: ignore[arg-type]  # as click parsed them
    digest = build_machine(config).launch_digest.hex()
    click.echo(json.dumps({"launch-digest": digest}) if as_json else digest)
    return ExitCode.OK


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of objects.")
def doctor(*, as_json: bool) -> int:
    """Show what is missing here, and for what; exit code 2 if no machine can run."""
    from dataclasses import asdict

    from svsmd.doctor import examine
    from svsmd.machine import build_machine

    usable = True
    findings = []
    for finding in examine(build_machine):
        usable = usable and (finding.found or not finding.required)
        if as_json:
            findings.append(asdict(finding))
            continue
        mark = "ok" if finding.found else "MISSING" if finding.required else "missing"
        purpose = "" if finding.found else f" -- needed for {finding.purpose}"
        click.echo(f"{mark:8}{finding.name:14}{finding.detail}{purpose}")
    if as_json:
        click.echo(json.dumps(findings, indent=2))
    return ExitCode.OK if usable else ExitCode.USAGE


@cli.command()
@click.argument("kernel", type=click.File("rb"), metavar="KERNEL")
@click.argument("output", type=click.Path(dir_okay=False), metavar="[OUT]", required=False)
@click.option(
    "--text",
    type=_option_value(_parse_address),
    metavar="ADDRESS",
    help="Where _text is, hexadecimal, if the kernel has moved.",
)
@click.option(
    "--kallsyms",
    type=EXISTING_FILE,
    metavar="FILE",
    help="Lines of the running kernel's /proc/kallsyms: that of _text, and those of modules.",
)
def symbols(
    *, kernel: IO[bytes], output: str | None, text: int | None, kallsyms: Path | None
) -> int:
    """Make a file with which gdb knows a Linux kernel: symbols, call frames, types.

    KERNEL is a bzImage or an ELF file. OUT is NAME.symbols in the current directory unless it is
    given; - stands for stdin and stdout.
    """
    from svsmd.symbols.image import SymbolsError, read_image
    from svsmd.symbols.kallsyms import parse_proc_kallsyms
    from svsmd.symbols.kernel import symbol_file

    if text is not None and kallsyms is not None:
        raise UserError("--text and --kallsyms exclude each other")
    # Half a million objects are made, none of which refers to itself.
    gc.disable()
    try:
        sections = read_image(kernel.read())
        lines = "" if kallsyms is None else kallsyms.read_text(errors="backslashreplace")
        running = parse_proc_kallsyms(lines) if kallsyms is not None else []
        made = symbol_file(sections, text=text, running=running)
        with click.open_file(output or f"{Path(kernel.name).name}.symbols", "wb") as file:
            file.write(made.data)
    except SymbolsError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None
    for line in made.missing:
        say(line)
    return ExitCode.OK


def say(line: str) -> None:
    """Tell the user something on stderr, whether or not anybody listens."""
    try:
        click.echo(f"svsmd: {line}", err=True)
    except OSError:
        pass


def _complain(message: str, hint: str | None) -> None:
    say(" ".join(message.split()))
    if hint:
        say(f"hint: {hint}")


def invoke(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        arguments: without the program's name; None are those of the process.
    """
    try:
        code = cli.main(arguments, prog_name="svsmd", standalone_mode=False)
    except UserError as error:
        _complain(error.message, error.hint)
        return error.exit_code
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "svsmd"
        _complain(error.format_message(), f"{command} --help")
        return ExitCode.USAGE
    except click.ClickException as error:
        _complain(error.format_message(), None)
        return ExitCode.USAGE
    except (KeyboardInterrupt, click.Abort):
        return ExitCode.INTERRUPTED
    return int(code or 0)


def main() -> NoReturn:
    """The `svsmd` program. A bug ends in Python's own traceback and exit code 1."""
    sys.exit(invoke())
