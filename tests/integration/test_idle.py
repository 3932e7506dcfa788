# SPDX-License-Identifier: BSD-3-Clause
"""A daemon with nothing to do leaves the processor alone."""
import os
import time

import integ
import lab as labs
from integ import Guest, check, daemons

SECONDS = 3


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime


def measure(lab):
    g = Guest(lab)
    g.target()
    time.sleep(0.5)
    before = {s: cpu_seconds(lab.daemons[s].pid) for s in labs.SIDES}
    time.sleep(SECONDS)
    used = {s: (cpu_seconds(lab.daemons[s].pid) - before[s]) / SECONDS for s in labs.SIDES}
    g.migrate()
    time.sleep(1)
    before = {s: cpu_seconds(lab.daemons[s].pid) for s in labs.SIDES}
    time.sleep(SECONDS)
    after = {s: (cpu_seconds(lab.daemons[s].pid) - before[s]) / SECONDS for s in labs.SIDES}
    g.stop()
    for s in labs.SIDES:
        check(used[s] < 0.01, f"ramliftd at {s} used {used[s]:.1%} of a CPU before any migration")
        check(after[s] < 0.01, f"ramliftd at {s} used {after[s]:.1%} of a CPU after a migration")


def idle_af_xdp(lab):
    daemons(lab)
    measure(lab)


def idle_kernel_sockets(lab):
    daemons(lab, uri="udp:")
    measure(lab)


if __name__ == "__main__":
    integ.main([idle_af_xdp, idle_kernel_sockets])
