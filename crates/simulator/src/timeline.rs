//! The picture of a trace: one column per CPU, time downwards, every IPI an arrow, the lost one unmistakable.
//!
//! [`render`] turns events into an SVG 1.1 document that can be read on a screen and on paper. Above the picture
//! stands in words what went wrong. Ticks, halts and the like that nothing came of are left out, and so is what there
//! is no room for and what repeats itself; all of it is counted in the picture itself.
//! Time runs downwards but not to scale: gaps between events are drawn by their square root, idle ones cut short by
//! a break that says how long it lasted. It knows events, and nothing of the simulator that recorded them.

// Pixels are signed and few: pages are thousands of pixels wide, columns and lines are counted in hundreds.
#![allow(clippy::cast_possible_wrap)]

mod activity;
mod columns;
mod findings;
mod labels;
mod marks;
mod page;
mod reader;
#[cfg(test)]
pub(crate) mod samples;
mod scale;
mod selection;
mod svg;
#[cfg(test)]
mod tests;
mod units;

use smpcall_machine::Event;

// For other pictures.
pub(crate) use activity::{Activity, Span, SpanKind};
pub(crate) use findings::findings;
pub(crate) use labels::text_width;
pub(crate) use page::{AMBER, BLUE, GREY, INK, PURPLE, RED};
pub(crate) use svg::Svg;

/// What is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The heading.
    pub title: &'a str,
    /// One line below it; may be empty.
    pub subtitle: &'a str,
    /// How many CPUs the machine has. Events of others are left out and counted.
    pub cpus: u32,
    /// The trace. It need not be sorted: the picture sorts by time and keeps the order of equal times.
    pub events: &'a [Event],
    /// The names that [`FrameEntered`](smpcall_machine::EventKind::FrameEntered) refers to by number.
    pub frame_names: &'a [String],
}

/// How large the picture may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The width in pixels. More CPUs than fit make the picture wider.
    pub width: u32,
    /// How many CPUs are drawn at most. If there are more, the most eventful ones are drawn.
    pub max_columns: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { width: 1400, max_columns: 64 }
    }
}

/// Draws a trace as an SVG 1.1 document. The same input gives the same document, byte for byte.
pub fn render(input: &Input<'_>, options: &Options) -> String {
    let activity = activity::Activity::new(input.cpus, input.events, input.frame_names);
    let selection = selection::Selection::new(&activity, input.cpus, options);
    page::draw(input, options, &activity, &selection)
}
