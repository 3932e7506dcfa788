# SPDX-License-Identifier: BSD-3-Clause
"""What the integration tests share: prerequisites, cases, and a guest that is followed from host to host.

Each test is a program: exit status 0, 77 (skipped; the last line names what is missing), else failed.
"""
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "scripts", "helpers"))
import lab as labs  # noqa: E402

SKIPPED = 77
OTHER = {"a": "b", "b": "a"}
XDP = "dpdk:net_af_xdp,iface=veth0"


class Failure(Exception):
    pass


class Skip(Exception):
    pass


def check(condition, text):
    if not condition:
        raise Failure(text)


def need_hugepages(mib):
    r = subprocess.run([labs.ROOT + "/scripts/setup", "hugepages", str(mib)], capture_output=True, text=True)
    if r.returncode != 0:
        raise Skip(f"{mib} MiB of free hugepages")


def missing():
    if os.geteuid() != 0:
        return "root"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm"
    if not shutil.which("ip"):
        return "iproute2"
    lab = labs.Lab()
    shutil.rmtree(lab.dir)
    for program in ("engine/app/ramliftd", "vmm-adapters/labvm/labvm"):
        if not os.path.exists(lab.program(program)):
            return f"{lab.program(program)}; build first, or set RAMLIFT_BUILD"
    return None


def make_lab():
    lab = labs.Lab(keep=bool(os.environ.get("RAMLIFT_KEEP")))
    lab.__enter__()
    try:
        lab.network(queues=2)
    except BaseException:
        lab.__exit__(None, None, None)
        raise
    return lab


def daemons(lab, uri=XDP, per_side=None, **options):
    """Two daemons with these settings; the ones that run are kept when theirs are the same."""
    for side in labs.SIDES:
        own = {**options, **(per_side or {}).get(side, {})}
        own_uri = own.pop("uri", uri)
        old = lab.daemons.get(side)
        if old is not None and old.alive():
            if old.argv == lab.daemon_argv(side, own_uri, **own):
                continue
            old.stop()
        lab.daemon(side, own_uri, **own)


def tails(lab):
    for log in dict.fromkeys(p.log for p in [*lab.daemons.values(), *lab.procs[-6:]]):
        with open(log, errors="replace") as f:
            print(f"--- {os.path.basename(log)}:\n{f.read().strip()[-2000:]}", flush=True)


def run_case(lab, case):
    """Returns None, or 'failed' or 'skipped'."""
    start = time.monotonic()
    try:
        case(lab)
    except Skip as e:
        print(f"skip {case.__name__}: needs {e}", flush=True)
        return "skipped"
    except Exception as e:
        where = traceback.extract_tb(e.__traceback__)
        at = next(f for f in reversed(where) if os.path.basename(f.filename).startswith("test_"))
        print(f"FAIL {case.__name__}: {type(e).__name__} (line {at.lineno}): {e}", flush=True)
        tails(lab)
        return "failed"
    print(f"ok   {case.__name__} ({time.monotonic() - start:.1f} s)", flush=True)
    return None


def main(cases):
    """Run @cases, or those that the command line names, in one lab; after a failure in a new one."""
    lack = missing()
    if lack:
        print(f"skipped: needs {lack}")
        sys.exit(SKIPPED)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    wanted = [c for c in cases if len(sys.argv) == 1 or c.__name__ in sys.argv[1:]]
    verdicts, lab = [], None
    try:
        for case in wanted:
            lab = lab or make_lab()
            verdicts.append(run_case(lab, case))
            if verdicts[-1] == "failed":
                lab.__exit__(None, None, None)
                lab = None
    finally:
        if lab:
            lab.__exit__(None, None, None)
    print(f"{len(wanted)} cases, {verdicts.count('failed')} failed, {verdicts.count('skipped')} skipped")
    if "failed" in verdicts or not wanted:
        sys.exit(1)
    sys.exit(SKIPPED if verdicts.count("skipped") == len(wanted) else 0)


class Guest:
    """A guest that keeps writing and checking its memory, and the VMs that it lives in, one after the other."""

    def __init__(self, lab, name="guest", side="a", memory="64M", append="rate=4000", synth=False, **vm):
        self.lab, self.name, self.side, self.memory, self.synth, self.vm_options = lab, name, side, memory, synth, vm
        self.append = append
        self.some = 1 if synth else 3  # reports that show that it runs: synthvm's come once a second
        self.waiting = None  # the VM at the other side, empty
        self.vm = self._start(side, False)
        self.wait_reports(self.some)

    def _start(self, side, incoming):
        if self.synth:
            options = {} if incoming else dict(w.split("=") for w in self.append.split())
            return self.lab.synthvm(side, self.name, self.memory, incoming=incoming, **self.vm_options, **options)
        append = None if incoming else f"report=100 {self.append}"
        return self.lab.labvm(side, self.name, self.memory, append=append, **self.vm_options)

    def reports(self, vm=None):
        return (vm or self.vm).guest()

    def wait_reports(self, more, timeout=30):
        """Until the guest has said @more further lines where it lives; none may speak of a wrong page."""
        seen = len(self.reports())
        self.lab.wait_for(lambda: len(self.reports()) >= seen + more, timeout, self.vm,
                          f"'{self.name}' to go on at {self.side}")
        last = self.reports()[-1]
        check(last["wrong"] == 0, f"the guest found wrong pages: {last}\n{open(self.vm.serial).read()[-1500:]}")
        return last

    def target(self):
        """The empty VM on the other side, started if there is none."""
        side = OTHER[self.side]
        if self.waiting is not None and self.waiting.alive():
            self.lab.wait_for(lambda: self.lab.phase(side, self.name) == "incoming", 15, self.waiting,
                              "the target VM to be incoming")
        else:
            self.lab.wait_for(lambda: self.lab.phase(side, self.name) is None, 5, None, "the old target VM to go")
            self.waiting = self._start(side, True)
        return self.waiting

    def arrived(self):
        """The migration is complete: the guest must go on at the other side and be gone from this one."""
        old, before = self.vm, self.reports()
        old.wait(15)
        before = self.reports(old)
        self.vm, self.waiting, self.side = self.waiting, None, OTHER[self.side]
        last = self.wait_reports(self.some)
        first = self.reports()[0]
        check(first["writes"] >= before[-1]["writes"],
              f"the source went on after the switch-over: {before[-1]}, but the target began with {first}")
        check("rate=0" in self.append or last["writes"] > before[-1]["writes"], "the guest writes no more")
        check(old.p.returncode == 0, f"the source VMM ended with status {old.p.returncode}:\n{old.text()[-800:]}")
        return last

    def stays(self):
        """The migration was given up: the guest must go on here, and its target must have run nothing."""
        self.wait_reports(self.some)
        check(self.waiting is None or self.reports(self.waiting) == [], "the target's guest ran")
        self.lab.wait_for(lambda: self.lab.phase(self.side, self.name) == "running", 15, self.vm,
                          f"'{self.name}' to be running at {self.side}")

    def migrate(self, *args, timeout=60, **options):
        """A whole migration that must succeed; returns it as JSON."""
        to = OTHER[self.side]
        self.target()
        result = self.lab.migrate(self.side, to, self.name, "--verify", *args, timeout=timeout, **options)
        check(result["status"] == "completed" and result["verified"] is True, f"not verified: {result}")
        result["guest"] = self.arrived()
        return result

    def begin(self, **params):
        """Start a migration and return its id."""
        to = OTHER[self.side]
        self.target()
        return self.lab.rpc(self.side, "migrate", vm=self.name, to=f"{labs.ADDRESS[to]}:7410", **params)["id"]

    def stop(self):
        for vm in (self.vm, self.waiting):
            if vm is not None:
                vm.stop()
        for side in labs.SIDES:
            self.lab.wait_for(lambda: self.lab.phase(side, self.name) is None, 10, None, f"'{self.name}' to go")


def query(lab, side, mid):
    return lab.rpc(side, "query-migrate", id=mid)


def wait_status(lab, side, mid, wanted, timeout=30):
    """Until migration @mid has one of the statuses; returns it. An end that was not wanted fails."""
    end = time.monotonic() + timeout
    while True:
        m = query(lab, side, mid)
        if m["status"] in wanted:
            return m
        check(m["status"] not in ("completed", "failed", "cancelled"),
              f"migration is {m['status']} instead of {'/'.join(wanted)}: {m.get('error-desc')}")
        check(time.monotonic() < end, f"migration is still {m['status']} after {timeout} s, not {'/'.join(wanted)}")
        time.sleep(0.001)


def wait_ended(lab, side, mid, timeout=30):
    return wait_status(lab, side, mid, ("completed", "failed", "cancelled"), timeout)


def settled(lab):
    """No migration under way at either side."""
    return all(m["status"] in ("completed", "failed", "cancelled")
               for side in labs.SIDES for m in lab.rpc(side, "list")["migrations"])
