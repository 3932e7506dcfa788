# SPDX-License-Identifier: BSD-3-Clause
"""scripts/bench: figures as ratios against a reference measured in the same run."""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

import lab as labs
import qemu
from lab import say

VETH = "dpdk:net_af_xdp,iface=veth0"
FRAME = 3520  # Ethernet frame at MTU 3506: the largest that AF_XDP on veth takes


def figure(name, value, unit, goal=None, holds=None):
    return {"name": name, "value": round(value, 4), "unit": unit, "goal": goal, "holds": holds}


def at_least(name, value, unit, goal):
    return figure(name, value, unit, f">= {goal}", value >= goal)


def at_most(name, value, unit, goal):
    return figure(name, value, unit, f"<= {goal}", value <= goal)


# ---- link: what the engine makes of a port ----

def cpus():
    """One CPU for each end, where there are two."""
    n = os.cpu_count() or 1
    return {"a": "0", "b": str(min(1, n - 1))}


def memif(lab, side):
    role = "server" if side == "a" else "client"
    return f"role={role},id=0,socket={lab.path('memif.sock')},socket-abstract=no"


def bare_goodput(kind, seconds):
    """Gbit/s of frames that bare DPDK moves from a to b."""
    with labs.Lab() as lab:
        lab.network()
        tool, cpu = lab.program("tests/bench/bare_dpdk"), cpus()
        vdev = {s: "net_af_xdp0,iface=veth0" if kind == "veth" else f"net_memif0,{memif(lab, s)},bsize=4096,rsize=10"
                for s in labs.SIDES}
        mac = labs.sh("ip", "netns", "exec", lab.ns["b"], "cat", "/sys/class/net/veth0/address").strip()
        # The server of a memif has to be there first; packets start when the receiver is up.
        order = ("b", "a") if kind == "veth" else ("a", "b")
        procs = {}
        for side in order:
            what = ["tx", vdev["a"], str(FRAME), str(seconds), mac] if side == "a" else \
                ["rx", vdev["b"], str(FRAME), str(seconds + 3)]
            procs[side] = lab.start(f"bare-{side}", ["taskset", "-c", cpu[side], tool, *what], lab.ns[side])
            time.sleep(1)
        for side in labs.SIDES:
            if procs[side].wait(seconds + 30) != 0:
                raise labs.LabError(f"bare_dpdk at {side}: {procs[side].text()[-500:]}")
        return json.loads(procs["b"].text().splitlines()[-1])["gbps"]


def engine_goodput(kind, memory):
    """Gbit/s of guest pages that a migration of incompressible, quiet memory moves from a to b."""
    with labs.Lab() as lab:
        lab.network()
        for side in labs.SIDES:
            uri = VETH if kind == "veth" else "dpdk:net_memif," + memif(lab, side)
            extra = {} if kind == "veth" else {"address": f"198.18.1.{1 + (side == 'b')}", "mtu": labs.MTU}
            lab.daemon(side, uri, cpus=cpus()[side], **extra)
        vm = lab.synthvm("a", "bench", memory, "hugetlb-2M", rate=0, content="random", pattern="seq")
        lab.wait_for(lambda: vm.guest(), 120, vm, "synthvm to fill its memory")
        lab.synthvm("b", "bench", memory, "hugetlb-2M", incoming=True)
        m = lab.migrate("a", "b", "bench", "--downtime-limit", "1")
        ms = m["total-time"] - m["setup-time"]
        return m["ram"]["normal-bytes"] * 8 / ms / 1e6, m


def bench_goodput(kind, quick):
    seconds, memory, rounds = (2, "512M", 1) if quick else (3, "1G", 3)
    ratios, bares, engines = [], [], []
    need = 2 * (labs.parse_size(memory) >> 20) + 64
    subprocess.run([labs.ROOT + "/scripts/setup", "hugepages", str(need)], stdout=sys.stderr, check=True)
    engine_goodput(kind, memory)  # not counted: the first touch of memory is the host's cost
    for _ in range(rounds):
        bare = bare_goodput(kind, seconds)
        engine, m = engine_goodput(kind, memory)
        say(f"bench: {kind}: bare {bare:.2f} Gbit/s, engine {engine:.2f} Gbit/s of pages, lost {m['link']['lost']}")
        bares.append(bare)
        engines.append(engine)
        ratios.append(engine / bare)
    return [
        figure(f"{kind}.bare", statistics.median(bares), "Gbit/s"),
        figure(f"{kind}.engine", statistics.median(engines), "Gbit/s"),
        at_least(f"{kind}.engine/bare", statistics.median(ratios), "ratio", 0.85),
    ]


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def bench_idle(quick):
    """CPU of a daemon with a VM connected and no migration."""
    seconds = 5 if quick else 20
    with labs.Lab() as lab:
        lab.network()
        for side in labs.SIDES:
            lab.daemon(side)
        lab.synthvm("a", "idle", "64M", rate=0)
        before = {s: cpu_seconds(lab.daemons[s].pid) for s in labs.SIDES}
        time.sleep(seconds)
        used = max(cpu_seconds(lab.daemons[s].pid) - before[s] for s in labs.SIDES) / seconds
    return [at_most("idle.cpu", used * 100, "% of a core", 1)]


# ---- guest: what a migration costs the guest that is moving ----

GUEST = "pattern=seq ws=64M rate=max content=random report=500 check=end"


def write_rate(vm, seconds, during=lambda: None):
    """Page writes per second as the guest itself counts them, from its reports within @seconds."""
    first = len(vm.guest())
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        during()
        time.sleep(0.1)
    seen = vm.guest()[first:]
    if len(seen) < 3:
        raise labs.LabError(f"the guest made only {len(seen)} reports in {seconds} s")
    t = seen[-1]["t"] - seen[0]["t"]
    return (seen[-1]["writes"] - seen[0]["writes"]) / t


def guest_under_ramlift(seconds, limit):
    with labs.Lab() as lab:
        lab.network()
        for side in labs.SIDES:
            lab.daemon(side)
        vm = lab.labvm("a", "rate", "256M", append=GUEST)
        lab.wait_for(lambda: len(vm.guest()) >= 3, 60, vm, "the guest")
        alone = write_rate(vm, seconds)
        lab.labvm("b", "rate", "256M")
        lab.ramlift("a", "migrate", "rate", "--to", labs.ADDRESS["b"], "--detach", "--max-bandwidth", str(limit),
                    "--downtime-limit", "1")
        during = write_rate(vm, seconds)
        m = lab.rpc("a", "query-migrate")
        if m["status"] != "active":
            raise labs.LabError(f"pre-copy was over too soon ({m['status']}); nothing measured")
        return alone, during


def guest_under_qemu(seconds, limit):
    with labs.Lab() as lab, qemu.Pair(lab, "256M", lab.program("vmm-adapters/labvm/ramlift-guest"), GUEST) as pair:
        lab.wait_for(lambda: len(pair.source.guest()) >= 3, 60, pair.source, "the guest under QEMU")
        alone = write_rate(pair.source, seconds)
        pair.migrate(max_bandwidth=limit, downtime_limit=1)
        during = write_rate(pair.source, seconds)
        status = pair.status()
        if status != "active":
            raise labs.LabError(f"QEMU's pre-copy was over too soon ({status}); nothing measured")
        return alone, during


def bench_guest(quick):
    seconds, limit = (6, 20 << 20) if quick else (12, 20 << 20)
    alone, during = guest_under_ramlift(seconds, limit)
    results = [
        figure("guest.alone", alone, "page writes/s"),
        figure("guest.precopy", during, "page writes/s"),
        figure("guest.precopy/alone", during / alone, "ratio"),
    ]
    if shutil.which("qemu-system-x86_64") is None:
        say("bench: qemu-system-x86_64 is missing: no comparison (scripts/setup install)")
        return results
    q_alone, q_during = guest_under_qemu(seconds, limit)
    return results + [
        figure("guest.qemu.alone", q_alone, "page writes/s"),
        figure("guest.qemu.precopy", q_during, "page writes/s"),
        figure("guest.qemu.precopy/alone", q_during / q_alone, "ratio"),
        at_least("guest.precopy/qemu.precopy", (during / alone) / (q_during / q_alone), "ratio of ratios", 1.0),
    ]


# ---- harvest: cost of a dirty page, whatever the size of the guest ----

def harvest_cost(memory, seconds):
    """ns per dirty entry for harvesting and publishing, and for KVM's reset, in a pre-copy of @seconds."""
    with labs.Lab() as lab:
        lab.network()
        for side in labs.SIDES:
            lab.daemon(side)
        vm = lab.labvm("a", "harvest", memory, append="pattern=random ws=192M rate=60000 content=zero report=500")
        lab.wait_for(lambda: len(vm.guest()) >= 2, 60, vm, "the guest")
        lab.labvm("b", "harvest", memory)
        lab.ramlift("a", "migrate", "harvest", "--to", labs.ADDRESS["b"], "--detach", "--max-bandwidth", "40M",
                    "--downtime-limit", "1")
        time.sleep(seconds)
        d = lab.rpc("a", "query-migrate")["dirty"]
        if d["entries"] < 10000:
            raise labs.LabError(f"only {d['entries']} dirty entries in {seconds} s")
        return d["harvest-ns"] / d["entries"], d["reset-ns"] / d["entries"], d["entries"]


def bench_harvest(quick):
    seconds, rounds = (6, 1) if quick else (10, 3)
    runs = [(harvest_cost("1G", seconds), harvest_cost("16G", seconds)) for _ in range(rounds)]
    for small, large in runs:
        say(f"bench: harvest ns/entry 1G {small[0]:.1f} ({small[2]} entries), 16G {large[0]:.1f} ({large[2]})")
    ratio = statistics.median(large[0] / small[0] for small, large in runs)
    return [
        figure("harvest.1G", statistics.median(r[0][0] for r in runs), "ns/dirty page"),
        figure("harvest.16G", statistics.median(r[1][0] for r in runs), "ns/dirty page"),
        figure("reset.1G", statistics.median(r[0][1] for r in runs), "ns/dirty page"),
        figure("reset.16G", statistics.median(r[1][1] for r in runs), "ns/dirty page"),
        at_most("harvest.16G/1G", ratio, "ratio", 1.25),
    ]


# ---- crypto: what sealing costs ----

def bench_crypto(quick):
    tool = os.path.join(os.environ.get("RAMLIFT_BUILD", os.path.join(labs.ROOT, "build")), "tests/bench/crypto")
    out = json.loads(labs.sh(tool, "5" if quick else "30"))
    results = []
    for size in (1400, 3440):
        for verb in ("seal", "open"):
            ours, evp = out[f"{verb}-{size}"], out[f"evp-{verb}-{size}"]
            results += [figure(f"{verb}-{size}", ours["cycles"], "TSC cycles/packet"),
                        figure(f"{verb}-{size}-gbps", ours["gbps"], "Gbit/s per core"),
                        figure(f"evp-{verb}-{size}", evp["cycles"], "TSC cycles/packet"),
                        at_least(f"{verb}-{size}-vs-evp", evp["cycles"] / ours["cycles"], "times faster", 2)]
    return results


def bench_link(quick):
    results = []
    for part in (lambda: bench_goodput("veth", quick), lambda: bench_goodput("memif", quick),
                 lambda: bench_idle(quick), lambda: bench_guest(quick), lambda: bench_harvest(quick)):
        results += part()
    return results


# ---- wan-sim: the share of a long, lossy link that a migration gets, on a virtual clock ----

def wan_sim(*args):
    tool = os.path.join(os.environ.get("RAMLIFT_BUILD", os.path.join(labs.ROOT, "build")), "tests/bench/wan_sim")
    return [json.loads(line) for line in labs.sh(tool, *args).splitlines()]


def bench_wan_sim(quick):
    """Goals are for the default, BBR; CUBIC runs beside it for comparison."""
    results = []
    for cc in ("bbr", "cubic"):
        for r in wan_sim("--cc", cc, *(["--seconds", "12", "--seed", "1"] if quick else ["--seed", "1"])):
            name, unit = f"{cc}.{r['cell']}.{r['figure']}", "ms" if r["figure"].endswith("-ms") else "ratio"
            if cc == "bbr" and r["goal"] > 0:
                results.append(at_least(name, r["value"], unit, round(r["goal"], 4)))
            else:
                results.append(figure(name, r["value"], unit))
        say(f"bench: wan-sim: {cc}: seed {r['seed']}")
    return results


BENCHES = {
    "link": (bench_link, "root, /dev/kvm, QEMU for the comparison", "4 min (--quick 1.5 min)"),
    "goodput": (lambda q: bench_goodput("veth", q) + bench_goodput("memif", q), "root", "1 min"),
    "idle": (bench_idle, "root", "25 s"),
    "guest": (bench_guest, "root, /dev/kvm, QEMU for the comparison", "1 min"),
    "crypto": (bench_crypto, "nothing", "5 s"),
    "wan-sim": (bench_wan_sim, "nothing", "1.5 min (--quick 1 min)"),
    "harvest": (bench_harvest, "root, /dev/kvm", "1.5 min"),
}


def main():
    p = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    p.add_argument("name", nargs="?", choices=sorted(BENCHES))
    p.add_argument("--json", action="store_true", help="the last line on stdout is JSON")
    p.add_argument("--quick", action="store_true", help="shorter, same output")
    p.add_argument("--list", action="store_true", help="all benchmarks, what they need, how long they take")
    args = p.parse_args()
    if args.list or args.name is None:
        for name, (_, needs, takes) in BENCHES.items():
            print(f"{name:10} {takes:26} needs {needs}")
        return 0 if args.list else 2
    try:
        results = BENCHES[args.name][0](args.quick)
    except (labs.LabError, subprocess.SubprocessError) as e:
        say(f"bench: {e}")
        return 1
    if args.json:
        print(json.dumps({"bench": args.name, "machine": labs.machine(), "results": results}, separators=(",", ":")))
    else:
        for r in results:
            mark = "" if r["holds"] is None else ("  holds" if r["holds"] else "  MISSED")
            print(f"{r['name']:36} {r['value']:>16,.4g} {r['unit']:18} {r['goal'] or '':10}{mark}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
