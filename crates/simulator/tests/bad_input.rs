//! What a kernel or a machine may be given that makes no sense: each is refused, or bearable, and told in one sentence. Crashes
//! inside of everything have their tests beside the crash stop.

#![allow(clippy::result_large_err, reason = "sets of up to 4,096 CPUs")]

mod support;

use core::cell::Cell;

use smpcall::{Callback, CrashStop, Hotplug as _, HotplugError, Refused, RendezvousError, Stage};
use smpcall_local_apic::{ApicId, Routing};
use smpcall_machine::{Instant, InterruptsOff};
use smpcall_simulator::kernel::Hooks;
use smpcall_simulator::stopping::{self, check_crash};
use smpcall_simulator::{Config, SimMachine, World, program};
use support::{Calls, cpu, ms, quiet, run, set, world};

static REFUSING: [Callback; 1] =
    [Callback { prepare: Some(|_| Err(Refused(5))), ..Callback::named("timers") }];

#[test]
fn a_hotplug_callback_that_fails_is_told_by_name_stage_and_reason() {
    let mut config = quiet(2);
    config.not_started = vec![cpu(1)];
    let hooks = Hooks { callbacks: &REFUSING, ..Hooks::default() };
    let mut world = World::with_kernel(&config, hooks).expect("a machine");
    world.spawn(cpu(0), || {
        let error = Calls::cpu_up(cpu(1), ms(1)).expect_err("it refuses");
        let refused = Refused(5);
        let told =
            HotplugError::Callback { name: "timers", stage: Stage::Prepare, refused, taken_back: true };
        assert_eq!(error, told);
        assert_eq!(error.to_string(), "timers refused at stage Prepare with reason 5");
    });
    run(&mut world);
}

#[test]
fn a_rendezvous_inside_of_a_call_does_not_begin_and_says_so() {
    let told = Cell::new(String::new());
    let mut world = world(&quiet(2));
    world.spawn(cpu(0), || {
        let inside = Calls::for_ever().call(cpu(1), || {
            let mut guard = InterruptsOff::new();
            let caller = Calls::within(ms(1)).with_interrupts_off(&mut guard);
            caller.rendezvous(&set([0, 1]), |_| unreachable!("it does not begin"))
        });
        let error = inside.expect("CPU 1 lives").expect_err("it is refused");
        assert!(matches!(error, RendezvousError::Excluded(_)), "{error:?}");
        told.set(error.to_string());
    });
    run(&mut world);
    let sentence = "the rendezvous did not begin: inside of a served closure: do it from a task";
    assert_eq!(told.take(), sentence);
}

/// The machine as it is after CPU 0 has crashed with `crash`: both CPUs are accounted for, and stand still.
fn crashes(crash: fn() -> !) {
    let mut world = world(&quiet(2));
    world.spawn(cpu(0), move || crash());
    world.spawn(cpu(1), || program::advance(ms(1_500)));
    world.run_on(Instant::from_nanos(2_000_000_000));
    let outcome = check_crash(&world, &set([0, 1])).expect("law L7").expect("there are notes");
    assert_eq!((outcome.summary.winner, outcome.saved.len(), outcome.missing.len()), (0, 2, 0));
}

#[test]
fn a_crash_inside_of_a_crash_stop_ends_it_with_what_is_known() {
    crashes(|| {
        let first = Calls::crash_stop(&stopping::registers(core::panic::Location::caller(), true));
        assert!(!first.crashed_again);
        // On its way out.
        let second = Calls::crash_stop(&stopping::registers(core::panic::Location::caller(), false));
        assert!(second.crashed_again && second.missing.is_empty());
        <SimMachine as CrashStop>::park()
    });
}

#[test]
fn an_apic_id_above_255_in_xapic_mode_is_refused() {
    for id in [255, 256, 1_000] {
        let config =
            Config { apic_ids: Some(vec![ApicId(0), ApicId(id)]), ..Config::new(2, Routing::Physical, 1) };
        let error = World::new(&config).err().expect("it does not fit");
        let sentence = format!("routing physflat reaches up to APIC 0xfe, not APIC {id:#x}");
        assert_eq!(error.to_string(), sentence);
    }
}

#[test]
fn clusters_with_holes_work_on_every_routing_with_clusters() {
    for routing in [Routing::X2ApicCluster, Routing::XApicCluster] {
        let ids = [0x00, 0x03, 0x71, 0x10, 0x72].map(ApicId);
        let config = Config { apic_ids: Some(ids.to_vec()), tick: None, ..Config::new(5, routing, 1) };
        let mut world = world(&config);
        world.spawn(cpu(0), || {
            let count = core::sync::atomic::AtomicU32::new(0);
            let result = Calls::for_ever().call_others(|_| {
                count.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
            });
            assert!(result.is_ok(), "{result:?}");
            assert_eq!(count.into_inner(), 4);
            assert_eq!(Calls::for_ever().call(cpu(4), SimMachine::boot_cpu), Ok(cpu(0)));
        });
        run(&mut world);
    }
}

#[test]
fn aliased_apic_ids_are_refused_by_name() {
    let ids = [4, 9, 2, 9].map(ApicId).to_vec();
    let config = Config { apic_ids: Some(ids), ..Config::new(4, Routing::X2ApicCluster, 1) };
    let error = World::new(&config).err().expect("two CPUs have one");
    assert!(error.to_string().ends_with("have the same identifier, that of APIC 0x9"), "{error}");
}

#[test]
fn a_routing_that_does_not_fit_the_machine_is_refused() {
    let error = World::new(&Config::new(9, Routing::Flat, 1)).err().expect("it reaches eight");
    assert_eq!(error.to_string(), "routing flat reaches 8 CPUs at the most, not 9");
}
