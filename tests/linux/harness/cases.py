"""The cases that the module knows, and what is true of each: what a diagnosis of its dump has to find.

CPU numbers: 1 is the victim, 2 the caller, 3 the third. `kinds` are the verdicts (docs of `smpcall diagnose`) that are
right for the case; the first is the best that the evidence of the dump allows. What a live guest shows is checked against
the case before its dump is kept, so that no truth is only an intention.
"""

import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """One state of a guest."""

    name: str
    says: str
    kinds: tuple
    cpu: int = None
    waiters: tuple = ()
    function: str = None
    frame: str = None
    # Descriptors of the module's calls in the queue of each CPU, by type ("waiters": as many as wait); None: what the
    # moment holds.
    queues: dict | None = field(default_factory=dict)
    cpus: int = 4
    user: bool = True
    offline: bool = False
    panics: bool = False
    # The module's name for the case, where one of its cases serves two of ours.
    runs: str = None
    # What a live guest must show, checked before its dump is kept: CPUs whose IRR has a call's vector and whose has not,
    # CPUs with interrupts off and on.
    pending: tuple = ()
    not_pending: tuple = ()
    closed: tuple = ()
    open: tuple = ()

    def truth(self, cpus):
        """The ground truth as plain data. A waiter "rest" stands for all CPUs from 3 on."""
        waiters = []
        for waiter in self.waiters:
            waiters += list(range(3, cpus)) if waiter == "rest" else [waiter]
        queues = self.queues and {
            cpu: {kind: len(waiters) if count == "waiters" else count for kind, count in listed.items()}
            for cpu, listed in self.queues.items()
        }
        return {
            "kinds": list(self.kinds),
            "cpu": self.cpu,
            "waiters": waiters,
            "function": self.function,
            "frame": self.frame,
            "queues": queues,
            "says": self.says,
        }


CASES = {
    case.name: case
    for case in [
        Case(
            "lost",
            "CPU 2 calls CPU 1 and waits; the ring (vector 251) is swallowed in the sending hook. CPU 1 runs in user space "
            "with interrupts on. Its queue holds one SYNC descriptor, which lies on CPU 2's stack.",
            ("ipi-lost",), cpu=1, waiters=(2,), function="calltrouble_quick", frame="smp_call_function_single",
            queues={"1": {"sync": 1}},
            not_pending=(1,), open=(1, 2),
        ),
        Case(
            "lost-many",
            "CPU 2 calls all the others (vector 252) and waits; the ring to CPU 1 alone is swallowed. CPU 1 runs in user "
            "space with interrupts on. The descriptor lies in CPU 2's per-CPU memory.",
            ("ipi-lost",), cpu=1, waiters=(2,), function="calltrouble_quick", frame="smp_call_function_many_cond",
            queues={"1": {"sync": 1}},
            not_pending=(1,), open=(1, 2),
        ),
        Case(
            "lost-broadcast",
            "As lost; then the CPUs from 3 on each call all the others and wait for CPU 1 too. Their descriptors stand in the "
            "queue that nobody empties, and no further ring is sent because it is not empty.",
            ("ipi-lost",), cpu=1, waiters=(2, "rest"), function="calltrouble_quick", queues={"1": {"sync": "waiters"}},
            cpus=16,
            not_pending=(1,), open=(1, 2),
        ),
        Case(
            "posts",
            "CPU 2 makes 108 asynchronous calls to CPU 1 and waits for none; the ring of the first is swallowed. All 108 are "
            "in CPU 1's queue, newest first, in the array posts[] of the module; info counts from 0.",
            ("ipi-lost",), cpu=1, function="calltrouble_quick", queues={"1": {"async": 108}},
            not_pending=(1,), open=(1,),
        ),
        Case(
            "irqs-off",
            "CPU 1 loops in calltrouble_spin_irqs_off with interrupts off; CPU 2 calls it and waits. 251 is in CPU 1's IRR.",
            ("interrupts-off",), cpu=1, waiters=(2,), function="calltrouble_quick", frame="calltrouble_spin_irqs_off",
            queues={"1": {"sync": 1}}, user=False,
            pending=(1,), closed=(1,), open=(2,),
        ),
        Case(
            "mutual",
            "CPU 1 and CPU 2 call each other with interrupts off and wait. 251 is in both IRRs.",
            ("mutual-wait",), cpu=1, waiters=(1, 2), function="calltrouble_quick", frame="smp_call_function_single",
            queues={"1": {"sync": 1}, "2": {"sync": 1}}, user=False,
            pending=(1, 2), closed=(1, 2),
        ),
        Case(
            "chain",
            "CPU 2 waits for a call to CPU 3, which waits with interrupts off for a call to CPU 1, which loops with interrupts "
            "off: CPU 1 is the culprit of both.",
            ("interrupts-off",), cpu=1, waiters=(2, 3), function="calltrouble_quick", frame="calltrouble_spin_irqs_off",
            queues={"1": {"sync": 1}, "3": {"sync": 1}}, user=False,
            pending=(1, 3), closed=(1, 3), open=(2,),
        ),
        Case(
            "lock-chain",
            "CPU 3 holds a spin lock and never lets go (calltrouble_hold_lock, interrupts on); CPU 1 wants it with interrupts "
            "off; CPU 2 calls CPU 1 and waits.",
            ("interrupts-off",), cpu=1, waiters=(2,), function="calltrouble_quick", frame="calltrouble_want_lock_irqs_off",
            queues={"1": {"sync": 1}}, user=False,
            pending=(1,), closed=(1,), open=(2, 3),
        ),
        Case(
            "lock-call",
            "CPU 3 holds a spin lock and waits for a call to CPU 1, which wants that lock with interrupts off: a deadlock of a "
            "lock and a call. CPU 2 calls CPU 1 too.",
            ("interrupts-off", "mutual-wait"), cpu=1, waiters=(2, 3), function="calltrouble_quick",
            frame="calltrouble_want_lock_irqs_off", queues={"1": {"sync": 2}}, user=False,
            pending=(1,), closed=(1,), open=(2, 3),
        ),
        Case(
            "long-handler",
            "CPU 1 took CPU 2's call and is inside its function, calltrouble_endless_handler, for ever. Its queue is empty of "
            "that call, but others may follow; the descriptor on CPU 2's stack is still locked.",
            ("long-handler",), cpu=1, waiters=(2,), function="calltrouble_endless_handler", frame="calltrouble_endless_handler",
            closed=(1,), open=(2,),
        ),
        Case(
            "stop-machine",
            "stop_machine has stopped all CPUs with interrupts off (multi_cpu_stop) and its function does not end on CPU 1 "
            "(calltrouble_stopped_machine), which has made one asynchronous call to CPU 3.",
            ("interrupts-off",), cpu=3, function="calltrouble_quick", frame="multi_cpu_stop", queues={"3": {"async": 1}},
            user=False,
            pending=(3,), closed=(0, 1, 2, 3), not_pending=(1,),
        ),
        Case(
            "offline",
            "CPU 1 is offline, and CPU 2's synchronous call stands in its queue. Whether its APIC accepted the "
            "ring depends on the kernel: Debian's disable it by software first.",
            ("offline-queue",), cpu=1, waiters=(2,), function="calltrouble_quick", frame="smp_call_function_single",
            queues={"1": {"sync": 1}}, user=False, offline=True,
            closed=(1,), open=(2,),
        ),
        Case(
            "dead",
            "CPU 1 never comes back from an NMI handler (calltrouble_endless_nmi): it takes neither interrupts nor NMIs, and "
            "saves nothing at a crash. CPU 2 calls it and waits. QEMU sees its registers all the same.",
            ("cpu-dead", "interrupts-off"), cpu=1, waiters=(2,), function="calltrouble_quick", frame="calltrouble_endless_nmi",
            queues={"1": {"sync": 1}}, user=False,
            pending=(1,), closed=(1,), open=(2,),
        ),
        Case(
            "pending-panic",
            "CPU 1 rings itself (251) with interrupts off and panics: all queues are empty, 251 is in its IRR until the capture "
            "kernel starts. No dump format holds an IRR, so \"healthy\" and \"undetermined\" are not wrong.",
            ("pending-at-crash", "undetermined", "healthy"), cpu=1, user=False, panics=True,
        ),
        Case(
            "healthy",
            "Calls were made and all of them came back. CPU 1 runs in user space, the others are idle.",
            ("healthy",),
            not_pending=(1, 2, 3), open=(1,),
        ),
        Case(
            "busy",
            "CPU 2 and CPU 3 call CPU 1 again and again; each call takes 50 us and comes back. At the moment of the dump "
            "CPU 1's queue or its handler holds the call of that moment.",
            ("healthy",), function="calltrouble_brief", queues=None,
        ),
        Case(
            "busy-idle",
            "As busy, but CPU 1 has nothing else to do and is idle between the calls. With idle=poll no ring is sent to it at "
            "all: its queue may be full, its interrupts on and its IRR empty, and nothing is wrong.",
            ("healthy",), function="calltrouble_brief", queues=None, user=False, runs="busy",
        ),
    ]
}


CALL_VECTORS = {251, 252}


def by_cpu(text, start):
    """Splits a monitor's answer into one text a CPU."""
    parts = re.split(start, text)
    return dict(zip((int(cpu) for cpu in parts[1::2]), parts[2::2]))


def contradictions(case, apics, registers):
    """What a live guest shows that is not as the case says."""
    pending = {}
    for cpu, text in by_cpu(apics, r"(?m)^cpu (\d+)\n").items():
        row = re.search(r"(?m)^IRR\t(.*)$", text)
        pending[cpu] = bool(row and CALL_VECTORS & {int(vector) for vector in re.findall(r"\d+", row.group(1))})
    enabled = {}
    for cpu, text in by_cpu(registers, r"(?m)^CPU#(\d+)").items():
        flags = re.search(r"RFL=([0-9a-f]+)", text)
        enabled[cpu] = bool(flags and int(flags.group(1), 16) & 0x200)
    found = []
    for cpus, state, wanted, words in [
        (case.pending, pending, True, "no call is pending in its IRR"),
        (case.not_pending, pending, False, "a call is pending in its IRR"),
        (case.closed, enabled, False, "its interrupts are on"),
        (case.open, enabled, True, "its interrupts are off"),
    ]:
        found += [f"CPU {cpu}: {words}" for cpu in cpus if state.get(cpu) != wanted]
    return found
