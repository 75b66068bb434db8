//! Names of shared words, so that nothing a person reads contains an address.

use smpcall_machine::Access;

use crate::operation::Operation;

type NameOf<'p> = Box<dyn Fn(usize) -> String + 'p>;

struct Range<'p> {
    base: usize,
    bytes: usize,
    name_of: NameOf<'p>,
}

/// The registered ranges of shared memory.
#[derive(Default)]
pub struct Names<'p> {
    ranges: Vec<Range<'p>>,
}

impl<'p> Names<'p> {
    /// Names the words of an object: `name_of` is given the offset of a word in it, in bytes.
    pub fn range<T: ?Sized>(&mut self, object: &T, name_of: impl Fn(usize) -> String + 'p) {
        let range = Range {
            base: core::ptr::from_ref(object).cast::<()>().addr(),
            bytes: size_of_val(object),
            name_of: Box::new(name_of),
        };
        let at = self.ranges.partition_point(|other| other.base <= range.base);
        self.ranges.insert(at, range);
    }

    /// The name of a word: that of the innermost range that begins last before it; `unnamed` without one.
    pub fn name(&self, location: usize) -> String {
        let end = self.ranges.partition_point(|range| range.base <= location);
        let found = self.ranges[..end].iter().rev().find(|range| location - range.base < range.bytes);
        found.map_or_else(|| "unnamed".into(), |range| (range.name_of)(location - range.base))
    }
}

impl Names<'_> {
    /// An operation in words, without addresses.
    pub fn describe(&self, operation: &Operation) -> String {
        match *operation {
            Operation::Access { location, access, .. } => {
                let name = self.name(location);
                match access {
                    Access::Load => format!("load {name}"),
                    Access::Store(value) => format!("store {value:#x} to {name}"),
                    Access::Swap(value) => format!("swap {value:#x} into {name}"),
                    Access::FetchOr(bits) => format!("or {bits:#x} into {name}"),
                    Access::FetchAnd(bits) => format!("and {bits:#x} into {name}"),
                    Access::FetchAdd(value) => format!("add {} to {name}", value.cast_signed()),
                    Access::CompareExchange(expected, value, _) => {
                        format!("compare-exchange {name} from {expected:#x} to {value:#x}")
                    }
                    Access::PlainRead(_) => format!("read {name}"),
                    Access::PlainWrite(_) => format!("write {name}"),
                }
            }
            Operation::Wait { deadline } => match deadline.instant() {
                None => "wait".into(),
                Some(instant) => format!("wait until {} ns at the latest", instant.as_nanos()),
            },
            Operation::DisableInterrupts => "disable interrupts".into(),
            Operation::EnableInterrupts => "enable interrupts".into(),
            Operation::ReadRegister(register) => format!("read APIC register {:#x}", register.offset()),
            Operation::WriteRegister(register, value) => {
                format!("write {value:#x} to APIC register {:#x}", register.offset())
            }
            Operation::WriteIcr(value) => format!("write {value:#x} to the ICR"),
            Operation::Halt => "halt".into(),
            Operation::Halted => "halted".into(),
            Operation::Work { nanos } => format!("work for {nanos} ns"),
            Operation::Fence => "fence".into(),
            Operation::Request { cpu, vector } => format!("request vector {vector:#04x} from {cpu}"),
            Operation::Ended => "ended".into(),
            Operation::WaitForStartUp => "wait for a start-up message".into(),
            Operation::StartUp { page } => format!("start up at page {page:#04x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::Ordering;
    use smpcall_local_apic::Register;
    use smpcall_machine::Deadline;

    #[test]
    fn a_word_has_the_name_of_the_innermost_range() {
        let object = [0u64; 8];
        let mut names = Names::default();
        names.range(&object, |offset| format!("object[{}]", offset / 8));
        names.range(&object[2..4], |offset| format!("inner[{}]", offset / 8));
        let base = object.as_ptr().addr();
        let found = [0, 2, 3, 4, 7].map(|index| names.name(base + 8 * index));
        assert_eq!(found, ["object[0]", "inner[0]", "inner[1]", "object[4]", "object[7]"]);
        assert_eq!(names.name(base - 8), "unnamed");
        assert_eq!(names.name(base + 64), "unnamed");
    }

    #[test]
    fn an_operation_reads_as_a_sentence() {
        let object = [0u64; 2];
        let mut names = Names::default();
        names.range(&object, |offset| format!("word[{}]", offset / 8));
        let location = object.as_ptr().addr() + 8;
        let access = |access| Operation::Access { location, access, order: Ordering::Relaxed };
        for (operation, words) in [
            (access(Access::Store(16)), "store 0x10 to word[1]"),
            (access(Access::FetchAdd(u64::MAX)), "add -1 to word[1]"),
            (
                access(Access::CompareExchange(0, 1, Ordering::Relaxed)),
                "compare-exchange word[1] from 0x0 to 0x1",
            ),
            (Operation::Wait { deadline: Deadline::NEVER }, "wait"),
            (Operation::WriteRegister(Register::END_OF_INTERRUPT, 0), "write 0x0 to APIC register 0xb0"),
        ] {
            assert_eq!(names.describe(&operation), words);
        }
    }
}
