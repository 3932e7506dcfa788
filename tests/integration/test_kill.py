# SPDX-License-Identifier: BSD-3-Clause
"""Whoever is killed and whatever is cut, whenever: the guest lives on at exactly one side, and is all right.

Each party of a migration is killed with SIGKILL at ten points: at random in setup, pre-copy and the last round, and
at four exact ones in the switch-over, which are reached by stopping a party for a moment:

  loading    the target's VMM has the device state to load
  ready      the target said READY, the source's VMM has COMMITTING to answer
  committed  the source has committed, its COMMIT is not read yet
  run        the target's VMM has RUN to answer
"""
import os
import random
import signal
import time

import integ
import lab as labs
from integ import OTHER, Guest, check, daemons, wait_status

MIB = 1 << 20
EXACT = ("loading", "ready", "committed", "run")
POINTS = ("setup", "setup", "active", "active", "last", "last") + EXACT
ENDED = ("completed", "failed", "cancelled")
RESOLVED_S = 15


class Parties:
    """Who takes part in a migration of @g that is about to begin."""

    def __init__(self, g):
        g.target()
        lab = g.lab
        self.g, self.lab, self.frm, self.to = g, lab, g.side, OTHER[g.side]
        self.source_daemon, self.target_daemon = lab.daemons[self.frm], lab.daemons[self.to]
        self.source_vmm, self.target_vmm = g.vm, g.waiting
        self.frozen = []

    def freeze(self, p):
        p.freeze()
        self.frozen.append(p)

    def thaw(self, p):
        p.thaw()
        self.frozen.remove(p)

    def thaw_all(self):
        for p in list(self.frozen):
            self.thaw(p)

    def until_phase(self, side, phase):
        end = time.monotonic() + 10
        while (now := self.lab.phase(side, self.g.name)) != phase:
            check(time.monotonic() < end, f"'{self.g.name}' is {now} at {side} instead of {phase}")
            time.sleep(0.002)

    def reach(self, point, rng):
        """Start a migration and stop it at @point; returns its id."""
        # Slow enough that it takes a good second, and that 0.3 s of pages are left for the last round.
        mid = self.g.begin(max_bandwidth=40 * MIB, downtime_limit=300)
        if point == "setup":
            time.sleep(rng.random() * 0.02)
        elif point == "active":
            wait_status(self.lab, self.frm, mid, ["active"])
            time.sleep(rng.random() * 0.7)
        elif point == "last":
            wait_status(self.lab, self.frm, mid, ["device"])
            time.sleep(rng.random() * 0.25)
        if point not in EXACT:
            return mid
        wait_status(self.lab, self.frm, mid, ["active"])
        self.freeze(self.target_vmm)
        wait_status(self.lab, self.to, mid, ["device"])
        if point == "loading":
            return mid
        self.freeze(self.source_vmm)
        self.thaw(self.target_vmm)
        self.until_phase(self.to, "ready")
        if point == "ready":
            return mid
        self.freeze(self.target_daemon if point == "committed" else self.target_vmm)
        self.thaw(self.source_vmm)
        self.until_phase(self.frm, "committed")
        time.sleep(0.05)
        return mid


def sizes(vms):
    return [os.path.getsize(vm.serial) for vm in vms]


def growing(g, vms):
    """Which of these VMs have a guest that runs? Looks for half a second, five reports."""
    for _ in range(2):
        before = sizes(vms)
        time.sleep(0.5)
        live = [vm for vm, old, new in zip(vms, before, sizes(vms)) if new > old]
        if len(live) < 2:
            return live
        # Either the guest moved just now, or the worst has happened.
    raise integ.Failure(f"TWO GUESTS RUN: {[g.reports(v)[-1:] for v in vms]}")


def settle(g, parties, deadline):
    """Until one guest runs for good and no migration is under way. Returns the VM, or None: there is no guest."""
    lab, vms = g.lab, (parties.source_vmm, parties.target_vmm)
    while True:
        live = growing(g, vms)
        phases = {s: lab.phase(s, g.name) for s in labs.SIDES}
        done = integ.settled(lab)
        if done and live and phases[live[0].side] == "running" and phases[OTHER[live[0].side]] in (None, "incoming"):
            return live[0]
        if done and not live and phases[parties.frm] is None and phases[parties.to] in (None, "incoming"):
            return None
        check(time.monotonic() < deadline,
              f"not resolved: {[v.side for v in live]} run, phases {phases}, "
              f"{[(m['role'], m['status'], m.get('error-desc')) for s in labs.SIDES for m in lab.rpc(s, 'list')['migrations'] if m['status'] not in ENDED]}")


def follow(g, parties, winner):
    """The guest lives in @winner now. What the other VM said must fit: nothing ran twice."""
    source, target = g.reports(parties.source_vmm), g.reports(parties.target_vmm)
    for reports in (source, target):
        check(not reports or reports[-1]["wrong"] == 0, f"wrong pages: {reports[-1:]}")
    if winner is parties.source_vmm:
        check(not target, f"the guest runs at the source, and it had run at the target: {target}")
        g.wait_reports(3)
        return
    check(target[0]["writes"] >= source[-1]["writes"],
          f"the source went on after the switch-over: {source[-1]}, but the target began with {target[0]}")
    g.vm, g.waiting, g.side = parties.target_vmm, None, parties.to
    g.wait_reports(3)
    if parties.source_vmm.alive():
        parties.source_vmm.wait(10)  # its guest moved: nothing is left for it to do


def kill_at(g, victims, point, rng, sig):
    """Returns the guest to go on with."""
    lab, parties = g.lab, Parties(g)
    parties.reach(point, rng)
    killed = time.monotonic()
    for name in victims:
        getattr(parties, name).kill(sig)
    if sig == signal.SIGTERM:
        parties.thaw_all()  # they have to finish what they are at
    for name in victims:
        getattr(parties, name).wait(15)
    if rng.random() < 0.5:
        parties.thaw_all()
    for side, name in ((parties.frm, "source_daemon"), (parties.to, "target_daemon")):
        if name in victims:
            lab.restart(side, timeout=3)
    parties.thaw_all()
    winner = settle(g, parties, killed + RESOLVED_S)
    took = time.monotonic() - killed
    if winner is not None:
        follow(g, parties, winner)
    else:
        # A guest dies with its VMM, unless the target was ready for it.
        home = "target_vmm" if g.reports(parties.target_vmm) else "source_vmm"
        check(home in victims and (point not in EXACT[1:] or home == "target_vmm"),
              f"nobody runs the guest after {victims} ended at {point}")
        g.stop()
        g = Guest(lab, append=g.append)
    if "target_vmm" in victims and point in EXACT:
        check(winner is parties.source_vmm, f"the guest is not back at the source after {point}")
    where = "gone with its VMM" if winner is None else "at the source" if winner is parties.source_vmm else "at the target"
    print(f"     {sig.name} to {' and '.join(victims)} at {point}: guest {where} after {took:.1f} s", flush=True)
    g.migrate()
    return g


def kill_at_all(lab, *victims, points=POINTS, sig=signal.SIGKILL):
    seed = int(os.environ.get("RAMLIFT_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"     RAMLIFT_SEED={seed}", flush=True)
    rng = random.Random(seed)
    daemons(lab)
    g = Guest(lab, append="rate=2000 pattern=random content=random cold=65%")
    for point in points:
        g = kill_at(g, victims, point, rng, sig)
    g.stop()


def source_daemon(lab):
    kill_at_all(lab, "source_daemon")


def target_daemon(lab):
    kill_at_all(lab, "target_daemon")


def source_vmm(lab):
    kill_at_all(lab, "source_vmm")


def target_vmm(lab):
    kill_at_all(lab, "target_vmm")


def both_daemons(lab):
    kill_at_all(lab, "source_daemon", "target_daemon", points=EXACT)


def source_host(lab):
    """Daemon and VMM at once. (Gone after READY but before COMMIT left: an operator must decide.)"""
    kill_at_all(lab, "source_daemon", "source_vmm", points=("active", "run"))


def target_host(lab):
    """Daemon and VMM at once. (Gone with COMMIT under way: an operator must decide.)"""
    kill_at_all(lab, "target_daemon", "target_vmm", points=("active",) + EXACT[:2])


def source_daemon_told_to_stop(lab):
    kill_at_all(lab, "source_daemon", points=EXACT[1:], sig=signal.SIGTERM)


def target_daemon_told_to_stop(lab):
    kill_at_all(lab, "target_daemon", points=EXACT[1:], sig=signal.SIGTERM)


def cut(lab, seconds):
    """The link goes down for some guests in pre-copy, loading, ready and committed at once."""
    daemons(lab)
    rng = random.Random(1)
    guests = [Guest(lab, name=f"cut-{p}", memory="48M", append="rate=1000") for p in ("active",) + EXACT[:2]]
    all_parties = []
    for g, point in zip(guests, ("active",) + EXACT[:2]):
        p = Parties(g)
        if point == "active":
            g.begin(max_bandwidth=2 * MIB)
        else:
            p.reach(point, rng)
        all_parties.append(p)
    time.sleep(0.3)
    lab.link("a", "down")
    for p in all_parties:
        p.thaw_all()
    time.sleep(1)
    guests[0].wait_reports(3)  # in pre-copy the guest does not notice
    time.sleep(max(0, seconds - 1.3))
    for g, p in zip(guests, all_parties):
        growing(g, (p.source_vmm, p.target_vmm))
    lab.link("a", "up")
    up = time.monotonic()
    for g, p in zip(guests, all_parties):
        if g.name == "cut-active":
            for m in lab.rpc("a", "list")["migrations"]:
                if m["vm"] == g.name and m["status"] not in ENDED:
                    lab.rpc("a", "migrate-set-parameters", id=m["id"], max_bandwidth=0)
        winner = settle_one(g, p, up + RESOLVED_S)
        print(f"     {g.name}: guest at the {'source' if winner is p.source_vmm else 'target'}", flush=True)
        check(winner is not None, f"nobody runs '{g.name}'")
        follow(g, p, winner)
    for g in guests:
        g.migrate()
        g.stop()


def settle_one(g, parties, deadline):
    """As settle(), with other migrations around: the phases of this VM decide."""
    lab, vms = g.lab, (parties.source_vmm, parties.target_vmm)
    while True:
        live = growing(g, vms)
        phases = {s: lab.phase(s, g.name) for s in labs.SIDES}
        if live and phases[live[0].side] == "running" and phases[OTHER[live[0].side]] in (None, "incoming"):
            return live[0]
        check(time.monotonic() < deadline, f"'{g.name}' is not resolved: {[v.side for v in live]} run, phases {phases}")


def cut_for_3_s(lab):
    cut(lab, 3)


def cut_for_30_s(lab):
    cut(lab, 30)


def vmm_that_sleeps(lab):
    """The target's VMM does not answer RUN in time, and runs the guest all the same when it wakes up."""
    daemons(lab)
    g = Guest(lab)
    p = Parties(g)
    p.reach("run", random.Random(1))
    for _ in range(24):  # longer than any request's deadline but the guest's life
        live = growing(g, (p.source_vmm, p.target_vmm))
        check(not live, f"the guest runs at {[v.side for v in live]}, although the target's VMM has RUN")
    p.thaw_all()
    winner = settle(g, p, time.monotonic() + RESOLVED_S)
    check(winner is not None, "nobody runs the guest")
    follow(g, p, winner)
    g.migrate()
    g.stop()


if __name__ == "__main__":
    integ.main([source_daemon, target_daemon, source_vmm, target_vmm, both_daemons, source_host, target_host,
                source_daemon_told_to_stop, target_daemon_told_to_stop, vmm_that_sleeps, cut_for_3_s, cut_for_30_s])
