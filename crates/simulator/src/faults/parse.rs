//! The text form of faults, both ways.

use core::fmt;
use core::str::FromStr;
use core::time::Duration;

use smpcall_machine::{Cpu, Instant};

use super::{Fault, Filter, MessageKind, Probability};

/// Why a text is not a list of faults. Names the fault it stands in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseFaultError {
    fault: String,
    problem: Problem,
}

/// All faults, for people.
const NAMES: &str = "clock-stops, delay, delay-tick, drop, duplicate, icr-busy, lose-tick, nmi-wedge, no-tick, pause, \
     spurious, stop and wedge";

#[derive(Clone, Debug, PartialEq, Eq)]
enum Problem {
    UnknownFault,
    UnknownField(String),
    FieldTwice(&'static str),
    FieldMissing(&'static str),
    NotANumber(&'static str, String),
    NotAProbability(String),
    NotATime(&'static str, String),
    NthAndProbability,
    VectorAndNmi,
}

impl fmt::Display for ParseFaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "in the fault `{}`: ", self.fault)?;
        match &self.problem {
            Problem::UnknownFault => write!(f, "no fault has this name; there are {NAMES}"),
            Problem::UnknownField(field) => write!(f, "it has no field `{field}`"),
            Problem::FieldTwice(field) => write!(f, "the field `{field}` is given twice"),
            Problem::FieldMissing(field) => write!(f, "the field `{field}` is missing"),
            Problem::NotANumber(field, value) => write!(f, "`{field}={value}` is not a number in range"),
            Problem::NotAProbability(value) => write!(f, "`p={value}` is not a probability from 0 to 1"),
            Problem::NotATime(field, value) => {
                write!(f, "`{field}={value}` is not a time with its unit (ns, us, ms or s)")
            }
            Problem::NthAndProbability => f.write_str("give either `n` or `p`, not both"),
            Problem::VectorAndNmi => f.write_str("an NMI has no vector: give either `vector` or `nmi`"),
        }
    }
}

impl core::error::Error for ParseFaultError {}

/// The fields of one fault; each is taken out by whoever needs it, and what is left is an error.
struct Fields<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Fields<'a> {
    fn take(&mut self, name: &'static str) -> Result<Option<&'a str>, Problem> {
        let mut found = self.0.extract_if(.., |field| field.0 == name);
        let value = found.next().map(|field| field.1);
        if found.next().is_some() { Err(Problem::FieldTwice(name)) } else { Ok(value) }
    }

    fn number(&mut self, name: &'static str, limit: u64) -> Result<Option<u64>, Problem> {
        let Some(text) = self.take(name)? else { return Ok(None) };
        let number = match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        };
        match number {
            Ok(number) if number <= limit => Ok(Some(number)),
            _ => Err(Problem::NotANumber(name, text.into())),
        }
    }

    fn cpu(&mut self, name: &'static str) -> Result<Option<Cpu>, Problem> {
        // The largest number stands for "none" in traces.
        Ok(self.number(name, u64::from(u32::MAX) - 1)?.map(|number| Cpu::new(number as u32)))
    }

    fn time(&mut self, name: &'static str) -> Result<Option<Duration>, Problem> {
        let Some(text) = self.take(name)? else { return Ok(None) };
        let parsed = text.find(|c: char| !c.is_ascii_digit()).and_then(|end| {
            let number: u64 = text[..end].parse().ok()?;
            let unit = match &text[end..] {
                "ns" => 1,
                "us" => 1_000,
                "ms" => 1_000_000,
                "s" => 1_000_000_000,
                _ => return None,
            };
            number.checked_mul(unit)
        });
        parsed.map(|nanos| Some(Duration::from_nanos(nanos))).ok_or(Problem::NotATime(name, text.into()))
    }

    fn some_cpu(&mut self) -> Result<Cpu, Problem> {
        self.cpu("cpu")?.ok_or(Problem::FieldMissing("cpu"))
    }

    fn moment(&mut self) -> Result<Instant, Problem> {
        Ok(Instant::default().plus(self.time("at")?.ok_or(Problem::FieldMissing("at"))?))
    }

    fn flag(&mut self, name: &'static str) -> Result<bool, Problem> {
        match self.take(name)? {
            None => Ok(false),
            Some("") => Ok(true),
            Some(value) => Err(Problem::UnknownField(format!("{name}={value}"))),
        }
    }

    fn probability(&mut self) -> Result<Option<Probability>, Problem> {
        let Some(text) = self.take("p")? else { return Ok(None) };
        let probability = text.parse().ok().and_then(Probability::new);
        probability.map(Some).ok_or(Problem::NotAProbability(text.into()))
    }

    fn filter(&mut self) -> Result<Filter, Problem> {
        let vector = self.number("vector", 255)?.map(|vector| MessageKind::Vector(vector as u8));
        let nmi = self.flag("nmi")?.then_some(MessageKind::Nmi);
        if vector.is_some() && nmi.is_some() {
            return Err(Problem::VectorAndNmi);
        }
        Ok(Filter { kind: vector.or(nmi), from: self.cpu("from")?, to: self.cpu("to")? })
    }
}

fn parse_fault(text: &str) -> Result<Fault, Problem> {
    let mut parts = text.split(':');
    let name = parts.next().unwrap_or_default();
    let mut fields = Fields(parts.map(|field| field.split_once('=').unwrap_or((field, ""))).collect());
    let fault = match name {
        "drop" => {
            let filter = fields.filter()?;
            match (fields.number("n", u64::MAX)?, fields.probability()?) {
                (Some(nth), None) => Fault::DropNth { nth, filter },
                (None, Some(probability)) => Fault::Drop { probability, filter },
                (Some(_), Some(_)) => return Err(Problem::NthAndProbability),
                (None, None) => return Err(Problem::FieldMissing("n")),
            }
        }
        "delay" => Fault::Delay {
            probability: fields.probability()?.unwrap_or(Probability::ONE),
            by: fields.time("by")?.ok_or(Problem::FieldMissing("by"))?,
            filter: fields.filter()?,
        },
        "duplicate" => Fault::Duplicate {
            probability: fields.probability()?.unwrap_or(Probability::ONE),
            filter: fields.filter()?,
        },
        "wedge" | "stop" => Fault::Wedge {
            cpu: fields.cpu("cpu")?.ok_or(Problem::FieldMissing("cpu"))?,
            at: Instant::default().plus(fields.time("at")?.ok_or(Problem::FieldMissing("at"))?),
            duration: fields.time("for")?,
            takes_nmis: name == "wedge",
        },
        "nmi-wedge" => Fault::WedgeInNmi {
            cpu: fields.some_cpu()?,
            at: Instant::default().plus(fields.time("at")?.unwrap_or_default()),
            duration: fields.time("for")?,
        },
        "pause" => Fault::Pause {
            at: fields.moment()?,
            duration: fields.time("for")?.ok_or(Problem::FieldMissing("for"))?,
            clock_stops: fields.flag("clock-stops")?,
        },
        "clock-stops" => {
            Fault::ClockStops { cpu: fields.some_cpu()?, at: fields.moment()?, duration: fields.time("for")? }
        }
        "icr-busy" => {
            Fault::IcrBusy { cpu: fields.some_cpu()?, at: fields.moment()?, duration: fields.time("for")? }
        }
        "spurious" => Fault::Spurious { cpu: fields.some_cpu()?, at: fields.moment()? },
        "lose-tick" => {
            let cpu = fields.cpu("cpu")?;
            match (fields.number("n", u64::MAX)?, fields.probability()?) {
                (nth @ Some(_), None) => Fault::LoseTick { nth, probability: Probability::ONE, cpu },
                (None, Some(probability)) => Fault::LoseTick { nth: None, probability, cpu },
                (Some(_), Some(_)) => return Err(Problem::NthAndProbability),
                (None, None) => return Err(Problem::FieldMissing("n")),
            }
        }
        "delay-tick" => Fault::DelayTick {
            probability: fields.probability()?.unwrap_or(Probability::ONE),
            by: fields.time("by")?.ok_or(Problem::FieldMissing("by"))?,
            cpu: fields.cpu("cpu")?,
        },
        "no-tick" => Fault::NoTick { cpu: fields.cpu("cpu")?.ok_or(Problem::FieldMissing("cpu"))? },
        _ => return Err(Problem::UnknownFault),
    };
    match fields.0.first() {
        None => Ok(fault),
        Some(&(field, _)) => Err(Problem::UnknownField(field.into())),
    }
}

/// The faults of a list in text form; none for an empty text.
///
/// # Errors
/// The first part that is none.
pub fn parse(list: &str) -> Result<Vec<Fault>, ParseFaultError> {
    if list.is_empty() { Ok(Vec::new()) } else { list.split(',').map(str::parse).collect() }
}

impl FromStr for Fault {
    type Err = ParseFaultError;

    fn from_str(text: &str) -> Result<Self, ParseFaultError> {
        parse_fault(text).map_err(|problem| ParseFaultError { fault: text.into(), problem })
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Some(MessageKind::Vector(vector)) => write!(f, ":vector={vector:#04x}")?,
            Some(MessageKind::Nmi) => f.write_str(":nmi")?,
            None => {}
        }
        for (name, cpu) in [("from", self.from), ("to", self.to)] {
            if let Some(cpu) = cpu {
                write!(f, ":{name}={}", cpu.number())?;
            }
        }
        Ok(())
    }
}

fn of_cpu(f: &mut fmt::Formatter<'_>, cpu: Option<Cpu>) -> fmt::Result {
    cpu.map_or(Ok(()), |cpu| write!(f, ":cpu={}", cpu.number()))
}

/// A fault that lasts from a moment on.
fn span(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    cpu: Option<Cpu>,
    at: Instant,
    duration: Option<Duration>,
) -> fmt::Result {
    f.write_str(name)?;
    of_cpu(f, cpu)?;
    write!(f, ":at={}ns", at.as_nanos())?;
    duration.map_or(Ok(()), |duration| write!(f, ":for={}ns", duration.as_nanos()))
}

/// The text form.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DropNth { nth, filter } => write!(f, "drop:n={nth}{filter}"),
            Self::Drop { probability, filter } => write!(f, "drop:p={}{filter}", probability.get()),
            Self::Delay { probability, by, filter } => {
                write!(f, "delay:by={}ns:p={}{filter}", by.as_nanos(), probability.get())
            }
            Self::Duplicate { probability, filter } => write!(f, "duplicate:p={}{filter}", probability.get()),
            Self::Wedge { cpu, at, duration, takes_nmis } => {
                let name = if *takes_nmis { "wedge" } else { "stop" };
                write!(f, "{name}:cpu={}:at={}ns", cpu.number(), at.as_nanos())?;
                duration.map_or(Ok(()), |duration| write!(f, ":for={}ns", duration.as_nanos()))
            }
            Self::NoTick { cpu } => write!(f, "no-tick:cpu={}", cpu.number()),
            Self::WedgeInNmi { cpu, at, duration } => span(f, "nmi-wedge", Some(*cpu), *at, *duration),
            Self::ClockStops { cpu, at, duration } => span(f, "clock-stops", Some(*cpu), *at, *duration),
            Self::IcrBusy { cpu, at, duration } => span(f, "icr-busy", Some(*cpu), *at, *duration),
            Self::Spurious { cpu, at } => span(f, "spurious", Some(*cpu), *at, None),
            Self::Pause { at, duration, clock_stops } => {
                span(f, "pause", None, *at, Some(*duration))?;
                f.write_str(if *clock_stops { ":clock-stops" } else { "" })
            }
            Self::LoseTick { nth, probability, cpu } => {
                match nth {
                    Some(nth) => write!(f, "lose-tick:n={nth}")?,
                    None => write!(f, "lose-tick:p={}", probability.get())?,
                }
                of_cpu(f, *cpu)
            }
            Self::DelayTick { probability, by, cpu } => {
                write!(f, "delay-tick:by={}ns:p={}", by.as_nanos(), probability.get())?;
                of_cpu(f, *cpu)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(text: &str) -> String {
        parse(text).expect_err("is no list of faults").to_string()
    }

    #[test]
    fn every_mistake_is_told_in_one_sentence() {
        let unknown = format!("no fault has this name; there are {NAMES}");
        for (text, sentence) in [
            ("explode", unknown.as_str()),
            ("drop:n=1:colour=red", "it has no field `colour`"),
            ("drop:n=1:n=2", "the field `n` is given twice"),
            ("drop:to=1", "the field `n` is missing"),
            ("drop:n=x", "`n=x` is not a number in range"),
            ("drop:n=1:vector=0x100", "`vector=0x100` is not a number in range"),
            ("drop:p=1.5", "`p=1.5` is not a probability from 0 to 1"),
            ("drop:p=nan", "`p=nan` is not a probability from 0 to 1"),
            ("delay:by=5", "`by=5` is not a time with its unit (ns, us, ms or s)"),
            ("delay:by=99999999999s", "`by=99999999999s` is not a time with its unit (ns, us, ms or s)"),
            ("drop:n=1:p=0.5", "give either `n` or `p`, not both"),
            ("drop:n=1:nmi:vector=3", "an NMI has no vector: give either `vector` or `nmi`"),
            ("wedge:cpu=1", "the field `at` is missing"),
            ("", unknown.as_str()),
        ] {
            let list = format!("no-tick:cpu=0,{text}");
            assert_eq!(error(&list), format!("in the fault `{text}`: {sentence}"));
        }
    }

    #[test]
    fn the_documented_example_means_what_it_says() {
        let faults = parse("drop:n=3:vector=0xfb:from=5,wedge:cpu=2:at=1ms:for=500us").expect("parses");
        let filter = Filter { kind: Some(MessageKind::Vector(0xfb)), from: Some(Cpu::new(5)), to: None };
        let wedge = Fault::Wedge {
            cpu: Cpu::new(2),
            at: Instant::from_nanos(1_000_000),
            duration: Some(Duration::from_micros(500)),
            takes_nmis: true,
        };
        assert_eq!(faults, [Fault::DropNth { nth: 3, filter }, wedge]);
        assert_eq!(parse(""), Ok(Vec::new()));
    }

    fn filter() -> impl Strategy<Value = Filter> {
        let kind = prop_oneof![any::<u8>().prop_map(MessageKind::Vector), Just(MessageKind::Nmi)];
        let cpu = || prop::option::of((0..1000u32).prop_map(Cpu::new));
        (prop::option::of(kind), cpu(), cpu()).prop_map(|(kind, from, to)| Filter { kind, from, to })
    }

    fn fault() -> impl Strategy<Value = Fault> {
        let probability = || (0..=1000u32).prop_map(|p| Probability(f64::from(p) / 1000.0));
        let duration = || any::<u64>().prop_map(Duration::from_nanos);
        prop_oneof![
            (any::<u64>(), filter()).prop_map(|(nth, filter)| Fault::DropNth { nth, filter }),
            (probability(), filter()).prop_map(|(probability, filter)| Fault::Drop { probability, filter }),
            (probability(), duration(), filter()).prop_map(|(probability, by, filter)| Fault::Delay {
                probability,
                by,
                filter
            }),
            (probability(), filter())
                .prop_map(|(probability, filter)| Fault::Duplicate { probability, filter }),
            (0..99u32, any::<u64>(), prop::option::of(duration()), any::<bool>()).prop_map(
                |(cpu, at, duration, takes_nmis)| Fault::Wedge {
                    cpu: Cpu::new(cpu),
                    at: Instant::from_nanos(at),
                    duration,
                    takes_nmis
                }
            ),
            (0..99u32).prop_map(|cpu| Fault::NoTick { cpu: Cpu::new(cpu) }),
            (0..99u32, any::<u64>(), prop::option::of(duration()), 0..4u8).prop_map(
                |(cpu, at, duration, which)| {
                    let (cpu, at) = (Cpu::new(cpu), Instant::from_nanos(at));
                    match which {
                        0 => Fault::WedgeInNmi { cpu, at, duration },
                        1 => Fault::ClockStops { cpu, at, duration },
                        2 => Fault::IcrBusy { cpu, at, duration },
                        _ => Fault::Spurious { cpu, at },
                    }
                }
            ),
            (any::<u64>(), duration(), any::<bool>()).prop_map(|(at, duration, clock_stops)| Fault::Pause {
                at: Instant::from_nanos(at),
                duration,
                clock_stops
            }),
            (any::<u64>(), prop::option::of(0..99u32)).prop_map(|(nth, cpu)| Fault::LoseTick {
                nth: Some(nth),
                probability: Probability::ONE,
                cpu: cpu.map(Cpu::new)
            }),
            (probability(), prop::option::of(0..99u32)).prop_map(|(probability, cpu)| Fault::LoseTick {
                nth: None,
                probability,
                cpu: cpu.map(Cpu::new)
            }),
            (probability(), duration(), prop::option::of(0..99u32)).prop_map(|(probability, by, cpu)| {
                Fault::DelayTick { probability, by, cpu: cpu.map(Cpu::new) }
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_fault_survives_its_text_form(fault in fault()) {
            prop_assert_eq!(fault.to_string().parse(), Ok(fault));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,40}") {
            let _ = parse(&text);
        }
    }
}
