//! The recorded events of one run, in the one order in which they happened.

use smpcall_machine::Event;

/// What one run recorded.
///
/// The order is that of execution, which is the order of virtual time up to the cost of an operation: an
/// event carries the time at which its operation ended.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Trace {
    /// How many CPUs the machine has.
    pub cpus: u32,
    /// What happened.
    pub events: Vec<Event>,
    /// The names of frames: the argument of [`FrameEntered`](smpcall_machine::EventKind::FrameEntered) is an
    /// index into this.
    pub frame_names: Vec<String>,
}

/// What a trace file begins with.
const MAGIC: [u8; 8] = *b"SMPTRACE";
/// The version of the file format.
const VERSION: u32 = 1;

/// Why bytes are not a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceError {
    /// They do not begin like one.
    NotATrace,
    /// Written in a version of the format that this program does not know.
    UnknownVersion(u32),
    /// They end in the middle.
    Truncated,
    /// An event has an unknown kind.
    UnknownEventKind(u16),
    /// A frame name is not UTF-8.
    BadName,
}

impl core::fmt::Display for TraceError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NotATrace => f.write_str("this is not a trace of the simulator"),
            Self::UnknownVersion(version) => write!(f, "version {version} of the trace format is unknown"),
            Self::Truncated => f.write_str("the trace ends in the middle"),
            Self::UnknownEventKind(code) => write!(f, "no event kind has the number {code}"),
            Self::BadName => f.write_str("a frame name in the trace is not UTF-8"),
        }
    }
}

impl core::error::Error for TraceError {}

impl Trace {
    /// The trace as a file, all numbers little-endian: `SMPTRACE`, version (4 bytes), CPUs (4), number of names
    /// (4), number of events (8), the names (length in 4 bytes, then UTF-8), the events (32 bytes each, see
    /// [`Event`]).
    pub fn to_bytes(&self) -> Vec<u8> {
        let names: usize = self.frame_names.iter().map(|name| 4 + name.len()).sum();
        let mut bytes = Vec::with_capacity(28 + names + self.events.len() * Event::BYTES);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.cpus.to_le_bytes());
        bytes.extend((self.frame_names.len() as u32).to_le_bytes());
        bytes.extend((self.events.len() as u64).to_le_bytes());
        for name in &self.frame_names {
            bytes.extend((name.len() as u32).to_le_bytes());
            bytes.extend(name.as_bytes());
        }
        for event in &self.events {
            bytes.extend(event.to_bytes());
        }
        bytes
    }

    /// The trace from a file.
    ///
    /// # Errors
    /// If the bytes are not what [`to_bytes`](Self::to_bytes) writes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TraceError> {
        let mut reader = Reader(bytes);
        if reader.array::<8>().map_err(|_| TraceError::NotATrace)? != MAGIC {
            return Err(TraceError::NotATrace);
        }
        let version = reader.u32()?;
        if version != VERSION {
            return Err(TraceError::UnknownVersion(version));
        }
        let cpus = reader.u32()?;
        let names = reader.u32()?;
        let events = u64::from_le_bytes(reader.array()?);
        let mut trace = Self { cpus, ..Self::default() };
        for _ in 0..names {
            let length = reader.u32()? as usize;
            let name = reader.take(length)?.to_vec();
            trace.frame_names.push(String::from_utf8(name).map_err(|_| TraceError::BadName)?);
        }
        for _ in 0..events {
            let event = Event::from_bytes(&reader.array()?);
            trace.events.push(event.map_err(|unknown| TraceError::UnknownEventKind(unknown.0))?);
        }
        Ok(trace)
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], TraceError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(TraceError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], TraceError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, TraceError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smpcall_machine::{Cpu, EventKind, Instant};

    fn sample() -> Trace {
        let event = Event {
            time: Instant::from_nanos(9),
            kind: EventKind::FrameEntered,
            cpu: Cpu::new(3),
            other: None,
            detail: 0,
            argument: 1,
        };
        Trace { cpus: 4, events: vec![event; 3], frame_names: vec!["outer".into(), "inner".into()] }
    }

    #[test]
    fn a_trace_survives_its_file() {
        assert_eq!(Trace::from_bytes(&sample().to_bytes()), Ok(sample()));
    }

    #[test]
    fn every_shortened_file_is_an_error_and_not_a_panic() {
        let bytes = sample().to_bytes();
        for length in 0..bytes.len() {
            let result = Trace::from_bytes(&bytes[..length]);
            assert!(
                matches!(result, Err(TraceError::Truncated | TraceError::NotATrace)),
                "{length}: {result:?}"
            );
        }
    }

    #[test]
    fn a_foreign_version_is_named() {
        let mut bytes = sample().to_bytes();
        bytes[8] = 9;
        assert_eq!(Trace::from_bytes(&bytes), Err(TraceError::UnknownVersion(9)));
    }
}
