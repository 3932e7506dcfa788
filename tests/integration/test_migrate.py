# SPDX-License-Identifier: BSD-3-Clause
"""Guests move, whatever they are made of and whatever they move over, and every page is right."""
import os
import time

import integ
import lab as labs
from integ import Guest, check, daemons


def there_and_back(lab, *args, **guest):
    g = Guest(lab, **guest)
    results = [g.migrate(*args), g.migrate(*args)]
    g.stop()
    return results


def plain_ring(lab):
    daemons(lab)
    first, second = there_and_back(lab, append="rate=4000 pattern=random")
    for r in (first, second):
        check(r["ram"]["normal"] > 0 and r["ram"]["total"] >= 60 << 20, f"odd counters: {r['ram']}")
        check(r["dirty"]["entries"] > 0, f"nothing was dirty: {r['dirty']}")


def plain_bitmap(lab):
    daemons(lab)
    there_and_back(lab, append="rate=4000 pattern=random", dirty="bitmap")


def thp_four_vcpus(lab):
    daemons(lab)
    there_and_back(lab, backing="thp", vcpus=4, append="rate=8000 pattern=hot")


def hugetlb(lab):
    integ.need_hugepages(2 * 128)
    daemons(lab)
    there_and_back(lab, backing="hugetlb-2M", memory="128M", append="rate=8000")


def hugetlb_bitmap_four_vcpus(lab):
    integ.need_hugepages(2 * 128)
    daemons(lab)
    there_and_back(lab, backing="hugetlb-2M", memory="128M", vcpus=4, dirty="bitmap", append="rate=8000")


def rewrite(lab):
    """Pages that get dirty without changing."""
    daemons(lab)
    there_and_back(lab, append="rate=4000 pattern=rewrite content=text")


def ipv6(lab):
    daemons(lab)
    g = Guest(lab)
    r = g.migrate(address="[fd00::2]:7410")
    check("fd00::2" in r["peer"], f"peer is {r['peer']}")
    r = g.migrate(address="[fd00::1]")
    check("fd00::1" in r["peer"], f"peer is {r['peer']}")
    g.stop()


def overflowing_rings(lab):
    """A writer in ring 0 overflows small rings where KVM emulates it; nothing may be lost then either."""
    daemons(lab)
    g = Guest(lab, append="rate=max ring=0 ws=90% pattern=random",
              options=("--ring-entries", "2048"))
    total = {"overflows": 0, "ring-full-exits": 0, "pressure": 0}
    for _ in range(2):
        dirty = g.migrate("--timeout", "1", "--timeout-strategy", "switchover")["dirty"]
        total = {k: n + dirty[k] for k, n in total.items()}
    g.stop()
    print(f"     {total}")
    check(sum(total.values()) > 0, "a ring of 2048 entries never came near to being full")
    if total["overflows"] == 0:
        print("     no overflow: this KVM leaves the guest's run loop in time when a ring is nearly full")


def reslotted(lab, **vm):
    """A slot that comes back is dirty wherever it is touched, so this guest may never converge."""
    daemons(lab)
    g = Guest(lab, append="rate=4000 slots=60", **vm)
    dirty = [g.migrate("--max-bandwidth", "100M", "--timeout", "2", "--timeout-strategy", "switchover")["dirty"]
             for _ in range(2)]
    check(sum(d["drains"] for d in dirty) > 10, f"no slot was deleted while a migration was under way: {dirty}")
    g.stop()


def slots_come_and_go(lab):
    reslotted(lab)


def slots_come_and_go_bitmap(lab):
    reslotted(lab, dirty="bitmap")


def bandwidth_is_held(lab):
    """max-bandwidth counts bytes on the wire: never more than 10 % above, and no less than 10 % below in half a second in
    which nobody else wants the processor."""
    daemons(lab)
    g = Guest(lab, memory="128M", append="rate=1000 content=random cold=75%")
    mid = g.begin(max_bandwidth=32 << 20, verify=True)
    integ.wait_status(lab, "a", mid, ["active"])
    time.sleep(0.3)
    rates, last, at = [], None, 0
    while (m := integ.query(lab, "a", mid))["status"] == "active":
        now = time.monotonic()
        if last is not None:
            rates.append((m["ram"]["transferred"] - last) / (now - at) / (32 << 20))
        last, at = m["ram"]["transferred"], now
        time.sleep(0.5)
    r = integ.wait_ended(lab, "a", mid)
    check(r["status"] == "completed" and r["verified"], f"{r['status']}: {r.get('error-desc')}")
    check(len(rates) >= 3 and max(rates) < 1.1 and max(rates) > 0.3, f"of max-bandwidth in each half second: {rates}")
    g.arrived()
    g.stop()


def no_kvm(lab):
    daemons(lab)
    g = Guest(lab, synth=True, vcpus=2, append="rate=4000 pattern=hot")
    for _ in range(2):
        g.migrate()
    g.stop()


def many_at_once(lab):
    """Four migrations, two each way."""
    daemons(lab)
    guests = [Guest(lab, name=f"many{i}", side="ab"[i % 2], synth=True, memory="48M", append="rate=2000")
              for i in range(4)]
    ids = [g.begin(verify=True, max_bandwidth=20 << 20) for g in guests]
    together = 0
    for g, mid in zip(guests, ids):
        together = max(together, sum(m["status"] == "active" for m in lab.rpc("a", "list")["migrations"]))
        r = integ.wait_ended(lab, g.side, mid)
        check(r["status"] == "completed" and r["verified"], f"{g.name}: {r['status']}: {r.get('error-desc')}")
    for g in guests:
        g.arrived()
        g.stop()
    check(together >= 2, "the migrations did not overlap")


def held_by(pid):
    with open(f"/proc/{pid}/maps") as f:
        maps = sum(1 for _ in f)
    return len(os.listdir(f"/proc/{pid}/fd")), maps


def nothing_left_over(lab):
    """After ten migrations the daemons hold no more descriptors and mappings than after the first two."""
    daemons(lab)
    g = Guest(lab, memory="32M", append="rate=500")
    counts = {}
    for number in range(10):
        g.migrate()
        if number in (1, 9):
            g.target()
            counts[number] = {s: held_by(lab.daemons[s].pid) for s in labs.SIDES}
    g.stop()
    for s in labs.SIDES:
        (fds, maps), (fds2, maps2) = counts[1][s], counts[9][s]
        # An ended migration is remembered with its two eventfds.
        check(fds2 <= fds + 2 * 8 + 2, f"descriptors at {s}: {fds} -> {fds2}")
        check(maps2 <= maps + 16, f"mappings at {s}: {maps} -> {maps2}")


def dropping_nics(lab):
    """Each NIC drops 5 % of what it receives."""
    daemons(lab, per_side={"a": {"drop_seed": 3}, "b": {"drop_seed": 4}}, drop_percent=5)
    g = Guest(lab)
    for _ in range(2):
        r = g.migrate()
        check(r["link"]["lost"] > 0, f"nothing was lost: {r['link']}")
    g.stop()


def two_workers(lab):
    daemons(lab, workers=2)
    g = Guest(lab, vcpus=2, append="rate=8000")
    for _ in range(2):
        g.migrate()
    for side in labs.SIDES:
        packets = [w["rx-packets"] for w in lab.rpc(side, "stats")["workers"]]
        check(len(packets) == 2 and min(packets) > 0, f"not all workers were used at {side}: {packets}")
    g.stop()


def workers_differ(lab):
    daemons(lab, per_side={"a": {"workers": 2}, "b": {"workers": 1}})
    there_and_back(lab)


def kernel_sockets(lab):
    daemons(lab, uri="udp:")
    there_and_back(lab, append="rate=8000")


def kernel_sockets_ipv6(lab):
    daemons(lab, uri="udp:", per_side={s: {"address": labs.ADDRESS6[s]} for s in labs.SIDES})
    g = Guest(lab)
    g.migrate(address="[fd00::2]:7410")
    g.stop()


def memif(lab):
    """Shared memory instead of a NIC; only the control channel uses the network."""
    path = lab.path("memif.sock")
    ends = {s: {"uri": f"dpdk:net_memif,role={role},id=0,socket={path},socket-abstract=no", "address": f"10.9.9.{n}"}
            for s, role, n in (("a", "server", 1), ("b", "client", 2))}
    daemons(lab, per_side=ends)
    there_and_back(lab, append="rate=8000")


if __name__ == "__main__":
    integ.main([plain_ring, plain_bitmap, thp_four_vcpus, hugetlb, hugetlb_bitmap_four_vcpus, rewrite, ipv6,
                overflowing_rings, slots_come_and_go, slots_come_and_go_bitmap, bandwidth_is_held, no_kvm,
                many_at_once, nothing_left_over, dropping_nics, two_workers, workers_differ, kernel_sockets,
                kernel_sockets_ipv6, memif])
