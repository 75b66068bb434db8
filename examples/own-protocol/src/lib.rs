//! A kernel's own code, written over the seam: generic over the [`Memory`] that its words are in, and otherwise as it
//! would be without. On hardware [`Hardware`](smpcall_machine::Hardware) makes each word a `core::sync::atomic` and
//! nothing else.
//!
//! Here: a mailbox for one letter at a time. A sender puts a letter in and rings if the mailbox was empty; the
//! owner's interrupt handler takes it out. `tests/explored.rs` shows every schedule of it to the explorer.
#![no_std]

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use smpcall_machine::{Memory, Plain, Word};

/// Nobody has put anything in.
const EMPTY: u64 = 0;
/// A sender is writing its letter.
const WRITING: u64 = 1;
/// There is a letter.
const FULL: u64 = 2;
/// The owner is reading it.
const READING: u64 = 3;

/// A mailbox for one letter.
pub struct OneLetter<M> {
    state: Word<M>,
    letter: Plain<M, u64>,
}

impl<M: Memory> OneLetter<M> {
    /// An empty mailbox.
    pub const fn new() -> Self {
        Self { state: Word::new(EMPTY), letter: Plain::new(0) }
    }

    /// What to wait for before the next try, if it was full.
    pub const fn state(&self) -> &Word<M> {
        &self.state
    }

    /// Puts a letter in, if the mailbox is empty: then the owner must be rung. Any context, any CPU.
    pub fn put(&self, letter: u64) -> bool {
        // Acquire: the owner has read the letter before.
        if self.state.compare_exchange(EMPTY, WRITING, Acquire, Relaxed).is_err() {
            return false;
        }
        // SAFETY: the step above gives the letter to this sender alone, until the store below.
        unsafe { self.letter.write(letter) };
        // Release: who finds it full finds the letter.
        self.state.store(FULL, Release);
        true
    }

    /// Takes the letter out, if there is one. Any context, any CPU.
    pub fn take(&self) -> Option<u64> {
        // Acquire: the letter was written before.
        self.state.compare_exchange(FULL, READING, Acquire, Relaxed).ok()?;
        // SAFETY: the step above gives the letter to this reader alone, until the store below.
        let letter = unsafe { self.letter.read() };
        // Release: the next sender writes after this read.
        self.state.store(EMPTY, Release);
        Some(letter)
    }

    /// As [`take`](Self::take), with the mistake that one makes: the mailbox is empty again before the letter is read.
    pub fn take_too_late(&self) -> Option<u64> {
        self.state.compare_exchange(FULL, EMPTY, Acquire, Relaxed).ok()?;
        // SAFETY: none. Another sender may be writing; the explorer says so.
        Some(unsafe { self.letter.read() })
    }
}

impl<M: Memory> Default for OneLetter<M> {
    fn default() -> Self {
        Self::new()
    }
}
