# SPDX-License-Identifier: BSD-3-Clause
"""scripts/demo: a guest that keeps writing moves from host a to host b, live, and every page is right."""
import argparse
import json
import subprocess
import sys

import lab as labs
from lab import say


def arguments():
    p = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    p.add_argument("--memory", default="1G", help="guest RAM (default 1G)")
    p.add_argument("--backing", default="hugetlb-2M", choices=["hugetlb-2M", "hugetlb-1G", "thp", "plain"])
    p.add_argument("--vcpus", type=int, default=1)
    p.add_argument("--rate", default="20000", help="page writes per second, or 'max' (default 20000)")
    p.add_argument("--pattern", default="random", help="what the guest writes: seq, random, hot or rewrite")
    p.add_argument("--ring0", action="store_true", help="a writer in ring 0: floods dirty rings where KVM emulates it")
    p.add_argument("--ring-entries", default="65536", help="per vCPU; with 2048 a ring-0 writer overflows them")
    p.add_argument("--dirty", default="ring", choices=["ring", "bitmap"], help="KVM's dirty ring or bitmap")
    p.add_argument("--max-bandwidth", help="bytes/s, with K, M, G")
    p.add_argument("--downtime-limit", help="milliseconds (default 300)")
    p.add_argument("--drop", default="0", help="percent of packets that the NIC drops at random")
    p.add_argument("--uri", default="dpdk:net_af_xdp,iface=veth0", help="the port of both hosts")
    p.add_argument("--workers", type=int, default=1)
    p.add_argument("--repeat", type=int, default=1, help="so many migrations, there and back")
    p.add_argument("--no-kvm", action="store_true", help="synthvm instead of a KVM guest")
    p.add_argument("--json", action="store_true", help="one JSON line on stdout at the end")
    p.add_argument("--keep-logs", action="store_true")
    return p.parse_args()


def hugepages(args):
    if args.backing == "hugetlb-2M":
        need = 2 * (labs.parse_size(args.memory) >> 20) + 64
        r = subprocess.run([labs.ROOT + "/scripts/setup", "hugepages", str(need)], stdout=sys.stderr)
        if r.returncode != 0:
            raise labs.LabError("no hugepages; try --backing plain, or less --memory")


def start_vm(lab, args, side, incoming):
    if args.no_kvm:
        writer = {} if incoming else {"rate": args.rate, "pattern": {"rewrite": "hot"}.get(args.pattern, args.pattern)}
        return lab.synthvm(side, "demo", args.memory, args.backing, args.vcpus, incoming, **writer)
    append = f"pattern={args.pattern} rate={args.rate} ring={0 if args.ring0 else 3} report=500 check=continuous"
    return lab.labvm(side, "demo", args.memory, args.backing, args.vcpus, None if incoming else append, args.dirty,
                     options=("--ring-entries", args.ring_entries))


def wait_for_checks(lab, vm, more, what):
    """Until the guest has printed @more further reports; the last one says whether any page was wrong."""
    seen = len(vm.guest())
    lab.wait_for(lambda: len(vm.guest()) >= seen + more, 120, vm, what)
    return vm.guest()[-1]


def one_trip(lab, args, source, number):
    frm, to = source.side, "b" if source.side == "a" else "a"
    target = start_vm(lab, args, to, True)
    options = ["--verify"]
    if args.max_bandwidth:
        options += ["--max-bandwidth", args.max_bandwidth]
    if args.downtime_limit:
        options += ["--downtime-limit", args.downtime_limit]
    before = source.guest()[-1]
    say(f"demo: migration {number}: {frm} -> {to}, the guest has made {before.get('writes', 0)} page writes")
    result = lab.migrate(frm, to, "demo", *options, show=True)
    after = wait_for_checks(lab, target, 3, "the guest to report from the target")
    if after["wrong"] != 0:
        raise labs.LabError(f"the guest found {after['wrong']} wrong pages:\n{target.text()[-2000:]}")
    if after.get("writes", 0) <= before.get("writes", 0) and args.rate != "0":
        raise labs.LabError("the guest does not go on at the target")
    source.wait(20)
    ram, down = result["ram"], result["downtime"]
    say(f"demo: it runs at {to}: downtime {down} ms, total {result['total-time']} ms, "
        f"{ram['transferred'] >> 20} MiB sent; {after.get('checked', 0)} pages checked by the guest itself, "
        f"{after['wrong']} wrong; digests of all memory {'equal' if result['verified'] else 'NOT COMPARED'}")
    return target, result


def summary(results):
    last, n = results[-1], len(results)
    mean = lambda f: round(sum(f(r) for r in results) / n)
    return {
        "status": last["status"], "mode": last["mode"], "migrations": n,
        "total_time_ms": mean(lambda r: r["total-time"]), "downtime_ms": mean(lambda r: r["downtime"]),
        "transferred_bytes": mean(lambda r: r["ram"]["transferred"]),
        "normal_pages": mean(lambda r: r["ram"]["normal"]),
        "duplicate_pages": mean(lambda r: r["ram"]["duplicate"]),
        "dirty_sync_count": mean(lambda r: r["ram"]["dirty-sync-count"]),
        "ring_full_exits": sum(r["dirty"]["ring-full-exits"] for r in results),
        "ring_overflows": sum(r["dirty"]["overflows"] for r in results),
        "lost_packets": sum(r["link"]["lost"] for r in results),
        "verified": all(r["verified"] for r in results),
    }


def run(lab, args):
    hugepages(args)
    lab.network(args.workers)
    say(f"demo: two namespaces, {args.uri} on both; starting ramliftd in each")
    for side in labs.SIDES:
        lab.daemon(side, args.uri, workers=args.workers, drop_percent=args.drop, drop_seed=7 + ord(side))
    vm = start_vm(lab, args, "a", False)
    say(f"demo: guest '{vm.vm}' of {args.memory} ({args.backing}) boots at a and writes {args.rate} pages/s")
    wait_for_checks(lab, vm, 2, "the guest to report")
    results = []
    for number in range(1, args.repeat + 1):
        vm, result = one_trip(lab, args, vm, number)
        results.append(result)
    return summary(results)


def main():
    args = arguments()
    with labs.Lab(keep=args.keep_logs) as lab:
        try:
            result = run(lab, args)
        except (labs.LabError, subprocess.TimeoutExpired) as e:
            say(f"demo: {e}")
            for side in lab.daemons:
                say(f"--- ramliftd at {side}:\n{lab.daemons[side].text()[-1500:]}")
            result = {"status": "failed", "error": str(e).splitlines()[0], "verified": False}
        except KeyboardInterrupt:
            say("\ndemo: interrupted; cleaning up")
            return 130
        if args.keep_logs:
            say(f"demo: logs are in {lab.dir}")
    if args.json:
        print(json.dumps(result, separators=(",", ":")))
    else:
        say("demo: " + ", ".join(f"{k}={v}" for k, v in result.items()))
    return 0 if result["status"] == "completed" and result["verified"] else 1


if __name__ == "__main__":
    sys.exit(main())
