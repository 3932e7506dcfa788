# SPDX-License-Identifier: BSD-3-Clause
"""A lab on one machine: two network namespaces joined by a veth pair, ramliftd in each, VMs at either end.

Everything that a Lab starts it stops, on every way out: use it as a context manager.
"""
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SIDES = ("a", "b")
ADDRESS = {"a": "198.18.0.1", "b": "198.18.0.2"}
ADDRESS6 = {"a": "fd00::1", "b": "fd00::2"}
MTU = 3506  # the most that a veth with an XDP program takes


class LabError(Exception):
    pass


def sh(*args, check=True):
    r = subprocess.run(args, capture_output=True, text=True)
    if check and r.returncode != 0:
        raise LabError(f"{' '.join(args)}: {r.stderr.strip() or r.stdout.strip()}")
    return r.stdout


def parse_size(text):
    m = re.fullmatch(r"(\d+)([KMGT]?)", text)
    if not m:
        raise LabError(f"'{text}' is not a size, e.g. 512M")
    return int(m.group(1)) << (10 * (" KMGT".index(m.group(2) or " ")))


def machine():
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "?")
    return {"cpu": cpu, "cores": os.cpu_count(), "kernel": os.uname().release}


class Proc:
    """A child process whose output goes to a file."""

    def __init__(self, lab, name, argv, ns=None):
        self.name = name
        self.log = os.path.join(lab.dir, f"{name}.log")
        if ns:
            argv = ["ip", "netns", "exec", ns] + argv
        with open(self.log, "ab") as out:
            self.p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                                      start_new_session=True)

    @property
    def pid(self):
        return self.p.pid

    def alive(self):
        return self.p.poll() is None

    def text(self):
        with open(self.log, errors="replace") as f:
            return f.read()

    def kill(self, sig=signal.SIGKILL):
        if self.alive():
            self.p.send_signal(sig)

    def freeze(self):
        """Stop it; returns when none of its threads runs any more."""
        self.kill(signal.SIGSTOP)
        while self.alive() and not all(self._stopped(t) for t in os.listdir(f"/proc/{self.pid}/task")):
            time.sleep(0.0005)

    def _stopped(self, thread):
        try:
            with open(f"/proc/{self.pid}/task/{thread}/stat") as f:
                return f.read().rsplit(")", 1)[1].split()[0] in "TZX"
        except FileNotFoundError:
            return True

    def thaw(self):
        self.kill(signal.SIGCONT)

    def wait(self, timeout=10):
        return self.p.wait(timeout)

    def stop(self, timeout=5):
        self.kill(signal.SIGTERM)
        self.thaw()
        try:
            self.p.wait(timeout)
        except subprocess.TimeoutExpired:
            self.p.kill()
            self.p.wait(timeout)


class Lab:
    def __init__(self, build=None, keep=False):
        self.build = build or os.environ.get("RAMLIFT_BUILD", os.path.join(ROOT, "build"))
        self.keep = keep
        self.dir = tempfile.mkdtemp(prefix="ramlift-lab-")
        self.procs = []
        self.ns = {}
        self.daemons = {}

    def __enter__(self):
        self.old = {s: signal.signal(s, self._interrupted) for s in (signal.SIGTERM, signal.SIGHUP)}
        return self

    def __exit__(self, *exc):
        for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(s, signal.SIG_IGN)
        for p in reversed(self.procs):
            p.kill(signal.SIGTERM)
            p.thaw()
        for p in reversed(self.procs):
            p.stop()
        for ns in self.ns.values():
            sh("ip", "netns", "del", ns, check=False)
        if not self.keep:
            shutil.rmtree(self.dir, ignore_errors=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for s, handler in self.old.items():
            signal.signal(s, handler)

    @staticmethod
    def _interrupted(signum, frame):
        raise KeyboardInterrupt

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def program(self, *parts):
        return os.path.join(self.build, *parts)

    def network(self, queues=1):
        """Two namespaces and a veth pair of so many queues."""
        tag = f"rl{os.getpid()}"
        for side in SIDES:
            ns = f"{tag}{side}"
            sh("ip", "netns", "add", ns)
            self.ns[side] = ns
        a, b = self.ns["a"], self.ns["b"]
        end = ["veth0", "mtu", str(MTU), "numtxqueues", str(queues), "numrxqueues", str(queues)]
        sh("ip", "-n", a, "link", "add", *end, "type", "veth", "peer", "name", *end, "netns", b)
        for side in SIDES:
            n = ["ip", "-n", self.ns[side]]
            sh(*n, "addr", "add", f"{ADDRESS[side]}/30", "dev", "veth0")
            sh(*n, "addr", "add", f"{ADDRESS6[side]}/64", "dev", "veth0", "nodad")
            sh(*n, "link", "set", "lo", "up")
            sh(*n, "link", "set", "veth0", "up")

    def link(self, side, state):
        sh("ip", "-n", self.ns[side], "link", "set", "veth0", state)

    def socket_in(self, side, family, kind):
        """A socket that lives in the namespace of @side."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/self/ns/net") as here, open(f"/run/netns/{self.ns[side]}") as there:
            if libc.setns(there.fileno(), 0) != 0:
                raise LabError(f"setns: {os.strerror(ctypes.get_errno())}")
            try:
                return socket.socket(family, kind)
            finally:
                libc.setns(here.fileno(), 0)

    def socket(self, side, what):
        return self.path(f"{side}.{what}")

    def start(self, name, argv, ns=None):
        p = Proc(self, name, argv, ns)
        self.procs.append(p)
        return p

    def pki(self):
        """A CA and certificates for both sides, once."""
        if not os.path.exists(self.path("pki")):
            sh(os.path.join(ROOT, "scripts", "setup"), "pki", self.path("pki"))

    def daemon_argv(self, side, uri="dpdk:net_af_xdp,iface=veth0", **options):
        options = {"rpc_socket": self.socket(side, "rpc"), "vmm_socket": self.socket(side, "vmm"), **options}
        if uri.startswith("udp:"):
            options.setdefault("address", ADDRESS[side])
        if options.setdefault("tls", "x509") == "x509":
            other = SIDES[1 - SIDES.index(side)]
            self.pki()
            for key, value in {"ca": "ca.crt", "cert": f"{side}.crt", "key": f"{side}.key"}.items():
                options.setdefault(f"tls_{key}", self.path("pki", value))
            options.setdefault("tls_peers", other)
        argv = [self.program("engine/app/ramliftd"), "--uri", uri]
        for key, value in options.items():
            argv += ["--" + key.replace("_", "-"), str(value)]
        return argv

    def daemon(self, side, uri="dpdk:net_af_xdp,iface=veth0", timeout=20, **options):
        return self._daemon(side, self.daemon_argv(side, uri, **options), timeout)

    def restart(self, side, timeout=20):
        """A new ramliftd in place of the last one of @side, which has ended, with the same arguments."""
        return self._daemon(side, self.daemons[side].argv, timeout)

    def _daemon(self, side, argv, timeout):
        p = self.start(f"ramliftd-{side}", argv, self.ns.get(side))
        p.argv = argv
        self.daemons[side] = p
        self.wait_for(lambda: self.answers(side), timeout, p, f"ramliftd at {side} to start")
        return p

    def answers(self, side):
        try:
            return "version" in self.rpc(side, "version")
        except (OSError, LabError):
            return False

    def wait_for(self, condition, timeout, proc, what):
        end = time.monotonic() + timeout
        while not condition():
            if proc is not None and not proc.alive():
                raise LabError(f"{proc.name} ended while waiting for {what}:\n{proc.text()[-2000:]}")
            if time.monotonic() > end:
                log = f":\n{proc.text()[-2000:]}" if proc is not None else ""
                raise LabError(f"waited {timeout} s for {what}{log}")
            time.sleep(0.02)

    def rpc(self, side, method, **params):
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(10)
            s.connect(self.socket(side, "rpc"))
            params = {k.replace("_", "-"): v for k, v in params.items()}
            s.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode() + b"\n")
            data = b""
            while not data.endswith(b"\n"):
                more = s.recv(1 << 20)
                if not more:
                    raise LabError("ramliftd closed the connection")
                data += more
        reply = json.loads(data)
        if "error" in reply:
            raise LabError(reply["error"]["message"])
        return reply["result"]

    def phase(self, side, name):
        try:
            return next((v["phase"] for v in self.rpc(side, "list")["vms"] if v["name"] == name), None)
        except (OSError, LabError):
            return None

    def labvm(self, side, name, memory, backing="plain", vcpus=1, append=None, dirty="ring", tag=None, options=()):
        """A VM; without @append it waits for a guest. Its serial port goes to NAME.serial."""
        tag = tag or f"{name}-{side}-{len(self.procs)}"
        argv = [self.program("vmm-adapters/labvm/labvm"), "run", "--name", name, "--memory", memory, "--backing",
                backing, "--vcpus", str(vcpus), "--engine", self.socket(side, "vmm"), "--dirty", dirty,
                "--serial", "file:" + self.path(f"{tag}.serial"), *options]
        if append is None:
            argv += ["--incoming"]
        else:
            argv += ["--kernel", self.program("vmm-adapters/labvm/ramlift-guest"), "--append", append]
        p = self.start(tag, argv, self.ns.get(side))
        p.serial = self.path(f"{tag}.serial")
        p.guest = lambda: guest_reports(p.serial)
        return self._vm_connected(p, side, name, append is None)

    def synthvm(self, side, name, memory, backing="plain", vcpus=1, incoming=False, tag=None, **options):
        tag = tag or f"{name}-{side}-{len(self.procs)}"
        argv = [self.program("vmm-adapters/synthvm/synthvm"), "--name", name, "--memory", memory, "--backing",
                backing, "--vcpus", str(vcpus), "--engine", self.socket(side, "vmm")]
        for key, value in options.items():
            argv += ["--" + key.replace("_", "-"), str(value)]
        p = self.start(tag, argv + (["--incoming"] if incoming else []), self.ns.get(side))
        p.serial = p.log
        p.guest = lambda: guest_reports(p.log)
        return self._vm_connected(p, side, name, incoming)

    def _vm_connected(self, p, side, name, incoming):
        p.side, p.vm = side, name
        if side in self.daemons:
            want = "incoming" if incoming else "running"
            self.wait_for(lambda: self.phase(side, name) == want, 60, p, f"'{name}' to connect at {side}")
        return p

    def ramlift(self, side, *args, timeout=300):
        """Run the command line; returns (status, stdout, stderr)."""
        r = subprocess.run([self.program("engine/app/ramlift"), *args, "--rpc", self.socket(side, "rpc")],
                           capture_output=True, text=True, timeout=timeout)
        return r.returncode, r.stdout, r.stderr

    def migrate(self, frm, to, name, *args, timeout=300, show=False, address=None):
        """Returns the migration as JSON; raises when it did not complete."""
        argv = [self.program("engine/app/ramlift"), "migrate", name, "--to", address or f"{ADDRESS[to]}:7410", "--json",
                "--rpc", self.socket(frm, "rpc"), *args]
        if not self.ns:
            raise LabError("no network yet")
        r = subprocess.run(argv, stdout=subprocess.PIPE, stderr=None if show else subprocess.PIPE, text=True,
                           timeout=timeout)
        if r.returncode != 0:
            raise LabError(f"ramlift migrate: status {r.returncode}: {r.stderr or r.stdout}")
        return json.loads(r.stdout.splitlines()[-1])


def guest_reports(path):
    """The key=value lines that a guest (or synthvm, once it has one) printed so far, as dicts."""
    reports = []
    try:
        with open(path, errors="replace") as f:
            for line in f:
                pairs = dict(re.findall(r"([a-z_]+)=(-?\d+)", line))
                empty = re.search(r"phase=(incoming|receiving|ready) ", line)
                # A migration may have cut a line in two.
                if "wrong" in pairs and "writes" in pairs and line.endswith("\n") and not empty:
                    reports.append({k: int(v) for k, v in pairs.items()})
    except OSError:
        pass
    return reports


def say(text):
    print(text, file=sys.stderr, flush=True)
