//! The three modes of the timer, and what happens between them.

use proptest::prelude::*;
use smpcall_local_apic::{DeliveryMode, Mode, Register};

use super::super::{Message, Rejection};
use super::*;

const VECTOR: u32 = 0xee;
const PERIODIC: u32 = 1 << 17;
const TSC_DEADLINE: u32 = 1 << 18;
const MASKED: u32 = 1 << 16;
/// The divide configuration for 1.
const BY_1: u32 = 0b1011;

fn at(nanos: u64) -> Instant {
    Instant::from_nanos(nanos)
}

fn write(apic: &mut ApicModel, register: Register, value: u32, now: u64) {
    apic.write(register, value, at(now)).unwrap();
}

fn count(apic: &mut ApicModel, now: u64) -> u32 {
    apic.read(Register::TIMER_CURRENT_COUNT, at(now)).unwrap()
}

fn timer(entry: u32) -> ApicModel {
    let mut apic = ApicModel::new(3, Mode::XApic);
    write(&mut apic, Register::SPURIOUS_VECTOR, 0x1ff, 0);
    write(&mut apic, Register::LVT_TIMER, entry, 0);
    write(&mut apic, Register::TIMER_DIVIDE, BY_1, 0);
    apic
}

const FIRED: Option<Acceptance> = Some(Acceptance::Accepted);

#[test]
fn one_shot_counts_down_once() {
    let mut apic = timer(VECTOR);
    assert_eq!((apic.timer_fires_at(), count(&mut apic, 100)), (None, 0));
    write(&mut apic, Register::TIMER_INITIAL_COUNT, 500, 100);
    assert_eq!(apic.timer_fires_at(), Some(at(600)));
    assert_eq!([100, 101, 599, 600].map(|now| count(&mut apic, now)), [500, 499, 1, 0]);
    assert_eq!(apic.fire_timer(at(599)), None);
    assert_eq!(apic.fire_timer(at(600)), FIRED);
    assert_eq!(apic.take(), Some(0xee));
    assert_eq!((apic.timer_fires_at(), apic.fire_timer(at(2000))), (None, None));
    assert_eq!(apic.read(Register::TIMER_INITIAL_COUNT, at(2000)), Ok(500));
}

#[test]
fn periodic_begins_again_without_drifting() {
    let mut apic = timer(PERIODIC | VECTOR);
    write(&mut apic, Register::TIMER_INITIAL_COUNT, 500, 100);
    for fires in [600, 1100, 1600] {
        assert_eq!(apic.timer_fires_at(), Some(at(fires)));
        assert_eq!(count(&mut apic, fires), 500, "before it is noticed");
        // Noticed late, and not late by the next period.
        assert_eq!(apic.fire_timer(at(fires + 7)), FIRED);
        assert_eq!(apic.take(), Some(0xee));
        apic.write(Register::END_OF_INTERRUPT, 0, at(fires)).unwrap();
    }
    assert_eq!(apic.fire_timer(at(3105)), FIRED, "two periods are one interrupt");
    assert_eq!(apic.timer_fires_at(), Some(at(3600)));
    assert_eq!(count(&mut apic, 3105), 495);
}

#[test]
fn an_initial_count_of_zero_stops_the_timer() {
    for mode in [0, PERIODIC] {
        let mut apic = timer(mode | VECTOR);
        write(&mut apic, Register::TIMER_INITIAL_COUNT, 500, 100);
        write(&mut apic, Register::TIMER_INITIAL_COUNT, 0, 200);
        assert_eq!((apic.timer_fires_at(), count(&mut apic, 200)), (None, 0));
        assert_eq!(apic.fire_timer(at(600)), None);
    }
}

#[test]
fn writing_the_initial_count_begins_anew() {
    let mut apic = timer(VECTOR);
    write(&mut apic, Register::TIMER_INITIAL_COUNT, 500, 100);
    write(&mut apic, Register::TIMER_INITIAL_COUNT, 300, 500);
    assert_eq!(apic.timer_fires_at(), Some(at(800)));
}

#[test]
fn the_divisor_is_one_to_128() {
    let divisors = [(0b1011, 1), (0, 2), (1, 4), (2, 8), (3, 16), (0b1000, 32), (0b1001, 64), (0b1010, 128)];
    for (bits, divisor) in divisors {
        let mut apic = timer(VECTOR);
        write(&mut apic, Register::TIMER_DIVIDE, bits, 0);
        write(&mut apic, Register::TIMER_INITIAL_COUNT, 10, 1000);
        assert_eq!(apic.timer_fires_at(), Some(at(1000 + 10 * divisor)), "{bits:#b}");
        assert_eq!(count(&mut apic, 1000 + 3 * divisor), 7);
    }
}

#[test]
fn another_divisor_goes_on_from_the_count() {
    let mut apic = timer(VECTOR);
    write(&mut apic, Register::TIMER_INITIAL_COUNT, 500, 100);
    write(&mut apic, Register::TIMER_DIVIDE, 0, 300);
    assert_eq!(count(&mut apic, 300), 300);
    assert_eq!(apic.timer_fires_at(), Some(at(900)));
}

#[test]
fn the_largest_count_with_the_largest_divisor_fits() {
    let mut apic = timer(PERIODIC | VECTOR);
    write(&mut apic, Register::TIMER_DIVIDE, 0b1010, 0);
    write(&mut apic, Register::TIMER_INITIAL_COUNT, u32::MAX, 0);
    assert_eq!(apic.timer_fires_at(), Some(at(128 * u64::from(u32::MAX))));
    assert_eq!(count(&mut apic, 128), u32::MAX - 1);
    assert_eq!(apic.fire_timer(at(u64::MAX)), FIRED);
    assert!(count(&mut apic, u64::MAX) > 0);
}

#[test]
fn one_shot_and_periodic_change_into_each_other_and_go_on() {
    let mut apic = timer(VECTOR);
    write(&mut apic, Register::TIMER_INITIAL_COUNT, 500, 0);
    write(&mut apic, Register::LVT_TIMER, PERIODIC | VECTOR, 300);
    assert_eq!(count(&mut apic, 300), 200);
    assert_eq!(apic.fire_timer(at(500)), FIRED);
    assert_eq!(count(&mut apic, 500), 500);
    write(&mut apic, Register::LVT_TIMER, VECTOR, 800);
    assert_eq!(count(&mut apic, 800), 200);
    apic.fire_timer(at(1000));
    write(&mut apic, Register::LVT_TIMER, PERIODIC | VECTOR, 1200);
    assert_eq!((count(&mut apic, 1200), apic.timer_fires_at()), (0, None), "it had ended");
}

#[test]
fn an_end_that_was_not_noticed_happens_before_what_is_written_next() {
    let mut apic = timer(VECTOR);
    write(&mut apic, Register::TIMER_INITIAL_COUNT, 500, 0);
    write(&mut apic, Register::LVT_TIMER, MASKED | VECTOR, 700);
    assert_eq!(apic.take(), Some(0xee));
    assert_eq!(apic.timer_fires_at(), None);
}

#[test]
fn a_masked_timer_counts_and_an_end_while_masked_is_lost() {
    let mut apic = timer(MASKED | VECTOR);
    write(&mut apic, Register::TIMER_INITIAL_COUNT, 500, 0);
    assert_eq!((apic.timer_fires_at(), count(&mut apic, 200)), (None, 300));
    let mut early = apic.clone();
    write(&mut early, Register::LVT_TIMER, VECTOR, 499);
    assert_eq!(early.timer_fires_at(), Some(at(500)));
    write(&mut apic, Register::LVT_TIMER, VECTOR, 500);
    assert_eq!(apic.timer_fires_at(), None);
    assert!(apic.is_quiet());
}

#[test]
fn disabling_by_software_masks_the_timer_and_init_stops_it() {
    let mut apic = timer(PERIODIC | VECTOR);
    write(&mut apic, Register::TIMER_INITIAL_COUNT, 500, 0);
    let mut disabled = apic.clone();
    write(&mut disabled, Register::SPURIOUS_VECTOR, 0xff, 100);
    assert_eq!((disabled.timer_fires_at(), count(&mut disabled, 200)), (None, 300));
    apic.accept(Message::edge(DeliveryMode::Init, 0));
    assert_eq!((apic.timer_fires_at(), count(&mut apic, 200)), (None, 0));
    assert_eq!(apic.read(Register::TIMER_DIVIDE, at(200)), Ok(0));
}

#[test]
fn an_illegal_vector_is_an_error_when_it_fires() {
    let mut apic = timer(3);
    write(&mut apic, Register::ERROR_STATUS, 0, 0);
    write(&mut apic, Register::TIMER_INITIAL_COUNT, 500, 0);
    assert_eq!(apic.fire_timer(at(500)), Some(Acceptance::Rejected(Rejection::IllegalVector)));
    assert_eq!(apic.errors(), 1 << 6);
}

#[test]
fn a_tsc_deadline_fires_once_and_reads_zero_afterwards() {
    let mut apic = timer(TSC_DEADLINE | VECTOR);
    apic.write_tsc_deadline(900, at(100));
    assert_eq!((apic.timer_fires_at(), apic.read_tsc_deadline()), (Some(at(900)), 900));
    assert_eq!(count(&mut apic, 200), 0, "there is no count in this mode");
    write(&mut apic, Register::TIMER_INITIAL_COUNT, 5, 200);
    assert_eq!(apic.timer_fires_at(), Some(at(900)), "the initial count is ignored");
    assert_eq!(apic.fire_timer(at(900)), FIRED);
    assert_eq!((apic.timer_fires_at(), apic.read_tsc_deadline()), (None, 0));
}

#[test]
fn a_tsc_deadline_in_the_past_fires_at_once_and_zero_disarms() {
    let mut apic = timer(TSC_DEADLINE | VECTOR);
    apic.write_tsc_deadline(900, at(100));
    apic.write_tsc_deadline(0, at(200));
    assert_eq!(apic.timer_fires_at(), None);
    assert!(apic.is_quiet());
    apic.write_tsc_deadline(300, at(300));
    assert_eq!((apic.take(), apic.read_tsc_deadline()), (Some(0xee), 0));
}

#[test]
fn into_and_out_of_tsc_deadline_mode_the_timer_is_disarmed() {
    let mut apic = timer(VECTOR);
    write(&mut apic, Register::TIMER_INITIAL_COUNT, 500, 0);
    apic.write_tsc_deadline(900, at(0));
    assert_eq!(apic.read_tsc_deadline(), 0, "ignored in other modes");
    write(&mut apic, Register::LVT_TIMER, TSC_DEADLINE | VECTOR, 100);
    assert_eq!(apic.timer_fires_at(), None);
    apic.write_tsc_deadline(900, at(100));
    write(&mut apic, Register::LVT_TIMER, VECTOR, 200);
    assert_eq!((apic.timer_fires_at(), apic.read_tsc_deadline(), count(&mut apic, 200)), (None, 0, 0));
}

#[test]
fn without_the_feature_there_is_no_tsc_deadline_mode() {
    let mut apic = ApicModel::with_features(3, Mode::XApic, super::super::Features::P6);
    write(&mut apic, Register::SPURIOUS_VECTOR, 0x1ff, 0);
    write(&mut apic, Register::LVT_TIMER, TSC_DEADLINE | VECTOR, 0);
    assert_eq!(apic.read(Register::LVT_TIMER, at(0)), Ok(VECTOR));
}

#[test]
fn the_reserved_mode_does_not_run() {
    let mut apic = timer(PERIODIC | TSC_DEADLINE | VECTOR);
    write(&mut apic, Register::TIMER_INITIAL_COUNT, 500, 0);
    assert_eq!((apic.timer_fires_at(), count(&mut apic, 100)), (None, 0));
}

proptest! {
    /// However often and late somebody looks, the count reads the same.
    #[test]
    fn looking_changes_nothing(
        initial in 1..5000u32, divide in 0..16u32, periodic: bool, mut looks in prop::collection::vec(0..50_000u64, 1..20)
    ) {
        looks.sort_unstable();
        let mut seen = timer(if periodic { PERIODIC | VECTOR } else { VECTOR });
        write(&mut seen, Register::TIMER_DIVIDE, divide & DIVIDE_BITS, 0);
        write(&mut seen, Register::TIMER_INITIAL_COUNT, initial, 0);
        let mut unseen = seen.clone();
        let period = u64::from(initial) * seen.timer.divisor();
        let mut fired = 0;
        for &look in &looks {
            fired += u64::from(seen.fire_timer(at(look)).is_some());
            prop_assert_eq!(count(&mut seen, look), count(&mut unseen, look));
            prop_assert!(seen.timer_fires_at().is_none_or(|end| end > at(look)));
        }
        let ends = looks[looks.len() - 1] / period;
        let most = if periodic { ends } else { ends.min(1) };
        prop_assert!(fired <= most);
        prop_assert_eq!(fired == 0, ends == 0);
    }
}
