"""An emulated Jetson: an aarch64 userland under qemu, behind a real sshd on loopback, with a made board.

It proves the plumbing: SSH, the userland, the agent, the runners, the meters' reading. Its times and joules mean
nothing; its device tree says "emulated", and so everything that it measures is told as such.

Needs root and Debian's packages openssh-server, qemu-user-static, mmdebstrap and bubblewrap. What cannot be
built is an error with its reason, never a skip. As a script it builds what the tests start from, and says in one
line why it cannot: so CI tells a machine that cannot fetch from a test that fails.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = (
    "python3.11,python3-minimal,libstdc++6,libgomp1,base-files,bash,dash,coreutils,libc-bin,grep,sed,"
    "procps,tar,gzip,findutils,openssh-sftp-server"
)
WHEELS = ("numpy", "onnxruntime", "pillow")
SUITE = "bookworm"
TOOLS = ("mmdebstrap", "bwrap", "ssh-keygen", "/usr/sbin/sshd")
BINFMT = Path("/proc/sys/fs/binfmt_misc")
MODEL = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super (emulated)"
COMPATIBLE = "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0"
# A Cortex-A78AE's own text: ONNX Runtime crashes under qemu where it reads an x86 cpuinfo.
CPUINFO = "".join(
    f"processor\t: {n}\nmodel name\t: ARMv8 Processor rev 1 (v8l)\nBogoMIPS\t: 62.50\n"
    "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\n"
    "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd42\nCPU revision\t: 1\n\n"
    for n in range(2)
)
NVPMODEL = "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n< PM_CONFIG DEFAULT=0 >\n"
TEGRASTATS = """#!/bin/bash
while :; do
  echo "$(date '+%m-%d-%Y %H:%M:%S') RAM 1775/7620MB (lfb 2x4MB) SWAP 0/3810MB (cached 0MB) CPU [1%@729,0%@729] GR3D_FREQ 0% cpu@48.8C tj@49.1C VDD_IN 4761mW/4778mW VDD_CPU_GPU_CV 515mW/501mW VDD_SOC 1428mW/1428mW"
  sleep 1
done
"""  # noqa: E501  (a line of JetPack 6's)


class CannotBuild(Exception):
    """The emulated device cannot be built here; the message says why."""


@dataclass
class Device:
    """A running emulated Jetson.

    Attributes:
        home: the client's HOME: its ``.ssh/config`` knows the device as ``jetson``.
        device_home: the device's home as the host sees it.
        root: the userland.
        made: what stands in ``/sys`` and ``/proc`` there.
        sshd: the server's process.
    """

    home: Path
    device_home: Path
    root: Path
    made: Path
    sshd: subprocess.Popen

    @property
    def cache(self) -> Path:
        return self.device_home / ".cache" / "edgeml"

    def environment(self) -> dict[str, str]:
        """For a client's process."""
        return {**os.environ, "HOME": str(self.home), "OMP_NUM_THREADS": "1"}

    def edgeml(self, *words: object, timeout: float = 280.0) -> subprocess.CompletedProcess:
        """Run the command line as a user of this client would."""
        line = [sys.executable, "-m", "edgeml", *map(str, words)]
        return subprocess.run(
            line, capture_output=True, text=True, env=self.environment(), timeout=timeout
        )

    def shell(self, text: str, timeout: float = 60.0) -> subprocess.CompletedProcess:
        """Run a line in the device's login shell, over SSH."""
        line = ["ssh", "-F", str(self.home / ".ssh/config"), "jetson", text]
        return subprocess.run(line, capture_output=True, text=True, timeout=timeout)

    def start(self, text: str) -> subprocess.Popen:
        """Start a line there and leave it running; end it with `kill`."""
        line = ["ssh", "-F", str(self.home / ".ssh/config"), "jetson", text]
        return subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def install_trtexec(self, version: str) -> None:
        """Put the stand-in for trtexec of that version where JetPack has the real one."""
        folder = self.root / "usr/src/tensorrt/bin"
        folder.mkdir(parents=True, exist_ok=True)
        body = (Path(__file__).parents[1] / "device/trtexec_stand_in.py").read_text()
        (folder / "trtexec").write_text(f"#!/usr/bin/python3\n{body}")
        (folder / "trtexec").chmod(0o755)
        (folder / "version").write_text(f"{version}\n")

    def remove_trtexec(self) -> None:
        shutil.rmtree(self.root / "usr/src/tensorrt", ignore_errors=True)

    def processes(self) -> list[int]:
        """Agents and their children that run there, by the host's numbers."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if b"qemu" in words[0] and any(b"edgeml" in word for word in words):
                    found.append(int(path.parent.name))
        return found


@contextlib.contextmanager
def emulated_jetson(folder: Path) -> Iterator[Device]:
    """Build what is not built yet, start the server, end it afterwards.

    Raises:
        CannotBuild: not root, a tool is missing, or a step failed.
    """
    root = prepare()
    made, home, device_home = folder / "made", folder / "client", folder / "device home"
    _make_board(made)
    device_home.mkdir()  # the sandbox's user 1000 is this one outside
    port = _free_port()
    _client(home, port)
    enter = _entry(folder, root, made, device_home)
    sshd = _server(folder, home, port, enter)
    device = Device(home, device_home, root, made, sshd)
    try:
        _wait_for(device)
        device.remove_trtexec()
        yield device
    finally:
        device.remove_trtexec()
        sshd.terminate()
        sshd.wait(timeout=10)


def prepare() -> Path:
    """All that has to be fetched or needs root; the userland's folder.

    Raises:
        CannotBuild: not root, a tool is missing, or apt or pip could not fetch.
    """
    _require()
    _register_qemu()
    return _userland()


def _require() -> None:
    if os.geteuid() != 0:
        raise CannotBuild("the emulated Jetson needs root (mounting binfmt_misc, sshd)")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or not Path("/usr/lib/binfmt.d/qemu-aarch64.conf").exists():
        raise CannotBuild(
            f"missing {', '.join(missing) or 'qemu-aarch64'}: apt-get install -y "
            "--no-install-recommends openssh-server qemu-user-static mmdebstrap bubblewrap"
        )


def _run(*words: object, timeout: float = 240.0, **options) -> None:
    try:
        done = subprocess.run(
            list(map(str, words)), capture_output=True, text=True, timeout=timeout, **options
        )
    except subprocess.TimeoutExpired as e:
        raise CannotBuild(f"{words[0]} took longer than {timeout:.0f} s") from e
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise CannotBuild(f"{words[0]} failed ({done.returncode}): {' / '.join(last)}")


def _register_qemu() -> None:
    """Let the kernel start aarch64 programs through qemu, in a sandbox too (flag F)."""
    if not (BINFMT / "register").exists():
        _run("mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT)
    if not (BINFMT / "qemu-aarch64").exists():
        line = Path("/usr/lib/binfmt.d/qemu-aarch64.conf").read_text().strip()
        (BINFMT / "register").write_text(line)


def _userland() -> Path:
    """The device's root file system; built once and kept under a key of what it is built from."""
    cache = Path(os.environ.get("EDGEML_CACHE") or Path.home() / ".cache" / "edgeml")
    key = hashlib.sha256(repr((PACKAGES, WHEELS, SUITE, 2)).encode()).hexdigest()[:16]
    root = cache / "emulated-jetson" / key
    if root.is_dir():
        return root
    part = root.with_name(f"{key}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    # apt's own sources, which may be a mirror of this machine's network; mmdebstrap's default otherwise.
    sources = [p for p in (Path("/etc/apt/sources.list.d/debian.sources"),) if p.exists()]
    words = ["--quiet", "--arch=arm64", "--variant=extract", f"--include={PACKAGES}", SUITE]
    _run("mmdebstrap", *words, part, *sources)
    platforms = ("manylinux2014", "manylinux_2_27", "manylinux_2_28")
    flags = [word for p in platforms for word in ("--platform", f"{p}_aarch64")]
    flags += ["--python-version", "3.11", "--implementation", "cp", "--only-binary=:all:"]
    flags += ["--abi", "cp311", "--abi", "abi3", "--abi", "none"]
    _run(
        sys.executable, "-m", "pip", "install", "-q", *flags, "--target", part / "opt/site", *WHEELS
    )
    # Nothing was configured, so nothing of Python's was compiled: qemu would do it at every start, 2.7 s of each.
    if sys.version_info[:2] == (3, 11):
        compiled = part / "usr/lib/python3.11"
        _run(sys.executable, "-m", "compileall", "-q", "-s", part, "-p", "/", compiled)
    # Debian's Python reads .pth files there: as if the board's packages were installed.
    (part / "usr/lib/python3/dist-packages").mkdir(parents=True, exist_ok=True)
    (part / "usr/lib/python3/dist-packages/site.pth").write_text("/opt/site\n")
    (part / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/bash\njetson:x:1000:1000::/home/jetson:/bin/bash\n"
    )
    (part / "etc/group").write_text("root:x:0:\njetson:x:1000:\n")
    (part / "etc/nv_tegra_release").write_text(
        "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed\n"
    )
    (part / "etc/nvpmodel.conf").write_text(NVPMODEL)
    (part / "var/lib/nvpmodel").mkdir(parents=True)
    (part / "var/lib/nvpmodel/status").write_text("pmode:0000 fmode:fanNull")
    (part / "usr/bin/tegrastats").write_text(TEGRASTATS)
    (part / "usr/bin/tegrastats").chmod(0o755)
    for folder in ("home/jetson", "opt/edgeml", "usr/src"):
        (part / folder).mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # another run was faster
        part.rename(root)
    shutil.rmtree(part, ignore_errors=True)
    return root


def _make_board(made: Path) -> None:
    """/sys of an Orin Nano: device tree, INA3221 with its rails, clocks, temperatures."""
    hwmon = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
    gpu = "sys/class/devfreq/17000000.gpu"
    cpu = "sys/devices/system/cpu/cpu0/cpufreq"
    files = {
        "sys/firmware/devicetree/base/model": MODEL + "\0",
        "sys/firmware/devicetree/base/compatible": COMPATIBLE,
        f"{gpu}/cur_freq": "306000000",
        f"{gpu}/min_freq": "306000000",
        f"{gpu}/max_freq": "1020000000",
        f"{cpu}/scaling_cur_freq": "729600",
        f"{cpu}/scaling_min_freq": "729600",
        f"{cpu}/scaling_max_freq": "1728000",
        f"{cpu}/scaling_governor": "schedutil",
        "sys/devices/system/cpu/online": "0-1\n",
        "sys/devices/system/cpu/possible": "0-1\n",
        "sys/devices/system/cpu/present": "0-1\n",
        "sys/class/thermal/thermal_zone0/type": "tj-thermal",
        "sys/class/thermal/thermal_zone0/temp": "49125",
        "cpuinfo": CPUINFO,
    }
    rails = (("VDD_IN", 5000, 1000), ("VDD_CPU_GPU_CV", 5000, 200), ("VDD_SOC", 5000, 300))
    for n, (label, millivolts, milliamperes) in enumerate(rails, 1):
        files[f"{hwmon}/in{n}_label"] = label
        files[f"{hwmon}/in{n}_input"] = str(millivolts)
        files[f"{hwmon}/curr{n}_input"] = str(milliamperes)
    for name, text in files.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(text)


def _client(home: Path, port: int) -> None:
    """A user's ~/.ssh with a key, and the device under the name ``jetson``."""
    ssh = home / ".ssh"
    ssh.mkdir(parents=True, mode=0o700)
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", ssh / "id_ed25519")
    (ssh / "config").write_text(
        f"Host jetson\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n"
        f"  IdentityFile {ssh}/id_ed25519\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {ssh}/known_hosts\n"
    )


def _entry(folder: Path, root: Path, made: Path, device_home: Path) -> Path:
    """What sshd runs for every login: the user's line, in the userland."""
    script = folder / "enter"
    words = ["exec bwrap --unshare-user --uid 1000 --gid 1000 --unshare-pid --die-with-parent"]
    words += ["--new-session --clearenv --setenv HOME /home/jetson --setenv USER jetson"]
    words += ["--setenv PATH /usr/local/bin:/usr/bin:/bin --setenv LC_ALL ${LC_ALL:-C.UTF-8}"]
    words += [f"--ro-bind '{root}' / --proc /proc --dev /dev --tmpfs /tmp"]
    words += [f"--ro-bind '{made}/sys' /sys --ro-bind '{made}/cpuinfo' /proc/cpuinfo"]
    words += [f"--bind '{device_home}' /home/jetson --chdir /home/jetson"]
    words += ['/bin/bash -c "$SSH_ORIGINAL_COMMAND"']
    script.write_text("#!/bin/bash\n" + " ".join(words) + "\n")
    script.chmod(0o755)
    return script


def _server(folder: Path, home: Path, port: int, enter: Path) -> subprocess.Popen:
    key = folder / "host_key"
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    public = key.with_suffix(".pub").read_text().split()
    (home / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{port} {public[0]} {public[1]}\n")
    keys = folder / "authorized_keys"
    keys.write_text((home / ".ssh/id_ed25519.pub").read_text())
    config = folder / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {key}\nAuthorizedKeysFile {keys}\n"
        "StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f"UsePAM no\nPermitRootLogin prohibit-password\nPidFile none\nForceCommand '{enter}'\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd separates privileges there
    with (folder / "sshd.log").open("w") as log:
        return subprocess.Popen(
            ["/usr/sbin/sshd", "-D", "-e", "-f", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(device: Device) -> None:
    end = time.monotonic() + 30
    while True:
        done = device.shell("uname -m")
        if done.stdout.strip() == "aarch64":
            return
        if time.monotonic() > end or device.sshd.poll() is not None:
            log = (device.home.parent / "sshd.log").read_text().strip().splitlines()[-3:]
            raise CannotBuild(f"no login: {done.stderr.strip()} / {' / '.join(log)}")
        time.sleep(0.3)


if __name__ == "__main__":
    try:
        prepare()
    except CannotBuild as e:
        sys.exit(f"the emulated Jetson cannot be built: {e}")
