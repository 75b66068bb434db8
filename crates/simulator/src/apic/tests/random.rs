//! Random sequences against a smaller model: sets of numbers and the rules in one line each.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Accept(u8),
    Take,
    EndOfInterrupt,
    TaskPriority(u8),
    Nmi,
    TakeNmi,
    ReturnFromNmi,
}

fn step() -> impl Strategy<Value = Step> {
    // Few vectors, some of the same class, so that they meet.
    let vector = prop_oneof![Just(0x0f), Just(0x10), 0x30..0x34u8, 0x40..0x44u8, Just(0xfb), Just(0xff)];
    prop_oneof![
        4 => vector.prop_map(Step::Accept),
        3 => Just(Step::Take),
        3 => Just(Step::EndOfInterrupt),
        1 => any::<u8>().prop_map(Step::TaskPriority),
        1 => Just(Step::Nmi),
        1 => Just(Step::TakeNmi),
        1 => Just(Step::ReturnFromNmi),
    ]
}

proptest! {
    #[test]
    fn it_behaves_like_sets_of_vectors(steps in prop::collection::vec(step(), 0..200), x2 in any::<bool>()) {
        let mut apic = if x2 { x2apic() } else { xapic() };
        let (mut pending, mut in_service) = (BTreeSet::new(), BTreeSet::new());
        let mut task_priority = 0;
        let (mut nmi_latched, mut nmi_running) = (false, false);
        for step in steps {
            match step {
                Step::Accept(vector) => {
                    let expected = match vector {
                        0..16 => Acceptance::Rejected(Rejection::IllegalVector),
                        _ if pending.insert(vector) => Acceptance::Accepted,
                        _ => Acceptance::Merged,
                    };
                    prop_assert_eq!(apic.accept(Message::fixed(vector)), expected);
                }
                Step::Take => {
                    let barrier = in_service.last().map_or(0, |vector| vector >> 4).max(task_priority >> 4);
                    let expected = pending.last().copied().filter(|vector| vector >> 4 > barrier);
                    prop_assert_eq!(apic.deliverable(), expected);
                    prop_assert_eq!(apic.take(), expected);
                    if let Some(vector) = expected {
                        pending.remove(&vector);
                        prop_assert!(in_service.insert(vector), "{:#x} was in service twice", vector);
                    }
                }
                Step::EndOfInterrupt => prop_assert_eq!(end_of_interrupt(&mut apic), in_service.pop_last()),
                Step::TaskPriority(priority) => {
                    task_priority = priority;
                    write(&mut apic, Register::TASK_PRIORITY, u32::from(priority));
                }
                Step::Nmi => {
                    let merged = apic.accept(Message::edge(DeliveryMode::Nmi, 0)) == Acceptance::Merged;
                    prop_assert_eq!(merged, nmi_latched);
                    nmi_latched = true;
                }
                Step::TakeNmi => {
                    let taken = nmi_latched && !nmi_running;
                    prop_assert_eq!(apic.take_nmi(), taken);
                    if taken {
                        (nmi_latched, nmi_running) = (false, true);
                    }
                }
                Step::ReturnFromNmi => {
                    apic.return_from_nmi();
                    nmi_running = false;
                }
            }
            prop_assert!(apic.irr().iter().eq(pending.iter().copied()));
            prop_assert!(apic.isr().iter().eq(in_service.iter().copied()));
        }
    }

    #[test]
    fn no_access_panics_and_no_access_accepts_an_interrupt(
        accesses in prop::collection::vec((0..0x40u16, any::<Option<u32>>(), any::<u64>()), 0..100), x2 in any::<bool>()
    ) {
        let mut apic = if x2 { x2apic() } else { xapic() };
        for (index, value, time) in accesses {
            let register = Register::at(index * 16).unwrap();
            let now = Instant::from_nanos(time);
            // Unmasked, the timer and errors are sources of interrupts.
            let is_source = [Register::LVT_ERROR, Register::LVT_TIMER].contains(&register);
            match value {
                Some(value) if !is_source => {
                    let effect = apic.write(register, value, now);
                    if let Ok(Effect::Dispatch(command)) = effect {
                        prop_assert!(!command.icr.delivery_mode.has_interrupt_vector() || command.icr.vector >= 16);
                    }
                }
                _ => {
                    let read = apic.read(register, now);
                    prop_assert_eq!(read, apic.read(register, now));
                }
            }
            prop_assert!(apic.is_quiet());
        }
    }

    #[test]
    fn whatever_is_written_and_arrives_nothing_panics_and_each_class_keeps_its_room(
        steps in prop::collection::vec((0..9u8, 0..0x40u16, any::<u32>(), any::<u64>()), 0..100), p6 in any::<bool>()
    ) {
        let features = if p6 { Features::P6 } else { Features { eoi_suppression: true, ..Features::CURRENT } };
        let mut apic = ApicModel::with_features(3, Mode::XApic, features);
        write(&mut apic, Register::SPURIOUS_VECTOR, 0x1ff);
        for (step, index, value, time) in steps {
            let (register, now) = (Register::at(index * 16).unwrap(), Instant::from_nanos(time));
            // Faults are answers too; what must not happen is a panic.
            match step {
                0 | 1 => {
                    let _ = apic.write(register, value, now);
                }
                2 => {
                    let _ = apic.read(register, now);
                }
                3 => {
                    let _ = apic.write_icr(time, now);
                }
                4 => {
                    let trigger = if value & 1 == 0 { Trigger::Edge } else { Trigger::Level };
                    apic.accept(Message { trigger, ..Message::fixed(index as u8 * 4) });
                }
                5 => {
                    let pins = [LocalSource::Lint0, LocalSource::Lint1, LocalSource::Performance];
                    apic.raise_local(pins[index as usize % 3]);
                    apic.lower_local(pins[value as usize % 3]);
                }
                6 => {
                    let _ = apic.write_base(u64::from(value) & 0xc00 | 0xfee0_0000);
                }
                7 => apic.write_tsc_deadline(u64::from(value), now),
                _ => {
                    apic.acknowledge();
                }
            }
            apic.fire_timer(now);
            prop_assert!(apic.timer_fires_at().is_none_or(|end| end > now));
            for class in 0..16 {
                prop_assert!(!p6 || apic.irr.count_of_class(class) + apic.isr.count_of_class(class) <= 2);
            }
        }
    }
}
