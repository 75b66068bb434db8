//! A second look at a source that lives: what is stuck still lies there, what was on its way does not.

use std::thread;
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::calls::Calls;
use super::descriptor::{Csd, Layout};
use super::processor::Processor;
use super::reader::Reader;
use crate::evidence::{CallEvidence, CallState};

/// The time between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// Watches the calls that lie in queues, for as long as a wait may last: until then what was read of them, of queues and of local
/// APICs may have been of different moments. Does nothing if there are none, or the source does not live.
pub(super) fn look(reader: Reader<'_>, layout: &Layout, processors: &mut [Processor], found: &mut Calls) {
    let queued = |call: &CallEvidence| call.state == CallState::Queued;
    if !reader.kernel.memory.dump().kind().lives() || !found.list.iter().any(queued) {
        return;
    }
    let began = Instant::now();
    let watched: Vec<(usize, Watched)> = found
        .list
        .iter()
        .enumerate()
        .filter(|(_, call)| queued(call))
        .filter_map(|(at, call)| Some((at, Watched::new(reader, layout, call)?)))
        .collect();
    let mut still: Vec<bool> = vec![true; watched.len()];
    while began.elapsed() < Duration::from_nanos(PATIENCE) && still.contains(&true) {
        thread::sleep(PAUSE);
        for (still, (_, watched)) in still.iter_mut().zip(&watched) {
            *still &= watched.is_the_same(reader, layout);
        }
    }
    let nanos = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    for (&still, &(at, _)) in still.iter().zip(&watched) {
        let call = &mut found.list[at];
        if still {
            (call.nanos, call.perhaps_fresh) = (call.nanos.max(Some(nanos)), false);
            continue;
        }
        // What lies there now is younger than the watch.
        (call.nanos, call.nanos_at_most, call.perhaps_fresh) = (None, Some(nanos.min(PATIENCE - 1)), true);
        found.moving.push(format!("the queue of CPU {}", call.target));
        let caller = call.caller.filter(|_| call.waited);
        let wait = processors.iter_mut().find(|processor| Some(processor.evidence.cpu) == caller);
        if let Some(wait) = wait.and_then(|processor| processor.evidence.wait.as_mut()) {
            wait.renewed = Some(true);
        }
    }
    found.moving.sort();
    found.moving.dedup();
}

/// A call that lies in a queue, and where the head of that is.
struct Watched {
    head: u64,
    csd: Csd,
}

impl Watched {
    fn new(reader: Reader<'_>, layout: &Layout, call: &CallEvidence) -> Option<Self> {
        let head = reader.per_cpu("call_single_queue", call.target)?;
        let address = call.descriptor.as_ref()?.address;
        Some(Self { head, csd: layout.read(reader, address)? })
    }

    /// Whether all is as it was: a caller that calls again uses the same descriptor, but its target empties the queue in between.
    fn is_the_same(&self, reader: Reader<'_>, layout: &Layout) -> bool {
        let mut first = [0; 8];
        let mut bytes = vec![0; layout.size()];
        let memory = &reader.kernel.memory;
        let read = memory.read_again(self.head, &mut first).is_ok()
            && memory.read_again(self.csd.address, &mut bytes).is_ok();
        // More may have come on top.
        let empty = u64::from_le_bytes(first) == 0;
        read && !empty && layout.parse(self.csd.address, &bytes) == Some(self.csd)
    }
}
