# SPDX-License-Identifier: BSD-3-Clause
"""What goes wrong gives one error that names cause and remedy; the guest goes on, and so does the daemon."""
import json
import os
import random
import signal
import socket
import struct
import threading
import time

import integ
import lab as labs
from integ import Guest, check, daemons, query, wait_ended, wait_status

MIB = 1 << 20
PORT = 7410
MAGIC = 0x31434C52  # of the control channel, docs/wire.md


def expect_words(text, *words):
    for word in words:
        check(word.lower() in text.lower(), f"'{word}' is not in: {text}")
    check("\n" not in text.strip(), f"more than one line: {text}")


def refused(lab, g, words, to=None, name=None, **params):
    """A migration that must fail with these words, and leave the guest where it is."""
    to = to or f"{labs.ADDRESS[integ.OTHER[g.side]]}:{PORT}"
    mid = lab.rpc(g.side, "migrate", vm=name or g.name, to=to, **params)["id"]
    r = wait_ended(lab, g.side, mid)
    check(r["status"] == "failed", f"{r['status']} instead of failed")
    expect_words(r["error-desc"], *words)
    g.wait_reports(2)
    lab.wait_for(lambda: lab.phase(g.side, g.name) == "running", 10, g.vm, "the VM to be running")
    return r


def works_again(g):
    g.migrate()
    g.stop()


# ---- names and shapes that do not fit ----

def unknown_vm(lab):
    daemons(lab)
    g = Guest(lab)
    refused(lab, g, ["no VM named 'nobody'", "guest (running)", "--engine"], name="nobody")
    status, _, err = lab.ramlift("a", "migrate", "nobody", "--to", labs.ADDRESS["b"])
    check(status == 1, f"exit status {status}")
    expect_words(err.strip().splitlines()[-1], "no VM named 'nobody'")
    works_again(g)


def no_such_vm_at_target(lab):
    daemons(lab)
    g = Guest(lab)
    refused(lab, g, ["target 198.18.0.2:7410", "no VM named 'guest'", "--engine"])
    works_again(g)


def target_not_incoming(lab):
    daemons(lab)
    g = Guest(lab)
    other = lab.labvm("b", "guest", "64M", append="rate=1000 report=100")
    refused(lab, g, ["VM 'guest' is running here, not incoming", "--incoming"])
    other.stop()
    lab.wait_for(lambda: lab.phase("b", "guest") is None, 5, None, "the other VM to go")
    works_again(g)


def less_memory_at_target(lab):
    daemons(lab)
    g = Guest(lab)
    other = lab.labvm("b", "guest", "48M")
    refused(lab, g, ["64 MiB", "48 MiB", "memory size"])
    other.stop()
    lab.wait_for(lambda: lab.phase("b", "guest") is None, 5, None, "the other VM to go")
    works_again(g)


def other_page_size_at_target(lab):
    integ.need_hugepages(64)
    daemons(lab)
    g = Guest(lab)
    other = lab.labvm("b", "guest", "64M", backing="hugetlb-2M")
    refused(lab, g, ["4 KiB", "2048 KiB", "same backing"])
    other.stop()
    lab.wait_for(lambda: lab.phase("b", "guest") is None, 5, None, "the other VM to go")
    works_again(g)


def busy_vm(lab):
    daemons(lab)
    g = Guest(lab)
    mid = g.begin(max_bandwidth=4 * MIB)
    wait_status(lab, "a", mid, ["active"])
    second = lab.rpc("a", "migrate", vm="guest", to=f"198.18.0.2:{PORT}")["id"]
    r = wait_ended(lab, "a", second)
    expect_words(r["error-desc"], "'guest' is in a migration already")
    lab.rpc("a", "migrate-set-parameters", id=mid, max_bandwidth=0)
    check(wait_ended(lab, "a", mid)["status"] == "completed", "the first migration was disturbed")
    g.arrived()
    works_again(g)


def same_name_twice(lab):
    daemons(lab)
    g = Guest(lab)
    argv = [lab.program("vmm-adapters/labvm/labvm"), "run", "--name", "guest", "--memory", "32M", "--incoming",
            "--engine", lab.socket("a", "vmm"), "--serial", "null"]
    twin = lab.start("twin", argv)
    lab.wait_for(lambda: "connected already" in lab.daemons["a"].text(), 5, None, "the refusal")
    check(lab.phase("a", "guest") == "running", "the first VM was disturbed")
    check(twin.alive(), "the second VM ended")
    twin.stop()
    works_again(g)


# ---- peers that are not there, or not what they seem ----

def nothing_listens(lab):
    daemons(lab)
    g = Guest(lab)
    refused(lab, g, ["cannot reach 198.18.0.2:9", "refused", "is ramliftd running there", "firewall"],
            to="198.18.0.2:9")
    works_again(g)


def message(obj, blob=b""):
    text = json.dumps(obj).encode()
    return struct.pack("<IIQ", MAGIC, len(text), len(blob)) + text + blob


def receive(s, n):
    data = b""
    while len(data) < n:
        more = s.recv(n - len(data))
        if not more:
            raise OSError("the daemon closed the connection")
        data += more
    return data


def read_message(s):
    magic, n, blob = struct.unpack("<IIQ", receive(s, 16))
    check(magic == MAGIC, f"magic {magic:#x}")
    return json.loads(receive(s, n + blob)[:n])


class FakeTarget:
    """Listens where a target would, in the namespace of b, takes the hello and sends @answer."""

    def __init__(self, lab, answer, hang_up):
        self.answer, self.hang_up, self.hello = answer, hang_up, None
        self.listener = lab.socket_in("b", socket.AF_INET, socket.SOCK_STREAM)
        self.listener.bind((labs.ADDRESS["b"], 0))
        self.listener.listen()
        self.listener.settimeout(10)
        self.to = f"{labs.ADDRESS['b']}:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        with self.listener, self.listener.accept()[0] as s:
            s.settimeout(10)
            self.hello = read_message(s)
            s.sendall(self.answer)
            try:
                while not self.hang_up and s.recv(4096):
                    pass
            except OSError:
                pass


def odd_targets(lab):
    """A target of another version says so; others talk nonsense."""
    daemons(lab, tls="insecure-lab")
    g = Guest(lab)
    port = {"address": labs.ADDRESS["b"], "udp-port": 7410, "mac": "02:00:00:00:00:01", "max-payload": 1400,
            "credit": 100}
    welcome = {"type": "welcome", "version": "9", "lanes": 1, "receiver": 1, "port": port}
    version = "the source (ramlift 0.1.0) speaks wire version 1, this ramliftd (9.0) only 9; update the older one"
    for words, answer in (
            (["target 198.18.0.2", version], message({"type": "error", "text": version})),
            (["not ramlift's control protocol"], b"HTTP/1.1 400 Bad Request\r\nServer: other\r\n\r\n"),
            (["not ramlift's control protocol"], struct.pack("<IIQ", MAGIC, 0xFFFFFFFF, 0)),
            (["not JSON"], struct.pack("<IIQ", MAGIC, 4, 0) + b"{{{{"),
            (["'outcome' where 'welcome' was due"], message({"type": "outcome", "state": "running"})),
            (["malformed welcome"], message({**welcome, "lanes": 3})),
            (["malformed welcome"], message({**welcome, "lanes": -1})),
            (["malformed welcome"], message({**welcome, "receiver": "x"})),
            (["port is malformed"], message({**welcome, "port": {**port, "udp-port": 0}})),
            (["port is malformed"], message({**welcome, "port": {**port, "address": "nowhere"}})),
            (["port is malformed"], message({**welcome, "port": {**port, "max-payload": 10}})),
            (["198.18.0.77"], message({**welcome, "port": {**port, "address": "198.18.0.77"}})),
            (["closed the connection"], struct.pack("<IIQ", MAGIC, 100, 0) + b'{"type":'),
            (["closed the connection"], b"")):
        peer = FakeTarget(lab, answer, hang_up="closed" in words[0])
        refused(lab, g, words, to=peer.to)
        peer.thread.join(10)
        check(peer.hello["wire"] == 1 and peer.hello["vm"] == "guest", f"hello: {peer.hello}")
    works_again(g)


def control(lab, data):
    """What the daemon at b answers to these bytes; None: it hangs up."""
    with lab.socket_in("a", socket.AF_INET, socket.SOCK_STREAM) as s:
        s.settimeout(10)
        s.connect((labs.ADDRESS["b"], PORT))
        try:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
            return read_message(s)
        except OSError:
            return None


def odd_sources(lab):
    """Another version, nonsense, random bytes and cut messages on the control port."""
    daemons(lab, tls="insecure-lab")
    g = Guest(lab)
    hello = {"type": "hello", "wire": 99, "version": "9.0", "session": "0" * 8 + "-0000-4000-8000-" + "0" * 12,
             "vm": "guest"}
    r = control(lab, message(hello))
    check(r and r["type"] == "error", f"answer: {r}")
    expect_words(r["text"], "9.0", "wire version 99", "only 1", "update the older one")
    rng = random.Random(5)
    good = message({**hello, "wire": 1, "lanes": 1, "receiver": 1, "regions": [], "port": {}})
    check(control(lab, good)["type"] == "error", "a hello without a port was accepted")
    check(control(lab, message({"type": "switchover", "wire": 1}))["type"] == "error", "switchover came first")
    control(lab, struct.pack("<IIQ", MAGIC, 2, 1 << 40))
    for _ in range(60):
        broken = bytearray(good[:rng.randrange(1, len(good))] if rng.random() < 0.5 else good)
        for _ in range(rng.randrange(4)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        r = control(lab, bytes(broken))
        check(r is None or r["type"] in ("error", "outcome"), f"answer: {r}")
        control(lab, rng.randbytes(rng.randrange(1, 200)))
    # Half a message, and silence: it may not hold anything up.
    idle = lab.socket_in("a", socket.AF_INET, socket.SOCK_STREAM)
    idle.connect((labs.ADDRESS["b"], PORT))
    idle.sendall(good[:10])
    g.wait_reports(1)
    works_again(g)
    idle.close()


# ---- garbage elsewhere ----

def garbage_on_unix_sockets(lab):
    daemons(lab)
    g = Guest(lab)
    rng = random.Random(6)

    def throw(what, data):
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(10)
            s.connect(lab.socket("a", what))
            try:
                s.sendall(data)
                s.shutdown(socket.SHUT_WR)
                while s.recv(65536):
                    pass
            except OSError:
                pass

    for _ in range(100):
        throw("rpc", rng.randbytes(rng.randrange(1, 300)) + b"\n")
        throw("vmm", rng.randbytes(rng.randrange(1, 300)))
        # a header of the VMM socket that announces what it likes
        throw("vmm", struct.pack("=III", rng.randrange(30), rng.randrange(8), rng.randrange(5000)) + rng.randbytes(300))
    throw("rpc", b"x" * 200000)
    throw("rpc", b'{"jsonrpc":"2.0","id":1,"method":"migrate","params":{"vm":"guest","to":"nowhere"}}\n')
    for bad in ('[]', '{"jsonrpc":"2.0","id":1}', '{"jsonrpc":"2.0","id":1,"method":"list","params":[]}'):
        throw("rpc", bad.encode() + b"\n")
    for params in ({"vm": "guest", "to": "nowhere"}, {"vm": "guest", "to": "198.18.0.2", "max-bandwidth": -1},
                   {"vm": "guest", "to": "198.18.0.2", "timeout-strategy": "maybe"}, {"vm": "guest"}, {}):
        try:
            lab.rpc("a", "migrate", **params)
        except labs.LabError as e:
            check(len(str(e)) > 10, f"an error that says nothing: {e}")
        else:
            raise integ.Failure(f"accepted: {params}")
    check(lab.rpc("a", "stats")["vmm-refused"] > 100, "garbage on the VMM socket was not counted")
    works_again(g)


def random_datagrams(lab):
    """Thousands of datagrams from a stranger during a migration: none may change guest memory."""
    for uri in (integ.XDP, "udp:"):
        daemons(lab, uri=uri)
        g = Guest(lab, append="rate=2000 content=random cold=50%")
        mid = g.begin(max_bandwidth=20 * MIB, verify=True)
        wait_status(lab, "a", mid, ["active"])
        # From many ports, so that every queue of the interface gets some.
        to_a, to_b = ([lab.socket_in(s, socket.AF_INET, socket.SOCK_DGRAM) for _ in range(8)] for s in "ba")
        rng, sent = random.Random(7), 0
        while query(lab, "a", mid)["status"] == "active":
            for _ in range(200):
                data = bytearray(rng.randbytes(rng.randrange(0, 1400)))
                if rng.random() < 0.7 and len(data) >= 16:  # looks like ours up to the checksum
                    data[0] = rng.choice([0x10, 0x11, 1, data[0]])
                    data[4:8] = struct.pack("<I", rng.randrange(4))
                to_b[sent // 2 % 8].sendto(data, (labs.ADDRESS["b"], PORT))
                to_a[sent // 2 % 8].sendto(data, (labs.ADDRESS["a"], PORT))
                sent += 2
        r = wait_ended(lab, "a", mid)
        check(r["status"] == "completed" and r["verified"], f"{r['status']}: {r.get('error-desc')}")
        check(sent > 2000, f"only {sent} datagrams were sent")
        stats = lab.rpc("b", "stats")["workers"][0]
        target = query(lab, "b", mid)["link"]
        arrived = stats["rx-unknown"] + target["bad-packets"]
        check(arrived > 1000, f"of {sent} datagrams {arrived} arrived: {stats} {target}")
        g.arrived()
        works_again(g)
        for s in to_a + to_b:
            s.close()


# ---- the machine ----

def interface_down(lab):
    daemons(lab)
    g = Guest(lab)
    lab.link("a", "down")
    refused(lab, g, ["veth0", "down", "ip link set"])
    lab.link("a", "up")
    time.sleep(1)
    works_again(g)


def cannot_start(lab, words, uri=integ.XDP, **options):
    """A daemon that must not start, with sockets of its own unless they are given."""
    options = {"rpc_socket": lab.path("x.rpc"), "vmm_socket": lab.path("x.vmm"), "listen": "[::]:7500", **options}
    p = lab.start("daemon-x", lab.daemon_argv("a", uri, **options), lab.ns["a"])
    before = len(p.text())
    status = p.wait(20)
    text = p.text()[before:].strip() or p.text().strip()
    check(status in (1, 2), f"exit status {status}: {text}")
    expect_words(text.splitlines()[-1], *words)


def daemons_that_cannot_start(lab):
    daemons(lab)
    g = Guest(lab)
    cannot_start(lab, ["nothere0"], uri="dpdk:net_af_xdp,iface=nothere0")
    cannot_start(lab, ["another ramliftd answers there", "sockets of its own"], rpc_socket=lab.socket("a", "rpc"))
    cannot_start(lab, ["another ramliftd answers there", "sockets of its own"], vmm_socket=lab.socket("a", "vmm"))
    cannot_start(lab, ["TCP", "7410", "in use", "--listen"], listen="[::]:7410", uri="udp:", address="127.0.0.1")
    cannot_start(lab, ["unknown key 'max-bandwith'", "max-bandwidth"], max_bandwith=1)
    cannot_start(lab, ["workers", "not 3"], workers=3)
    cannot_start(lab, ["known scheme", "dpdk:", "udp:"], uri="rdma:mlx5_0")
    config = lab.path("bad.conf")
    with open(config, "w") as f:
        f.write("[port]\nudp-prt = 7411\n")
    cannot_start(lab, [config, "unknown key 'udp-prt'", "udp-port"], config=config)
    taken = lab.socket_in("a", socket.AF_INET, socket.SOCK_DGRAM)
    taken.bind((labs.ADDRESS["a"], 7600))
    cannot_start(lab, ["UDP port 7600", "in use", "udp-port"], uri="udp:", address=labs.ADDRESS["a"], udp_port=7600)
    taken.close()
    check(os.path.exists(lab.socket("a", "rpc")), "the first daemon's socket is gone")
    works_again(g)


def no_hugepages(lab):
    with open("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages") as f:
        huge = int(f.read()) * 2
    p = lab.start("huge", [lab.program("vmm-adapters/labvm/labvm"), "run", "--name", "huge", "--memory",
                           f"{huge + 1024}M", "--backing", "hugetlb-2M", "--incoming", "--serial", "null"])
    check(p.wait(10) == 2, f"exit status {p.p.returncode}")
    expect_words(p.text().strip().splitlines()[-1], "hugepages", "2")


# ---- parties that leave ----

def target_vmm_dies(lab):
    daemons(lab)
    g = Guest(lab)
    mid = g.begin(max_bandwidth=4 * MIB)
    wait_status(lab, "a", mid, ["active"])
    g.waiting.kill()
    r = wait_ended(lab, "a", mid)
    check(r["status"] == "failed", r["status"])
    expect_words(r["error-desc"], "target 198.18.0.2", "VMM", "gone")
    g.stays()
    works_again(g)


def source_vmm_dies(lab):
    daemons(lab)
    g = Guest(lab)
    mid = g.begin(max_bandwidth=4 * MIB)
    wait_status(lab, "a", mid, ["active"])
    g.vm.kill()
    r = wait_ended(lab, "a", mid)
    expect_words(r["error-desc"], "VMM of 'guest'", "died")
    check(r["status"] == "failed", r["status"])
    lab.wait_for(lambda: lab.phase("b", "guest") == "incoming", 10, None, "the target to wait again")
    g.stop()
    works_again(Guest(lab))


def daemon_told_to_stop(lab):
    """SIGTERM in mid-migration, at the source and at the target."""
    daemons(lab)
    g = Guest(lab)
    for side in labs.SIDES:
        mid = g.begin(max_bandwidth=4 * MIB)
        wait_status(lab, "a", mid, ["active"])
        p = lab.daemons[side]
        p.kill(signal.SIGTERM)
        check(p.wait(10) == 0, f"ramliftd at {side} ended with {p.p.returncode}")
        check(not os.path.exists(lab.socket(side, "rpc")), "its socket is still there")
        if side == "b":
            r = wait_ended(lab, "a", mid)
            check(r["status"] == "failed", r["status"])
        g.wait_reports(2)
        lab.restart(side, timeout=3)
        lab.wait_for(lambda: lab.phase("a", "guest") == "running", 10, None, "the VM to be back")
        g.stays()
    works_again(g)


if __name__ == "__main__":
    integ.main([unknown_vm, no_such_vm_at_target, target_not_incoming, less_memory_at_target,
                other_page_size_at_target, busy_vm, same_name_twice, nothing_listens, odd_targets, odd_sources,
                garbage_on_unix_sockets, random_datagrams, interface_down, daemons_that_cannot_start, no_hugepages,
                target_vmm_dies, source_vmm_dies, daemon_told_to_stop])
