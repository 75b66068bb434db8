//! What the words of the mailboxes are called, in traces and counterexamples.

use core::fmt;

use crate::slot::LEVELS;
use crate::{Cpu, Kernel, Mailboxes, Word};

/// The name of a word of the mailboxes: `door[3]`, `state[0].1`, `exclusive`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WordName {
    /// Whose it is; none for a word of the whole machine.
    cpu: Option<Cpu>,
    part: &'static str,
    /// Which of those of this name: a call level, a leaf word.
    index: Option<usize>,
    /// Which word of a set of bits, if there are several.
    word: Option<usize>,
}

impl<K: Kernel> Mailboxes<K> {
    /// What the word at `location` is, for traces; none if it is not part of the mailboxes.
    pub fn name_of(&self, location: *const ()) -> Option<WordName> {
        let address = location.addr();
        let of = |word: &Word<K>| word.location().addr() == address;
        for (word, part) in self.global().words() {
            if of(word) {
                return Some(WordName { cpu: None, part, index: None, word: None });
            }
        }
        for cpu in self.cpus() {
            let Some(mailbox) = self.get(cpu) else { continue };
            let named = |part, index| Some(WordName { cpu: Some(cpu), part, index, word: None });
            if let Some(&(_, part)) = mailbox.words().iter().find(|(word, _)| of(word)) {
                return named(part, None);
            }
            let pointers = [
                (mailbox.posts.0.location(), "posts"),
                (mailbox.taken.location(), "taken"),
                (mailbox.backlog.location(), "backlog"),
                (mailbox.beginning.location(), "beginning"),
                (mailbox.work.location(), "work"),
            ];
            if let Some(&(_, part)) = pointers.iter().find(|(pointer, _)| pointer.addr() == address) {
                return named(part, None);
            }
            if let Some(level) = mailbox.states.0.iter().position(of) {
                return named("state", Some(level));
            }
            if let Some(level) = mailbox.slots.iter().position(|slot| of(&slot.has_outcomes)) {
                return named("has_outcomes", Some(level));
            }
            if let Some(level) =
                mailbox.slots.iter().position(|slot| slot.payload.location().addr() == address)
            {
                return named("payload", Some(level));
            }
        }
        self.name_of_bits(address)
    }

    /// The name of a word of bits that pairs of CPUs have.
    fn name_of_bits(&self, address: usize) -> Option<WordName> {
        let position = |words: &[Word<K>]| words.iter().position(|word| word.location().addr() == address);
        let named = |cpu: usize, part, index, word| {
            Some(WordName { cpu: Some(Cpu::new(cpu as u32)), part, index: Some(index), word })
        };
        if let Some(index) = position(self.leaves) {
            return named(index / self.leaf_words, "leaf", index % self.leaf_words, None);
        }
        let index = position(self.targets)?;
        let (set, word) = (index / self.target_words, index % self.target_words);
        let part = if set.is_multiple_of(2) { "targets" } else { "outcomes" };
        named(set / 2 / LEVELS, part, set / 2 % LEVELS, (self.target_words > 1).then_some(word))
    }
}

impl fmt::Display for WordName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.part)?;
        if let Some(cpu) = self.cpu {
            write!(f, "[{}]", cpu.number())?;
        }
        for index in [self.index, self.word].into_iter().flatten() {
            write!(f, ".{index}")?;
        }
        Ok(())
    }
}
