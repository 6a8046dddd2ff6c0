"""The process that holds a lab: PID 1 of the lab's own namespaces.

Run as a script by `harness.host.warden` with one inherited descriptor, a SOCK_SEQPACKET control socket.
It moves into new namespaces (user, where the caller may not make the others; mount, network, PID, IPC), and serves requests: make a network
namespace, a socket, a TAP; run a program; signal it. It ends when the control socket closes, however the runner died,
and with PID 1 the kernel ends every process of the lab; namespaces, devices and mounts go with the last of them.

Nothing but the standard library is imported: this process starts in some 30 ms and can be read in one sitting.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
from typing import Any

CLONE_NEWNS, CLONE_NEWIPC = 0x00020000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV = 0x4000, 0x40000, 0x2, 0x4
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
TUNSETIFF, TUNSETVNETHDRSZ, TUNSETOFFLOAD = 0x400454CA, 0x400454D8, 0x400454D0
IFF_TAP, IFF_NO_PI, IFF_MULTI_QUEUE, IFF_VNET_HDR = 0x0002, 0x1000, 0x0100, 0x4000
SIOCGIFINDEX = 0x8933
SCRATCH = "/dev/shm"  # exists everywhere, and a private tmpfs over it hides nothing that a guest needs
MAX_MESSAGE = 1 << 18
MAX_FDS = 250  # the kernel carries 253 in one message

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    check(libc.unshare(flags), "unshare")


def setns(fd: int, flags: int) -> None:
    check(libc.setns(fd, flags), "setns")


def mount(kind: str, target: str, flags: int, data: str = "") -> None:
    check(libc.mount(kind.encode(), target.encode(), kind.encode(), flags, data.encode()), f"mount {kind} on {target}")


def has_sys_admin() -> bool:
    """Whether this process has CAP_SYS_ADMIN in the namespace it is in."""
    with open("/proc/self/status") as file:
        effective = next((line.split()[1] for line in file if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) >> 21 & 1)


def enter_namespaces() -> None:
    """New namespaces for this process and (PID) for its children; root in them.

    Whoever may not make them, an ordinary user or root in a container without the capability, makes a user namespace first.
    """
    uid, gid = os.getuid(), os.getgid()
    flags = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWIPC
    if not has_sys_admin():
        unshare(CLONE_NEWUSER)
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
            os.write(fd, text.encode())
            os.close(fd)
    unshare(flags)
    mount("none", "/", MS_REC | MS_PRIVATE)
    mount("tmpfs", SCRATCH, MS_NOSUID | MS_NODEV, "mode=0700")


class Warden:
    """Serves requests until the control socket closes."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.netns: dict[str, int] = {"lab": os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)}
        self.children: set[int] = set()

    # -- requests: each takes the decoded message and the descriptors that came along

    def do_netns(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        """Make a network namespace and remember it by name."""
        try:
            unshare(CLONE_NEWNET)
            self.netns[request["name"]] = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            setns(self.netns["lab"], CLONE_NEWNET)
        return {}, []

    def do_netns_fd(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        return {}, [os.dup(self.netns[request["name"]])]

    def do_socket(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        """A socket that belongs to a namespace; `connect` = [host, port] connects it first."""
        with self.inside(request["netns"]):
            sock = socket.socket(request["family"], request["type"], request["proto"])
            try:
                if request.get("connect"):
                    sock.settimeout(request.get("timeout_s", 5.0))
                    sock.connect(tuple(request["connect"]))
                    sock.settimeout(None)
            except BaseException:
                sock.close()
                raise
        return {}, [sock.detach()]

    def do_tap(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        """A TAP with one descriptor per queue; verified to be what was asked for."""
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if request["queues"] > 1 else 0)
        opened: list[int] = []
        try:
            with self.inside(request["netns"]):
                for _ in range(request["queues"]):
                    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
                    opened.append(fd)
                    wish = struct.pack("16sH22x", request["name"].encode(), flags)
                    name, got = struct.unpack("16sH22x", fcntl.ioctl(fd, TUNSETIFF, wish))
                    if name.rstrip(b"\0").decode() != request["name"] or got & flags != flags:
                        raise OSError(errno.EINVAL, f"the kernel made TAP {name!r} with flags {got:#x}, not {flags:#x}")
                    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", request["vnet_hdr_bytes"]))
        except BaseException:
            for fd in opened:
                os.close(fd)
            raise
        return {}, opened

    def do_spawn(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        """Run a program; descriptor `fds[i]` becomes number `targets[i]` in it."""
        targets: list[int] = request["targets"]
        reader, writer = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            try:
                os.close(reader)
                os.setsid()
                signal.pthread_sigmask(signal.SIG_SETMASK, [])
                setns(self.netns[request["netns"]], CLONE_NEWNET)
                base = max([*targets, *fds, writer]) + 1
                parked = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, base) for fd in fds]
                for fd, target in zip(parked, targets, strict=True):
                    os.dup2(fd, target, inheritable=True)
                os.chdir(request["cwd"])
                os.execvpe(request["argv"][0], request["argv"], request["env"])
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.write(writer, f"{error.errno}:{error.strerror}".encode())
            os._exit(127)
        os.close(writer)
        failure = os.read(reader, 4096)  # end of file once exec closed it
        os.close(reader)
        self.children.add(pid)
        if failure:
            code, _, text = failure.decode().partition(":")
            raise OSError(int(code), text)
        return {"pid": pid}, []

    def do_signal(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        if request["pid"] in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(request["pid"], request["signal"])
        return {}, []

    def do_sysctl(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        """Set network sysctls of a namespace; keys are paths below /proc/sys/net."""
        with self.inside(request["netns"]):
            for key, value in request["values"].items():
                fd = os.open(f"/proc/sys/net/{key}", os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(fd, str(value).encode())
                finally:
                    os.close(fd)
        return {}, []

    def do_open(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        """Open a file of the lab's scratch folder."""
        return {}, [os.open(request["path"], request["flags"] | os.O_CLOEXEC, 0o600)]

    def do_mkdir(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        """Make a folder; with `disk_bytes` a file system in memory of that size is put over it, anew each time."""
        os.makedirs(request["path"], mode=0o700, exist_ok=True)
        if request.get("disk_bytes"):
            mount("tmpfs", request["path"], MS_NOSUID | MS_NODEV, f"mode=0700,size={request['disk_bytes']}")
        return {}, []

    def do_stat(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        return {"size_bytes": os.stat(request["path"]).st_size}, []

    def do_unlink(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(request["path"])
        return {}, []

    # -- plumbing

    @contextlib.contextmanager
    def inside(self, name: str) -> Any:
        """This process in network namespace `name` for the length of the block."""
        if name == "lab":
            yield
            return
        setns(self.netns[name], CLONE_NEWNET)
        try:
            yield
        finally:
            setns(self.netns["lab"], CLONE_NEWNET)

    def send(self, message: dict[str, Any], fds: list[int]) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.control.sendmsg([json.dumps(message).encode()], ancillary)

    def serve_one(self) -> bool:
        """Serve one request; False when the runner is gone."""
        data, ancillary, flags, _ = self.control.recvmsg(MAX_MESSAGE, socket.CMSG_SPACE(4 * MAX_FDS), socket.MSG_CMSG_CLOEXEC)
        if not data:
            return False
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(payload[: len(payload) - len(payload) % 4])
        received = list(fds)
        request = json.loads(data)
        answer: dict[str, Any] = {"id": request["id"]}
        reply_fds: list[int] = []
        try:
            if flags & socket.MSG_CTRUNC:
                raise OSError(errno.EMFILE, "descriptors were lost on the way to the warden")
            result, reply_fds = getattr(self, f"do_{request['op']}")(request, received)
            answer["result"] = result
        except OSError as error:
            answer["error"] = {"errno": error.errno, "message": error.strerror or str(error)}
        finally:
            for fd in received:
                os.close(fd)
        self.send(answer, reply_fds)
        for fd in reply_fds:
            os.close(fd)
        return True

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self.children:
                self.children.discard(pid)
                self.send({"exit": pid, "status": os.waitstatus_to_exitcode(status)}, [])

    def serve(self) -> None:
        wake_reader, wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(ignored, signal.SIG_IGN)  # a terminal's Ctrl-C is the runner's to handle
        poller = select.poll()
        poller.register(self.control, select.POLLIN)
        poller.register(wake_reader, select.POLLIN)
        self.send({"id": 0, "result": {}}, [])
        while True:
            for fd, _ in poller.poll():
                if fd == wake_reader:
                    os.read(wake_reader, 4096)
                    self.reap()
                elif not self.serve_one():
                    return


def main() -> int:
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    libc.prctl(PR_SET_NAME, b"sw-warden", 0, 0, 0)
    try:
        enter_namespaces()
    except OSError as error:
        control.send(json.dumps({"id": 0, "error": {"errno": error.errno, "message": str(error)}}).encode())
        return 1
    child = os.fork()
    if child == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.setsid()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            Warden(control).serve()
        os._exit(0)
    control.close()
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    os.waitpid(child, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
