# SPDX-License-Identifier: BSD-3-Clause
"""Two stock QEMUs with a guest at the first, to compare against."""
import json
import os
import re
import socket

import lab as labs


def tsc_khz():
    """The guest under test times itself by the TSC; labvm tells it the rate, QEMU does not."""
    for line in open("/proc/cpuinfo"):
        m = re.match(r"cpu MHz\s*:\s*([\d.]+)", line)
        if m:
            return int(float(m.group(1)) * 1000)
    raise labs.LabError("no 'cpu MHz' in /proc/cpuinfo")


class Qmp:
    def __init__(self, path):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.settimeout(20)
        self.s.connect(path)
        self.f = self.s.makefile("rw")
        self.f.readline()
        self.call("qmp_capabilities")

    def call(self, command, **arguments):
        arguments = {k.replace("_", "-"): v for k, v in arguments.items()}
        self.f.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.f.flush()
        while True:
            reply = json.loads(self.f.readline())
            if "error" in reply:
                raise labs.LabError(f"QEMU: {command}: {reply['error']['desc']}")
            if "return" in reply:
                return reply["return"]


class Pair:
    """Both on this host; the stream goes over TCP on loopback."""

    def __init__(self, lab, memory, kernel, append, port=7499):
        self.lab, self.port = lab, port
        append = f"tsc_khz={tsc_khz()} cpus=1 {append}"
        self.source = self._start("source", memory, kernel, append, [])
        self.target = self._start("target", memory, kernel, append, ["-incoming", f"tcp:127.0.0.1:{port}"])

    def _start(self, name, memory, kernel, append, extra):
        lab, qmp = self.lab, self.lab.path(f"qemu-{name}.qmp")
        p = lab.start(f"qemu-{name}", ["qemu-system-x86_64", "-accel", "kvm", "-m", memory, "-nodefaults",
                                       "-display", "none", "-kernel", kernel, "-append", append,
                                       "-serial", f"file:{lab.path(name)}.serial", "-qmp",
                                       f"unix:{qmp},server=on,wait=off", *extra])
        p.serial = lab.path(name) + ".serial"
        p.guest = lambda: labs.guest_reports(p.serial)
        lab.wait_for(lambda: os.path.exists(qmp), 20, p, "QEMU's QMP socket")
        p.qmp = Qmp(qmp)
        return p

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return None  # the lab stops its processes

    def migrate(self, max_bandwidth, downtime_limit):
        q = self.source.qmp
        q.call("migrate-set-parameters", max_bandwidth=max_bandwidth, downtime_limit=downtime_limit)
        q.call("migrate", uri=f"tcp:127.0.0.1:{self.port}")

    def status(self):
        return self.source.qmp.call("query-migrate").get("status")
