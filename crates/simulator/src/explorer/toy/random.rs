//! Draws toys at random, reproducibly.

use super::{Condition, Machine, Operation, Program};

/// How big toys are drawn: small enough that every interleaving of them can be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// At least so many CPUs.
    pub min_cpus: u16,
    /// At most so many CPUs, not more than 16.
    pub max_cpus: u16,
    /// At most so many operations in all base programs together.
    pub operations: u16,
}

impl Default for Shape {
    /// Toys of which most have some ten to some ten thousand interleavings.
    fn default() -> Self {
        Self { min_cpus: 2, max_cpus: 4, operations: 7 }
    }
}

/// Pseudo-random numbers: `SplitMix64` (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
struct Generator(u64);

impl Generator {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// What a machine has; operations that make no sense without are not drawn.
#[expect(clippy::struct_excessive_bools, reason = "each is a feature of its own")]
struct Features {
    cpus: u16,
    words: u8,
    interrupts: bool,
    nmis: bool,
    deadlines: bool,
    everything: bool,
    laws: bool,
}

impl Machine {
    /// The toy with this number. Every eighth or so has each of the rarer features: NMIs, store buffers, operations that touch
    /// everything, laws that break on the way.
    pub fn random(seed: u64, shape: &Shape) -> Self {
        let mut generator = Generator(seed);
        let cpus = u64::from(shape.max_cpus - shape.min_cpus + 1);
        let cpus = shape.min_cpus + generator.below(cpus) as u16;
        let features = Features {
            cpus,
            words: 1 + generator.below(3) as u8,
            interrupts: !generator.one_in(3),
            nmis: generator.one_in(6),
            deadlines: generator.one_in(3),
            everything: generator.one_in(8),
            laws: generator.one_in(8),
        };
        let mut programs = vec![Program::default(); cpus.into()];
        for (cpu, program) in (0..).zip(&mut programs) {
            let mut draw = || handler_operation(&mut generator, &features, cpu);
            if features.nmis {
                program.nmi = vec![draw()];
            }
            if features.interrupts {
                program.handler = vec![draw(), draw()];
                program.handler.truncate(generator.below(3) as usize);
            }
        }
        let operations = u64::from(shape.operations);
        for _ in 0..operations / 2 + generator.below(operations / 2 + 1) {
            let cpu = generator.below(cpus.into()) as usize;
            programs[cpu].base.push(operation(&mut generator, &features));
        }
        let sends = features.interrupts || features.nmis;
        Self {
            programs,
            words: features.words,
            drops: u8::from(sends && generator.one_in(3)),
            expiries: u8::from(features.deadlines && generator.one_in(2)),
            store_buffers: generator.one_in(6),
        }
    }
}

fn condition(generator: &mut Generator, features: &Features) -> Condition {
    (generator.below(features.words.into()) as u8, generator.below(3) as u8)
}

/// Handlers interrupt only CPUs with higher numbers than their own, so that every execution ends.
fn handler_operation(generator: &mut Generator, features: &Features, cpu: u16) -> Operation {
    let (word, value) = condition(generator, features);
    let higher = u64::from(features.cpus - 1 - cpu);
    match generator.below(6) {
        0 => Operation::Load(word),
        1 | 2 => Operation::Store(word, value),
        3 => Operation::Exchange(word, value, 1),
        4 if features.interrupts && higher > 0 => {
            Operation::Interrupt(cpu + 1 + generator.below(higher) as u16)
        }
        _ => Operation::Increment(word),
    }
}

fn operation(generator: &mut Generator, features: &Features) -> Operation {
    let (word, value) = condition(generator, features);
    let target = generator.below(features.cpus.into()) as u16;
    match generator.below(20) {
        0..=2 => Operation::Load(word),
        3 | 4 => Operation::Increment(word),
        5 => Operation::Exchange(word, value, 1),
        6..=9 => {
            let second = generator.one_in(3).then(|| condition(generator, features));
            let deadline = features.deadlines && generator.one_in(2);
            Operation::Await { any: [Some((word, value)), second], deadline }
        }
        10..=12 if features.interrupts => Operation::Interrupt(target),
        13 if features.interrupts => Operation::Disable,
        14 if features.interrupts => Operation::Enable,
        15 if features.nmis => Operation::Nmi(target),
        16 if features.everything => Operation::Everything,
        17 if features.laws => Operation::Forbid(word, value),
        _ => Operation::Store(word, value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_toy_and_another_seed_another() {
        let shape = Shape::default();
        let draw = |seed| Machine::random(seed, &shape);
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn a_thousand_toys_have_every_kind_of_operation() {
        let shape = Shape::default();
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..1000 {
            for program in Machine::random(seed, &shape).programs {
                for operation in program.base {
                    let text = format!("{operation:?}");
                    kinds.insert(text.split(['(', ' ']).next().unwrap_or_default().to_owned());
                }
            }
        }
        assert_eq!(kinds.len(), 11, "{kinds:?}");
    }
}
