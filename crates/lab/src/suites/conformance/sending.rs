//! Who takes what is sent.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::time::Duration;

use smpcall_local_apic::{DeliveryMode, Icr, Interrupt, Mode, Register, Shorthand};
use smpcall_machine::{Cpu, Deadline, InterruptsOff, Machine, Woken, wait};

use super::{
    ARRIVAL, COUNTED, Check, Findings, LIMIT, TAKEN, absent, check, command, counted, id_of, on, others,
    said, send, sent, taking, write, x2apic, xapic,
};
use crate::apic;
use crate::clock::{LabWord, delay};
use crate::machine::{BOOT_CPU, Calls, Cpus, Lab, halt_until_interrupt};
use crate::tasks::{self, Step};

pub(super) const CHECKS: &[Check] = &[
    check("a_self_ipi_is_taken_exactly_once", 1, self_ipi),
    check("the_physical_broadcast_is_taken_by_all_once", 2, broadcast),
    check("shorthands_reach_all_or_all_the_others", 2, shorthands),
    check("the_driver_reaches_all_the_others", 2, driver_all),
    check("the_driver_reaches_one_target_and_two", 3, driver_one_and_two),
    xapic("the_flat_model_reaches_one_target_and_two", 3, flat),
    xapic("the_cluster_model_reaches_one_target_and_two_of_a_cluster", 4, cluster),
    xapic("the_cluster_broadcast_is_taken_by_all_once", 4, cluster_broadcast),
    xapic("aliased_logical_identifiers_all_accept", 4, aliased),
    x2apic("a_logical_x2apic_destination_reaches_one_target_and_two", 3, x2apic_logical),
    xapic("it_goes_to_the_one_with_the_lowest_processor_priority", 3, lowest_priority),
    x2apic("on_x2apic_it_is_reserved_and_goes_to_nobody", 3, lowest_priority_x2apic),
    check("a_command_to_an_absent_identifier_is_sent_to_nobody", 2, nobody),
    check("a_self_shorthand_is_for_interrupts_only", 1, self_shorthand_nmi),
    check("every_ipi_is_received_and_wakes_a_halted_cpu", 2, wakes),
    check("a_halted_cpu_sleeps_until_an_ipi_comes", 2, sleeps),
    check("an_nmi_wakes_a_cpu_that_halts_with_interrupts_disabled", 2, nmi_wakes),
];

const fn cpu(number: u32) -> Cpu {
    Cpu::new(number)
}

fn once(among: impl Fn(Cpu) -> bool) -> impl Fn(Cpu) -> u64 {
    move |cpu| u64::from(among(cpu))
}

/// `x86/apic.c`, `test_self_ipi`: by the driver, the shorthand, the own identifier, and the register of x2APIC.
fn self_ipi(findings: &mut Findings) {
    let me = once(|cpu| cpu == BOOT_CPU);
    sent(findings, "the driver", || said(apic::send_self(counted())), &me);
    let shorthand = Icr::shorthand(DeliveryMode::Fixed, COUNTED, Shorthand::SelfOnly);
    sent(findings, "the shorthand", || command(shorthand), &me);
    sent(findings, "the identifier", || send(BOOT_CPU), &me);
    if apic::mode() == Mode::X2Apic {
        sent(findings, "the register", || write(Register::SELF_IPI, COUNTED.into()), &me);
    }
}

/// `x86/apic.c`, `test_physical_broadcast`, by address.
fn broadcast(findings: &mut Findings) {
    let all = Icr::physical(DeliveryMode::Fixed, COUNTED, apic::mode().broadcast());
    sent(findings, "the broadcast", || command(all), |_| 1);
}

/// `x86/apic.c`, `test_physical_broadcast`, by shorthand; and all but self.
fn shorthands(findings: &mut Findings) {
    let by = |shorthand| move || command(Icr::shorthand(DeliveryMode::Fixed, COUNTED, shorthand));
    sent(findings, "all", by(Shorthand::All), |_| 1);
    sent(findings, "all but self", by(Shorthand::AllButSelf), once(|cpu| cpu != BOOT_CPU));
}

fn driver(findings: &mut Findings, targets: &Cpus) {
    let send = || said(apic::send_many(targets, Interrupt::Fixed(counted())));
    sent(findings, "the driver", send, once(|cpu| targets.contains(cpu)));
}

fn driver_all(findings: &mut Findings) {
    driver(findings, &others().collect());
}

fn driver_one_and_two(findings: &mut Findings) {
    let last = cpu(apic::count() as u32 - 1);
    for targets in [&[cpu(1)][..], &[last], &[cpu(0), cpu(2)], &[cpu(1), last]] {
        driver(findings, &targets.iter().copied().collect());
    }
}

const FLAT: u32 = u32::MAX;
const CLUSTER: u32 = 0x0fff_ffff;

/// Programs the logical identifiers of as many CPUs as there are: the others have none. The kernel itself sends by
/// physical identifiers meanwhile.
fn set_logical(findings: &mut Findings, format: u32, ids: &'static [u32]) {
    for cpu in apic::all() {
        let id = ids.get(cpu.index()).copied().unwrap_or(0);
        on(findings, cpu, move || {
            write(Register::DESTINATION_FORMAT, format);
            write(Register::LOGICAL_DESTINATION, id << 24);
        });
    }
}

/// Whether the kernel's own rings do not depend on logical identifiers.
fn can_set_logical(findings: &mut Findings) -> bool {
    let can = apic::routing() == smpcall_local_apic::Routing::Physical;
    if !can {
        findings.skip("the kernel itself sends to logical identifiers: it takes routing=physflat");
    }
    can
}

/// Sends to a logical destination, and checks that these CPUs take it: their numbers are the bits of `wanted`.
fn logical(findings: &mut Findings, destination: u32, wanted: u32) {
    let mut buffer = super::Text { bytes: [0; 200], length: 0 };
    let _ = core::fmt::Write::write_fmt(&mut buffer, format_args!("destination {destination:#x}"));
    let what = core::str::from_utf8(&buffer.bytes[..buffer.length]).unwrap_or_default();
    let icr = Icr::logical(DeliveryMode::Fixed, COUNTED, destination);
    let among = |cpu: Cpu| cpu.number() < 32 && wanted & 1 << cpu.number() != 0;
    sent(findings, what, || command(icr), once(among));
}

/// `x86/apic.c`, `test_logical_ipi_xapic`, flat: one target and two.
fn flat(findings: &mut Findings) {
    const IDS: &[u32] = &[0x01, 0x02, 0x04, 0x08, 0x10];
    if !can_set_logical(findings) {
        return;
    }
    set_logical(findings, FLAT, IDS);
    for (target, &id) in IDS.iter().enumerate() {
        logical(findings, id, 1 << target);
    }
    logical(findings, 0x05, 0b101);
    logical(findings, 0xe0, 0);
    logical(findings, 0xff, 0b1_1111);
}

const CLUSTERS: &[u32] = &[0x01, 0x02, 0x04, 0x11, 0x12, 0xe8];

/// `x86/apic.c`, `test_logical_ipi_xapic`, cluster: one target and two, clusters apart.
fn cluster(findings: &mut Findings) {
    if !can_set_logical(findings) {
        return;
    }
    set_logical(findings, CLUSTER, CLUSTERS);
    for (target, &id) in CLUSTERS.iter().enumerate() {
        logical(findings, id, 1 << target);
    }
    logical(findings, 0x06, 0b110);
    logical(findings, 0x13, 0b1_1000);
    logical(findings, 0x23, 0);
}

/// SDM, "Logical Destination Mode": in the cluster model all ones is everybody.
fn cluster_broadcast(findings: &mut Findings) {
    if !can_set_logical(findings) {
        return;
    }
    set_logical(findings, CLUSTER, CLUSTERS);
    logical(findings, 0xff, 0b11_1111);
}

/// `x86/apic.c`, aliased logical identifiers.
fn aliased(findings: &mut Findings) {
    if !can_set_logical(findings) {
        return;
    }
    set_logical(findings, FLAT, &[0x01, 0x02, 0x02, 0x04]);
    logical(findings, 0x02, 0b110);
    set_logical(findings, CLUSTER, &[0x01, 0x12, 0x12, 0x14]);
    logical(findings, 0x12, 0b110);
}

/// `x86/apic.c`, `test_logical_ipi_x2apic`: one target, and two of a cluster if there are two.
fn x2apic_logical(findings: &mut Findings) {
    let logical_id = |cpu| smpcall_local_apic::ApicId(id_of(cpu)).x2apic_logical();
    let to = |destination| move || command(Icr::logical(DeliveryMode::Fixed, COUNTED, destination));
    for target in apic::all().take(20) {
        sent(findings, "one", to(logical_id(target)), once(|cpu| cpu == target));
    }
    let (one, other) = (logical_id(cpu(1)), logical_id(cpu(2)));
    if one >> 16 == other >> 16 {
        sent(findings, "two", to(one | other), once(|taker| taker == cpu(1) || taker == cpu(2)));
    }
}

/// SDM, "Lowest Priority Delivery Mode".
fn lowest_priority(findings: &mut Findings) {
    const PRIORITIES: [u32; 3] = [0x40, 0x20, 0x30];
    if !can_set_logical(findings) {
        return;
    }
    set_logical(findings, FLAT, &[0x01, 0x02, 0x04]);
    for (number, &priority) in (0..).zip(&PRIORITIES) {
        on(findings, cpu(number), move || write(Register::TASK_PRIORITY, priority));
    }
    let icr = Icr::logical(DeliveryMode::LowestPriority, COUNTED, 0x07);
    sent(findings, "priorities 4, 2, 3", || command(icr), once(|taker| taker == cpu(1)));
}

/// SDM, "ICR Operation in x2APIC Mode": not supported there.
fn lowest_priority_x2apic(findings: &mut Findings) {
    let icr = Icr::physical(DeliveryMode::LowestPriority, COUNTED, id_of(cpu(1)));
    sent(findings, "lowest priority", || command(icr), |_| 0);
}

/// KVM's `xapic_state_test`.
fn nobody(findings: &mut Findings) {
    let Some(absent) = absent(findings) else { return };
    let icr = Icr::physical(DeliveryMode::Fixed, COUNTED, absent);
    sent(findings, "an absent identifier", || command(icr), |_| 0);
}

/// SDM, table "Valid Combinations for the Pentium 4 and Intel Xeon Processors' Local xAPIC ICR": self with NMI is not among
/// them.
fn self_shorthand_nmi(findings: &mut Findings) {
    let taken = taking::nmis_of(|| command(Icr::shorthand(DeliveryMode::Nmi, 0, Shorthand::SelfOnly)));
    findings.same("NMIs taken", taken, 0);
}

/// KVM's `xapic_ipi_test`: the target does nothing but halt.
fn wakes(findings: &mut Findings) {
    const ROUNDS: u64 = 1000;
    let target = cpu(1);
    let taken = &TAKEN[target.index()];
    taken.store(0, Relaxed);
    for round in 1..=ROUNDS {
        send(target);
        if wait::<Lab>(&[taken.equals(!0, round)], Deadline::within::<Lab>(LIMIT)) == Woken::Deadline {
            break;
        }
    }
    findings.same("received", taken.load(Relaxed), ROUNDS);
}

/// How far the CPU has come that halts.
static STAGE: LabWord = LabWord::new(0);
const READY: u64 = 1;
const GO: u64 = 2;
const HALTED: u64 = 3;
const AWAKE: u64 = 4;

/// Says that it is there, and waits until all is quiet.
fn get_ready() {
    let guard = InterruptsOff::<Lab>::new();
    Calls::watch_ticks(false);
    apic::stop_ticks();
    drop(guard);
    STAGE.store(READY, Release);
    wait::<Lab>(&[STAGE.equals(!0, GO)], Deadline::within::<Lab>(LIMIT));
}

fn sleeper(_: Cpu) -> Step {
    get_ready();
    let mut guard = InterruptsOff::<Lab>::new();
    STAGE.store(HALTED, Release);
    halt_until_interrupt(&mut guard);
    STAGE.store(AWAKE, Release);
    Step::Done
}

fn deaf_sleeper(_: Cpu) -> Step {
    get_ready();
    let _ = Lab::disable_interrupts();
    STAGE.store(HALTED, Release);
    x86_64::instructions::hlt();
    STAGE.store(AWAKE, Release);
    Lab::restore_interrupts(true);
    Step::Done
}

/// Lets a CPU halt, checks that it sleeps, and that this wakes it.
fn wake(findings: &mut Findings, task: tasks::Task, wake: impl FnOnce(Cpu)) {
    let target = cpu(1);
    let reached = |stage, limit| {
        wait::<Lab>(&[STAGE.equals(!0, stage)], Deadline::within::<Lab>(limit)) != Woken::Deadline
    };
    STAGE.store(0, Release);
    tasks::give(target, task);
    let ready = reached(READY, LIMIT);
    super::settle(findings);
    // Its own rings have been taken: the last thing that it has done for others is to end the last call of `settle`.
    delay(Duration::from_millis(1));
    STAGE.store(GO, Release);
    let halted = ready && reached(HALTED, LIMIT);
    findings.that(halted, format_args!("{target} does not come to its halt"));
    delay(Duration::from_millis(20));
    let stage = STAGE.load(Acquire);
    findings.that(stage == HALTED, format_args!("it wakes although nothing came"));
    wake(target);
    let awake = reached(AWAKE, ARRIVAL);
    findings.that(awake, format_args!("it sleeps on"));
    if !awake {
        // Whatever may wake it.
        said(apic::send(target, Interrupt::Fixed(counted())));
        said(apic::send(target, Interrupt::Nmi));
    }
    tasks::await_done(target, Deadline::within::<Lab>(LIMIT));
}

/// `x86/vmexit.c`, `ping_halted`, and KVM's `xapic_ipi_test`.
fn sleeps(findings: &mut Findings) {
    wake(findings, sleeper, send);
}

/// SDM, HLT: an NMI resumes execution.
fn nmi_wakes(findings: &mut Findings) {
    wake(findings, deaf_sleeper, |target| said(apic::send(target, Interrupt::Nmi)));
}
